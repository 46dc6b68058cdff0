"""Connections that are old are asked to go, by a double GOAWAY, and lose no call."""

from __future__ import annotations

import asyncio

import pytest

from mesh.wire.client import WireChannel
from mesh.wire.server import WireServer
from mesh.wire.transport import Limits
from tests.wire import engines as e


@pytest.mark.parametrize("age_s", [0.0, 0.5])
async def test_an_old_connection_is_replaced_between_two_calls(age_s: float) -> None:
    server = WireServer("127.0.0.1", 0, e.HOT, [], limits=Limits(max_connection_age_s=age_s))
    await server.start()
    channel = WireChannel(server.address, limits=e.LIMITS)
    try:
        assert (await channel.unary(e.ECHO, b"first", metadata=(), timeout_s=60)).message == b"first"
        (first,) = channel.links.connections
        for number in range(30 if age_s == 0 else 6000):
            body = b"%d" % number
            assert (await channel.unary(e.ECHO, body, metadata=(), timeout_s=60)).message == body
            if first.going_away:
                break
            await asyncio.sleep(0.01)
        assert first.going_away is (age_s > 0)
        assert (await channel.unary(e.ECHO, b"last", metadata=(), timeout_s=60)).message == b"last"
    finally:
        await channel.close(0)
        await server.stop(0)
