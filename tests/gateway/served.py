"""A gateway on a free port over functions of a test's own, in place of a router's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from mesh.core.traffic.held import HeldBytes
from mesh.gateway.http import HttpServer
from mesh.gateway.seam import GrpcCalls
from mesh.wire.transport import Call

MAX_BODY_BYTES = 1 << 20


async def echo(_call: Call, message: bytes) -> bytes:
    """Answer with nothing."""
    return b""


async def no_stream(_call: Call, _messages: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Answer with no message."""
    return
    yield b""


@asynccontextmanager
async def gateway(
    infer: Callable[[Call, bytes], Awaitable[bytes]] = echo, held: HeldBytes | None = None
) -> AsyncIterator[str]:
    """Run one; yields its address."""
    calls = GrpcCalls(infer, no_stream, None, held or HeldBytes(1 << 30), MAX_BODY_BYTES)
    server = HttpServer("127.0.0.1", 0, CollectorRegistry(), lambda: True, calls)
    await server.start()
    try:
        yield server.address
    finally:
        await server.stop()


async def exchange(address: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send one request as it is; return status, headers and body of the answer, until the other side closes."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
        body = await asyncio.wait_for(reader.readexactly(int(headers.get("content-length", "0"))), 60)
        return int(head[0].split(" ")[1]), headers, body
    finally:
        writer.close()


def post(path: str, body: bytes, *headers: str) -> bytes:
    """Return a request."""
    lines = [f"POST {path} HTTP/1.1", "host: here", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body
