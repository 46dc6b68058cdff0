"""Peers that break off, stall, flood and lie, against a server: it answers by the book, and others notice nothing."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mesh.wire import frames as f
from mesh.wire.client import WireChannel
from mesh.wire.flow import Bounds
from mesh.wire.header_cache import encode_all
from mesh.wire.server import WireServer
from tests.wire import engines as e

REQUEST = encode_all(
    [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", e.ECHO.encode()),
        (b":authority", b"x"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]
)
HELLO = f.PREFACE + f.settings({})
BOUND = 8 * 1024 * 1024
"""What one peer may make a server hold, in these tests: far below what the scripts offer it."""


class Peer:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def call(self, stream_id: int, body: bytes = b"", *, end: bool = True) -> None:
        self.send(f.headers(REQUEST, stream_id, end=False, max_frame=16_384))
        message = struct.pack(">BI", 0, len(body)) + body
        for start in range(0, len(message), 16_384):
            part = message[start : start + 16_384]
            self.send(f.frame(f.DATA, f.END_STREAM if end and start + 16_384 >= len(message) else 0, stream_id, part))

    async def frames(self) -> list[tuple[int, int, int, bytes]]:
        """Return every frame until the server closes: kind, flags, stream, payload."""
        found = []
        try:
            while True:
                head, flags, stream_id = f.unpack_head(await self.reader.readexactly(9))
                found.append((head & 0xFF, flags, stream_id, await self.reader.readexactly(head >> 8)))
        except (asyncio.IncompleteReadError, ConnectionError):
            return found

    async def goaway(self) -> f.ErrorCode:
        """Return the error with which the server closed the connection."""
        for kind, _, _, payload in await self.frames():
            if kind == f.GOAWAY and f.u32(payload, 4):
                return f.ErrorCode(f.u32(payload, 4))
        return f.ErrorCode.NO_ERROR


@pytest.fixture
async def server() -> AsyncIterator[WireServer]:
    listening = WireServer("127.0.0.1", 0, e.HOT, [], limits=e.LIMITS)
    await listening.start()
    yield listening
    await until(lambda: not listening.streams, "no stream is left")
    await listening.stop(0)


async def until(condition: Callable[[], Any], what: str) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"still not so after a minute: {what}")


@asynccontextmanager
async def peer(server: WireServer, hello: bytes = HELLO, bound: int = BOUND) -> AsyncIterator[Peer]:
    """Connect, and show that a well-behaved client is served before, while and after."""
    host, _, port = server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    other = WireChannel(server.address, limits=e.LIMITS)
    assert (await other.unary(e.ECHO, b"before", metadata=(), timeout_s=60)).message == b"before"
    writer.write(hello)
    try:
        yield Peer(reader, writer)
        large = bytes(1_000_000)
        assert (await other.unary(e.ECHO, large, metadata=(), timeout_s=60)).message == large
        assert server.buffered < bound
    finally:
        writer.transport.abort()
        await other.close(0)


async def flood(peer: Peer, data: bytes, times: int) -> None:
    """Write for as long as the server takes it."""
    try:
        for _ in range(times):
            peer.send(data)
            await peer.writer.drain()
    except ConnectionError:
        return


FLOODS: dict[str, bytes] = {
    "pings": f.ping(b"12345678", ack=False) * 200,
    "settings": f.settings({f.INITIAL_WINDOW_SIZE: 65_535}) * 200,
    "priorities": f.frame(f.PRIORITY, 0, 1, b"\0\0\0\0\x10") * 200,
    "frames of unknown kinds": f.frame(0x77, 0, 0, b"?") * 200,
}


@pytest.mark.parametrize("what", FLOODS)
async def test_a_flood_ends_its_own_connection(server: WireServer, what: str) -> None:
    async with peer(server) as attacker:
        writing = asyncio.create_task(flood(attacker, FLOODS[what], 100))
        assert await attacker.goaway() is f.ErrorCode.ENHANCE_YOUR_CALM
        await writing


async def test_empty_data_frames_are_a_flood_too(server: WireServer) -> None:
    async with peer(server) as attacker:
        attacker.send(f.headers(REQUEST, 1, end=False, max_frame=16_384))
        writing = asyncio.create_task(flood(attacker, f.frame(f.DATA, 0, 1) * 200, 100))
        assert await attacker.goaway() is f.ErrorCode.ENHANCE_YOUR_CALM
        await writing


async def test_headers_without_an_end_are_cut_off(server: WireServer) -> None:
    async with peer(server) as attacker:
        attacker.send(f.frame(f.HEADERS, 0, 1, b"\0\x01x\x7f\xff\xff\x7f"))
        writing = asyncio.create_task(flood(attacker, f.frame(f.CONTINUATION, 0, 1, bytes(16_000)), 1000))
        assert await attacker.goaway() is f.ErrorCode.ENHANCE_YOUR_CALM
        await writing


async def test_streams_that_are_reset_at_once_are_a_flood(server: WireServer) -> None:
    async with peer(server) as attacker:

        async def reset_all() -> None:
            for number in range(1, 20_001, 2):
                attacker.send(f.headers(REQUEST, number, end=False, max_frame=16_384) + f.rst_stream(number, 8))
                if number % 501 == 0:
                    await attacker.writer.drain()

        writing = asyncio.create_task(quietly(reset_all()))
        assert await attacker.goaway() is f.ErrorCode.ENHANCE_YOUR_CALM
        await writing


async def quietly(work: Awaitable[None]) -> None:
    try:
        await work
    except ConnectionError:
        return


async def test_more_data_than_the_window_is_a_fault(server: WireServer) -> None:
    async with peer(server) as attacker:
        # A handler that never reads gives nothing back.
        block = REQUEST.replace(e.ECHO.encode(), e.HOLD.encode())
        attacker.send(f.headers(block, 1, end=False, max_frame=16_384))
        attacker.send(f.frame(f.DATA, 0, 1, struct.pack(">BI", 0, 10) + bytes(10)))
        attacker.send(f.frame(f.DATA, 0, 1, struct.pack(">BI", 0, 16_379) + bytes(16_379)) * 8)
        resets = [payload for kind, _, number, payload in await first(attacker, f.RST_STREAM) if number == 1]
        assert [f.u32(payload) for payload in resets] == [f.ErrorCode.FLOW_CONTROL_ERROR]


async def first(peer: Peer, kind: int) -> list[tuple[int, int, int, bytes]]:
    """Return the first frame of a kind."""
    while True:
        head, flags, stream_id = f.unpack_head(await peer.reader.readexactly(9))
        payload = await peer.reader.readexactly(head >> 8)
        if head & 0xFF == kind:
            return [(kind, flags, stream_id, payload)]


async def test_a_peer_that_stops_reading_holds_up_nobody(server: WireServer) -> None:
    window = f.settings({f.INITIAL_WINDOW_SIZE: f.MAX_WINDOW}) + f.window_update(0, f.MAX_WINDOW - f.DEFAULT_WINDOW)
    # Its questions are taken as far as the windows go; as many answers wait, of the 20 of 1 MB that it asked for.
    async with peer(server, HELLO + window, bound=16 * 1024 * 1024) as attacker:
        for number in range(1, 40, 2):
            attacker.call(number, bytes(1_000_000))
        await until(lambda: server.streams >= 1, "its calls have begun")


async def test_half_a_message_and_gone(server: WireServer) -> None:
    async with peer(server) as attacker:
        attacker.send(f.headers(REQUEST, 1, end=False, max_frame=16_384))
        attacker.send(f.frame(f.DATA, 0, 1, struct.pack(">BI", 0, 1000) + bytes(500))[:200])
        await attacker.writer.drain()
        await until(lambda: server.streams >= 1, "the call has begun")
        attacker.writer.transport.abort()
        await until(lambda: server.streams == 0, "the call is forgotten")


async def test_half_a_message_and_the_end_is_a_failed_call(server: WireServer) -> None:
    async with peer(server) as attacker:
        attacker.send(f.headers(REQUEST, 1, end=False, max_frame=16_384))
        attacker.send(f.frame(f.DATA, f.END_STREAM, 1, struct.pack(">BI", 0, 1000) + bytes(500)))
        (_, flags, _, block) = (await first(attacker, f.HEADERS))[0]
        assert flags & f.END_STREAM
        assert b"grpc-status\x0213" in block


async def test_byte_by_byte_is_as_good_as_at_once(server: WireServer) -> None:
    async with peer(server, b"") as slow:
        recorded = bytearray(HELLO)
        recorder: Any = Peer(slow.reader, slow.writer)
        recorder.send = recorded.extend
        recorder.call(1, b"slowly but surely")
        for byte in bytes(recorded):
            slow.writer.write(bytes((byte,)))
            await slow.writer.drain()
        (_, _, _, payload) = (await first(slow, f.DATA))[0]
        assert payload[5:] == b"slowly but surely"


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(1000), f.PREFACE + b"\xff" * 1000])
async def test_what_is_no_http2_is_turned_away(server: WireServer, garbage: bytes) -> None:
    async with peer(server, garbage) as attacker:
        assert await attacker.goaway() in {f.ErrorCode.PROTOCOL_ERROR, f.ErrorCode.FRAME_SIZE_ERROR}


async def test_calls_beyond_the_limit_are_refused_and_the_others_answered(server: WireServer) -> None:
    async with peer(server) as eager:
        block = REQUEST.replace(e.ECHO.encode(), e.HOLD.encode())
        for number in range(1, 2 * 4096 + 3, 2):
            eager.send(f.headers(block, number, end=False, max_frame=16_384))
        (_, _, number, payload) = (await first(eager, f.RST_STREAM))[0]
        assert (number, f.u32(payload)) == (2 * 4096 + 1, f.ErrorCode.REFUSED_STREAM)


async def test_unfinished_messages_of_one_connection_are_bounded_together() -> None:
    bounds = Bounds(max_assembling=1_000_000)
    listening = WireServer("127.0.0.1", 0, e.HOT, [], limits=e.LIMITS, bounds=bounds)
    await listening.start()
    async with peer(listening) as greedy:
        for number in range(1, 41, 2):
            greedy.send(f.headers(REQUEST, number, end=False, max_frame=16_384))
            greedy.send(f.frame(f.DATA, 0, number, struct.pack(">BI", 0, 1_000_000) + bytes(16_000)))
            greedy.send(f.frame(f.DATA, 0, number, bytes(16_384)) * 2)
        # Twenty times 48 KB fit, and a million bytes do not.
        greedy.send(f.frame(f.DATA, 0, 1, bytes(16_384)))
        greedy.send(f.frame(f.DATA, 0, 3, bytes(16_384)))
        greedy.send(f.frame(f.DATA, 0, 5, bytes(16_384)))
        (_, _, number, block) = (await first(greedy, f.HEADERS))[0]
        assert number in {1, 3, 5}
        assert b"grpc-status\x018" in block
    await until(lambda: listening.streams == 0, "its calls are forgotten")
    await listening.stop(0)


async def test_what_is_given_back_to_the_windows_does_not_hide_unfinished_messages() -> None:
    listening = WireServer("127.0.0.1", 0, e.HOT, [], limits=e.LIMITS, bounds=Bounds(max_assembling=1_100_000))
    await listening.start()
    async with peer(listening) as greedy:
        unread = REQUEST.replace(e.ECHO.encode(), e.HOLD.encode())
        part = bytes(15_000)
        for number in range(1, 80, 4):
            greedy.send(f.headers(REQUEST, number, end=False, max_frame=16_384))
            greedy.send(f.frame(f.DATA, 0, number, struct.pack(">BI", 0, 1_000_000)))
            for _ in range(4):
                greedy.send(f.frame(f.DATA, 0, number, part))
            # What nobody read is given back when its call is reset.
            greedy.send(f.headers(unread, number + 2, end=False, max_frame=16_384))
            greedy.send(f.frame(f.DATA, 0, number + 2, struct.pack(">BI", 0, 1) + b"x"))
            greedy.send(f.rst_stream(number + 2, f.ErrorCode.CANCEL))
        (_, _, number, block) = (await asyncio.wait_for(first(greedy, f.HEADERS), 60))[0]
        assert number == 4 * 18 + 1, "eighteen times 60 KB fit"
        assert b"grpc-status\x018" in block
    await until(lambda: listening.streams == 0, "its calls are forgotten")
    await listening.stop(0)


async def test_a_client_that_hears_nothing_does_not_hold_up_a_server_that_stops() -> None:
    stopping = WireServer("127.0.0.1", 0, e.HOT, [], limits=e.LIMITS)
    await stopping.start()
    host, _, port = stopping.address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(HELLO)
    await until(lambda: len(stopping._open) == 1, "it is connected")
    async with asyncio.timeout(60):
        await stopping.stop(600)
    assert not stopping._open
    writer.close()
