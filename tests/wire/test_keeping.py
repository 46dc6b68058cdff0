"""Connections among a mesh's own processes: asked often, left while nothing answers there, and taken up again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mesh.core.errors import Code, RemoteError
from mesh.wire.client import WireChannel
from mesh.wire.transport import at_once
from tests.fixtures.link import Link
from tests.wire import engines as e
from tests.wire.test_chaos import until


@asynccontextmanager
async def linked(engine: str) -> AsyncIterator[tuple[WireChannel, Link, list[bool]]]:
    """Yield a channel over a link to a server, and what is told of its silence."""
    server = e.server(engine)
    await server.start()
    link = Link(server.address)
    await link.start()
    told: list[bool] = []
    channel = WireChannel(link.address, limits=e.LIMITS, on_silence=told.append)
    try:
        yield channel, link, told
    finally:
        await channel.close(0)
        await link.stop()
        await server.stop(0)


@pytest.mark.parametrize("engine", ["wire", "grpcio"])
async def test_a_server_that_takes_its_time_is_asked_again_and_again_and_keeps_its_call(engine: str) -> None:
    async with linked(engine) as (channel, _, told):
        call = asyncio.create_task(channel.unary(e.HANG, b"", metadata=(), timeout_s=60))
        await until(lambda: channel.links.connections, "it is connected")
        (connection,) = channel.links.connections
        echoes: set[float] = set()
        for _ in range(7):
            await until(lambda: connection.echoed_s and connection.echoed_s not in echoes, "a PING is answered")
            echoes.add(connection.echoed_s)
        assert channel.links.connections == [connection]
        assert not call.done()
        assert not told
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


async def test_a_call_leaves_a_peer_that_does_not_answer_and_others_are_turned_away_until_it_does() -> None:
    async with linked("wire") as (channel, link, told):
        assert (await channel.unary(e.ECHO, b"1", metadata=(), timeout_s=60)).message == b"1"
        link.cut()
        waits = asyncio.create_task(channel.unary(e.ECHO, b"2", metadata=(), timeout_s=60))
        with pytest.raises(RemoteError) as caught:
            await channel.unary(e.ECHO, b"3", metadata=(), timeout_s=60, leaves=at_once)
        assert (caught.value.status, caught.value.transport_failed) == (Code.UNAVAILABLE, True)
        assert told == [True]
        with pytest.raises(RemoteError) as caught:
            await channel.unary(e.ECHO, b"4", metadata=(), timeout_s=60)
        assert (caught.value.status, caught.value.unsent) == (Code.UNAVAILABLE, True)
        link.heal()
        assert (await waits).message == b"2"
        await until(lambda: told == [True, False], "it answers again")
        assert (await channel.unary(e.ECHO, b"5", metadata=(), timeout_s=60)).message == b"5"


async def test_who_waits_for_a_connection_is_turned_away_and_the_attempt_goes_on() -> None:
    async with linked("wire") as (channel, link, told):
        link.cut()
        with pytest.raises(RemoteError) as caught:
            await channel.unary(e.ECHO, b"1", metadata=(), timeout_s=60)
        assert (caught.value.status, caught.value.unsent) == (Code.UNAVAILABLE, True)
        assert told == [True]
        link.heal()
        await until(lambda: told == [True, False], "it is found without a call")
        assert (await channel.unary(e.ECHO, b"2", metadata=(), timeout_s=60)).message == b"2"


async def test_a_silent_connection_that_is_being_closed_is_not_waited_for() -> None:
    async with linked("wire") as (channel, link, told):
        assert (await channel.unary(e.ECHO, b"1", metadata=(), timeout_s=60)).message == b"1"
        link.cut()
        call = asyncio.create_task(channel.unary(e.ECHO, b"2", metadata=(), timeout_s=60))
        await until(lambda: told, "nothing answers")
        async with asyncio.timeout(30):
            await channel.close(600)
        with pytest.raises(RemoteError) as caught:
            await call
        assert (caught.value.status, caught.value.transport_failed) == (Code.UNAVAILABLE, True)
