"""A server of bare frames, for clients to meet: it says what a test tells it to say, and nothing by itself."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from mesh.wire import frames as f
from mesh.wire.header_cache import encode_all

HEAD = encode_all([(b":status", b"200"), (b"content-type", b"application/grpc")])
OK = encode_all([(b"grpc-status", b"0")])
HELLO = f.settings({})

Frame = tuple[int, int, int, bytes]
"""Kind, flags, stream, payload."""


def message(body: bytes) -> bytes:
    return struct.pack(">BI", 0, len(body)) + body


class Accepted:
    """One connection of a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def greet(self, hello: bytes = HELLO) -> None:
        """Read the preface and say `hello`."""
        assert await self.reader.readexactly(len(f.PREFACE)) == f.PREFACE
        self.writer.write(hello)

    async def frame(self) -> Frame:
        head, flags, stream_id = f.unpack_head(await self.reader.readexactly(9))
        return head & 0xFF, flags, stream_id, await self.reader.readexactly(head >> 8)

    async def until(self, kind: int, *, flags: int = 0) -> Frame:
        """Return the next frame of `kind` that has `flags`, passing over all others."""
        while True:
            found = await self.frame()
            if found[0] == kind and found[1] & flags == flags:
                return found

    async def call(self, *, whole: bool = True) -> int:
        """Return the id of the next call, once its question is whole."""
        _, _, number, _ = await self.until(f.HEADERS)
        if whole:
            await self.until(f.DATA, flags=f.END_STREAM)
        return number

    def headers(self, number: int, block: bytes, *, end: bool = False) -> None:
        self.writer.write(f.headers(block, number, end=end, max_frame=16_384))

    def data(self, number: int, data: bytes, *, end: bool = False) -> None:
        self.writer.write(f.frame(f.DATA, f.END_STREAM if end else 0, number, data))

    def answer(self, number: int, body: bytes) -> None:
        self.headers(number, HEAD)
        self.data(number, message(body))
        self.headers(number, OK, end=True)

    def cut(self) -> None:
        self.writer.transport.abort()

    async def closed(self) -> None:
        """Wait until the client has closed."""
        try:
            while await self.reader.read(65_536):
                pass
        except ConnectionError:
            return


Script = Callable[[Accepted], Awaitable[None]]


@asynccontextmanager
async def raw_server(script: Script, *, port: int = 0) -> AsyncIterator[str]:
    """Yield the address of a server that runs `script` on each connection; its failures are the test's."""
    tasks: set[asyncio.Task[None]] = set()

    async def one(accepted: Accepted) -> None:
        try:
            await script(accepted)
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # The client went away first, which its test judges.
        finally:
            accepted.cut()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.get_running_loop().create_task(one(Accepted(reader, writer))))

    listener = await asyncio.start_server(connected, "127.0.0.1", port)
    try:
        yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    failures = [found for found in results if isinstance(found, Exception)]
    assert not failures, failures
