from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from mesh.core.errors import Code, InvalidRequest, RemoteError
from mesh.wire.grpcio_client import GrpcioChannel
from mesh.wire.grpcio_server import GrpcioServer
from mesh.wire.transport import LOAD_TRAILER, Call, HotMethods, Limits

UNARY, STREAM = "/test.Test/Unary", "/test.Test/Stream"


class Service:
    """A real peer: echoes, fails and waits on request."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.cancelled = asyncio.Event()
        self.begun = asyncio.Event()
        self.released = asyncio.Event()

    async def unary(self, call: Call, message: bytes) -> bytes:
        self.calls.append(call)
        call.trailers.append((LOAD_TRAILER, "1"))
        if message == b"refuse":
            raise InvalidRequest("expected something else")
        if message == b"crash":
            msg = "a bug"
            raise RuntimeError(msg)
        if message == b"hold":
            self.begun.set()
            await self.released.wait()
        if message == b"wait":
            self.begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        return message

    async def stream(self, call: Call, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        call.trailers.append((LOAD_TRAILER, "1"))
        async for message in messages:
            if message == b"refuse":
                raise InvalidRequest("expected something else")
            yield message * 2


@pytest.fixture
async def service() -> Service:
    return Service()


@pytest.fixture
async def server(service: Service) -> AsyncIterator[GrpcioServer]:
    hot = HotMethods({UNARY: service.unary}, {STREAM: service.stream})
    server = GrpcioServer("127.0.0.1", 0, hot, [], limits=Limits(max_message_bytes=1000))
    await server.start()
    yield server
    await server.stop(0)


@pytest.fixture
async def channel(server: GrpcioServer) -> AsyncIterator[GrpcioChannel]:
    channel = GrpcioChannel(server.address, limits=Limits())
    yield channel
    await channel.close(0)


async def test_bytes_metadata_deadline_and_trailers_go_through(channel: GrpcioChannel, service: Service) -> None:
    reply = await channel.unary(UNARY, b"\0\xff", metadata=(("key", "value"), ("raw-bin", b"\0")), timeout_s=60)
    assert reply.message == b"\0\xff"
    assert (LOAD_TRAILER, "1") in reply.trailers
    (call,) = service.calls
    assert call.meta("key") == "value"
    assert ("raw-bin", b"\0") in call.metadata
    assert call.deadline_s is not None
    # gRPC rounds a timeout up when it writes it.
    assert 0 < call.deadline_s - time.monotonic() <= 61


async def test_an_error_of_ours_arrives_with_its_code_and_text(channel: GrpcioChannel) -> None:
    with pytest.raises(RemoteError) as caught:
        await channel.unary(UNARY, b"refuse", metadata=(), timeout_s=None)
    assert (caught.value.status, caught.value.message) == (Code.INVALID_ARGUMENT, "expected something else")
    assert not caught.value.transport_failed
    assert (LOAD_TRAILER, "1") in caught.value.trailers


async def test_a_bug_in_a_handler_is_internal_and_named(channel: GrpcioChannel) -> None:
    with pytest.raises(RemoteError, match="internal error: RuntimeError: a bug") as caught:
        await channel.unary(UNARY, b"crash", metadata=(), timeout_s=None)
    assert caught.value.status is Code.INTERNAL
    assert not caught.value.transport_failed


async def test_a_message_over_the_cap_is_refused(channel: GrpcioChannel) -> None:
    with pytest.raises(RemoteError) as caught:
        await channel.unary(UNARY, b"x" * 1001, metadata=(), timeout_s=None)
    assert caught.value.status is Code.RESOURCE_EXHAUSTED
    assert not caught.value.transport_failed


async def test_nobody_listening_is_a_transport_failure_before_sending() -> None:
    channel = GrpcioChannel("127.0.0.1:1", limits=Limits())
    with pytest.raises(RemoteError) as caught:
        await channel.unary(UNARY, b"", metadata=(), timeout_s=30)
    assert caught.value.transport_failed
    assert caught.value.unsent
    await channel.close(0)


async def test_a_server_that_is_cut_while_it_answers_is_a_transport_failure(
    channel: GrpcioChannel, server: GrpcioServer, service: Service
) -> None:
    call = asyncio.create_task(channel.unary(UNARY, b"wait", metadata=(), timeout_s=None))
    await service.begun.wait()
    await server.stop(0)
    with pytest.raises(RemoteError) as caught:
        await call
    assert caught.value.transport_failed


async def test_cancelled_while_the_peer_answers_cancels_the_peer(channel: GrpcioChannel, service: Service) -> None:
    call = asyncio.create_task(channel.unary(UNARY, b"wait", metadata=(), timeout_s=None))
    await service.begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await service.cancelled.wait()


async def test_a_channel_that_is_closed_with_grace_lets_its_calls_finish(
    server: GrpcioServer, service: Service
) -> None:
    channel = GrpcioChannel(server.address, limits=Limits())
    call = asyncio.create_task(channel.unary(UNARY, b"hold", metadata=(), timeout_s=None))
    await service.begun.wait()
    closing = asyncio.create_task(channel.close(60))
    service.released.set()
    assert (await call).message == b"hold"
    await closing


async def test_an_unknown_method_is_unimplemented(channel: GrpcioChannel) -> None:
    with pytest.raises(RemoteError) as caught:
        await channel.unary("/test.Test/Other", b"", metadata=(), timeout_s=30)
    assert caught.value.status is Code.UNIMPLEMENTED


async def test_a_stream_goes_both_ways_and_ends_with_the_half_close(channel: GrpcioChannel) -> None:
    stream = channel.stream(STREAM, metadata=(), timeout_s=60)
    await stream.send(b"a")
    assert await stream.receive() == b"aa"
    await stream.send(b"b")
    await stream.half_close()
    assert [await stream.receive(), await stream.receive()] == [b"bb", None]


async def test_a_stream_that_fails_tells_its_status(channel: GrpcioChannel) -> None:
    stream = channel.stream(STREAM, metadata=(), timeout_s=60)
    await stream.send(b"refuse")
    with pytest.raises(RemoteError, match="expected something else") as caught:
        await stream.receive()
    assert caught.value.status is Code.INVALID_ARGUMENT


async def test_a_taken_port_is_an_error_that_names_it(server: GrpcioServer) -> None:
    port = int(server.address.rpartition(":")[2])
    second = GrpcioServer("127.0.0.1", port, HotMethods({}, {}), [], limits=Limits())
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
        await second.start()
