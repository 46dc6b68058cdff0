"""Connections that are old are asked to go, by a double GOAWAY, and lose no call."""

from __future__ import annotations

import asyncio

import pytest

from mesh.core.errors import RemoteError
from mesh.wire import server as module
from mesh.wire.client import WireChannel
from mesh.wire.frames import PREFACE, settings
from mesh.wire.server import WireServer
from mesh.wire.transport import Limits
from tests.wire import engines as e
from tests.wire.test_chaos import until


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


async def test_when_all_connections_are_taken_an_idle_one_makes_way_for_a_new_one() -> None:
    server = WireServer("127.0.0.1", 0, e.HOT, [], limits=Limits(max_connections=8))
    await server.start()
    busy = WireChannel(server.address, limits=e.LIMITS)
    hanging = asyncio.create_task(busy.unary(e.HANG, b"", metadata=(), timeout_s=600))
    channels = [WireChannel(server.address, limits=e.LIMITS) for _ in range(12)]
    try:
        await until(lambda: server.streams, "a call goes on")
        for channel in channels:
            assert (await patiently(channel)) == b"x"
        assert len(server._open) <= 8
        assert not hanging.done()
        for channel in channels:
            assert (await patiently(channel)) == b"x"
    finally:
        hanging.cancel()
        for channel in (busy, *channels):
            await channel.close(0)
        await server.stop(0)


async def patiently(channel: WireChannel) -> bytes:
    """Call until there is room: a connection that was refused is tried again."""
    async with asyncio.timeout(60):
        while True:
            try:
                return (await channel.unary(e.ECHO, b"x", metadata=(), timeout_s=60)).message
            except RemoteError:
                await asyncio.sleep(0.05)


async def test_who_greets_drop_by_drop_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GREETING_S", 0.3)
    monkeypatch.setattr(module, "SWEEP_S", 0.05)
    server = WireServer("127.0.0.1", 0, e.HOT, [], limits=e.LIMITS)
    await server.start()
    host, _, port = server.address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    try:
        await until(lambda: server._open, "it is connected")
        for byte in PREFACE + settings({}):
            if not server._open:
                break
            writer.write(bytes((byte,)))
            await asyncio.sleep(0.05)
        assert not any(connection.greeted for connection in server._open)
        await until(lambda: not server._open, "the connection is gone")
    finally:
        writer.close()
        await server.stop(0)
