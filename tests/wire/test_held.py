"""What callers make a server hold is counted, bounded and given back, over real sockets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import grpc
import pytest

from mesh.core.errors import Code, RemoteError
from mesh.core.traffic.held import HeldBytes
from mesh.wire.client import WireChannel
from mesh.wire.grpc_framing import STEP, Inflation
from mesh.wire.server import WireServer
from mesh.wire.transport import Limits
from tests.fixtures.unread import asked, begun
from tests.wire import engines as e
from tests.wire.test_chaos import until

MIB = 1024 * 1024


@asynccontextmanager
async def serving(limit: int, *, most: int = 64 * MIB) -> AsyncIterator[tuple[WireServer, HeldBytes]]:
    held = HeldBytes(limit)
    server = WireServer("127.0.0.1", 0, e.HOT, [], limits=Limits(max_message_bytes=most), held=held)
    await server.start()
    try:
        yield server, held
    finally:
        await server.stop(0)


async def test_unfinished_messages_are_given_back_when_their_connections_are_gone() -> None:
    async with serving(1024 * MIB) as (server, held):
        writers = [await begun(server.address, e.ECHO, 5 * MIB, MIB) for _ in range(50)]
        await until(lambda: held.held >= 50 * MIB, "all have arrived as far as they go")
        for writer in writers:
            writer.transport.abort()
        await until(lambda: held.held == 0, "nothing is held")


async def test_a_message_beyond_the_account_is_refused_with_a_hint_and_others_are_taken() -> None:
    async with serving(8 * MIB) as (server, held):
        channel, other = [WireChannel(server.address, limits=Limits()) for _ in range(2)]
        hanging = asyncio.create_task(channel.unary(e.HANG, bytes(3 * MIB), metadata=(), timeout_s=600))
        await until(lambda: held.held >= 3 * MIB, "one message waits")
        with pytest.raises(RemoteError, match="call again later") as caught:
            await channel.unary(e.ECHO, bytes(3 * MIB), metadata=(), timeout_s=60)
        assert caught.value.status is Code.RESOURCE_EXHAUSTED
        assert any(key == "grpc-status-details-bin" for key, _ in caught.value.trailers)
        assert held.refused == 1
        assert len((await other.unary(e.ECHO, bytes(2 * MIB), metadata=(), timeout_s=60)).message) == 2 * MIB
        assert len((await channel.unary(e.ECHO, b"small", metadata=(), timeout_s=60)).message) == 5
        hanging.cancel()
        await until(lambda: held.held == 0, "nothing is held")
        assert len((await channel.unary(e.ECHO, bytes(3 * MIB), metadata=(), timeout_s=60)).message) == 3 * MIB
        await until(lambda: held.held == 0, "nothing is held")
        for each in (channel, other):
            await each.close(0)


async def test_unread_answers_are_counted_and_their_connection_is_refused_more() -> None:
    async with serving(8 * MIB) as (server, held):
        writer = await asked(server.address, e.ECHO, bytes(60_000), times=200)
        await until(lambda: held.refused > 0, "some are refused")
        assert held.held <= 5 * MIB
        channel = WireChannel(server.address, limits=Limits())
        assert len((await channel.unary(e.ECHO, bytes(MIB), metadata=(), timeout_s=60)).message) == MIB
        await channel.close(0)
        writer.transport.abort()
        await until(lambda: held.held == 0, "nothing is held")


async def test_streams_that_nobody_reads_keep_no_other_call_of_their_connection_waiting() -> None:
    async with serving(1024 * MIB, most=4 * MIB) as (server, _):
        channel = WireChannel(server.address, limits=Limits())
        unread = [channel.stream(e.STREAM, metadata=(), timeout_s=600) for _ in range(32)]
        for each in unread:
            # All of them together more than the connection's window.
            for _ in range(16):
                await each.send(bytes(60_000))
        assert len((await channel.unary(e.ECHO, bytes(MIB), metadata=(), timeout_s=60)).message) == MIB
        for each in unread:
            each.cancel()
        await channel.close(0)


async def bomb(address: str, path: str, size: int) -> grpc.StatusCode:
    """Send a message that travels in a thousandth of its size, and return the status."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(address, options=options, compression=grpc.Compression.Gzip) as channel:
        if path == e.ECHO:
            return await channel.unary_unary(path, None, None)(bytes(size)).code()
        call = channel.stream_stream(path, None, None)(iter([bytes(size)]))
        with suppress(grpc.aio.AioRpcError):
            async for answer in call:
                assert answer == bytes(size)
        return await call.code()


@pytest.mark.parametrize("path", [e.ECHO, e.STREAM])
async def test_a_long_compressed_message_is_inflated_beside_the_loop_and_answered(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    step = Inflation.step

    def watched(inflation: Inflation, at_most: int = STEP) -> None:
        threads.append(threading.current_thread())
        step(inflation, at_most)

    monkeypatch.setattr(Inflation, "step", watched)
    async with serving(1024 * MIB) as (server, held):
        assert await bomb(server.address, path, 20 * MIB) is grpc.StatusCode.OK
        # Once on the loop, as far as a small message goes, and the rest elsewhere.
        assert threads.count(threading.main_thread()) == 1
        assert len(threads) > 5
        await until(lambda: held.held == 0, "nothing is held")


@pytest.mark.parametrize("path", [e.ECHO, e.STREAM])
async def test_a_message_that_inflates_beyond_the_account_or_the_largest_is_refused(path: str) -> None:
    async with serving(64 * MIB) as (server, held):
        assert await bomb(server.address, path, 50 * MIB) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert held.refused == 1
        await until(lambda: held.held == 0, "nothing is held")
    async with serving(1024 * MIB, most=10 * MIB) as (server, held):
        assert await bomb(server.address, path, 50 * MIB) is grpc.StatusCode.RESOURCE_EXHAUSTED
        await until(lambda: held.held == 0, "nothing is held")
