"""The handlers and scripts with which engines are compared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from mesh.core.errors import InvalidRequest, MeshError, NoCapacity, NotReady, Overloaded, UnknownModel
from mesh.wire.client import WireChannel
from mesh.wire.grpcio_client import GrpcioChannel
from mesh.wire.grpcio_server import GrpcioServer
from mesh.wire.server import WireServer
from mesh.wire.transport import Call, Channel, HotMethods, Limits, Server, TlsConfig

ECHO = "/t.T/Echo"
FAIL = "/t.T/Fail"
HANG = "/t.T/Hang"
TELL = "/t.T/Tell"
STREAM = "/t.T/Stream"
EARLY = "/t.T/Early"
BREAK = "/t.T/Break"
HOLD = "/t.T/Hold"
GREET = "/t.T/Greet"
GREET_STREAM = "/t.T/GreetStream"
GREETING = (("t-before", "a value"), ("t-bytes-bin", b"\0\1\xfe"))
LIMITS = Limits(max_message_bytes=4 * 1024 * 1024)

FAILURES: dict[str, MeshError] = {
    "invalid": InvalidRequest("expected x, got y"),
    "unknown": UnknownModel("no model 'näïve 100%' — 模型\n second line"),
    "busy": Overloaded("Exceeds maximum queue size"),
    "full": NoCapacity("no room"),
    "starting": NotReady("not yet"),
}


async def echo(call: Call, message: bytes) -> bytes:
    call.trailers.extend([("t-text", "a value"), ("t-bytes-bin", b"\0\1\xfe")])
    return message


async def fail(call: Call, message: bytes) -> bytes:
    call.trailers.append(("t-why", message.decode()))
    if message == b"bug":
        raise KeyError("bug")
    raise FAILURES[message.decode()]


async def hang(call: Call, message: bytes) -> bytes:
    await asyncio.sleep(600)
    return message


async def tell(call: Call, message: bytes) -> bytes:
    """Answer with the caller's own metadata."""
    own = sorted((key, value) for key, value in call.metadata if key.startswith("x-"))
    return repr(own).encode()


async def stream(call: Call, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for message in messages:
        yield message
    call.trailers.append(("t-count", "done"))


async def early(call: Call, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield b"before you ask"


async def greet(call: Call, message: bytes) -> bytes:
    """Send metadata ahead of the answer, which may be a failure."""
    call.headers = GREETING
    call.trailers.append(("t-after", "1"))
    if message:
        raise FAILURES["invalid"]
    return message


async def greet_stream(call: Call, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Send metadata ahead of the answers, of which there may be none, or a failure."""
    call.headers = GREETING
    call.trailers.append(("t-after", "1"))
    async for message in messages:
        if message == b"fail":
            raise FAILURES["invalid"]
        yield message


async def broken(call: Call, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for message in messages:
        yield message
        raise InvalidRequest("that is enough")


async def hold(call: Call, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Read nothing and answer nothing."""
    await asyncio.sleep(600)
    yield b""


HOT = HotMethods(
    unary={ECHO: echo, FAIL: fail, HANG: hang, TELL: tell, GREET: greet},
    stream={STREAM: stream, EARLY: early, BREAK: broken, HOLD: hold, GREET_STREAM: greet_stream},
)


def server(engine: str, tls: TlsConfig | None = None) -> Server:
    if engine == "grpcio":
        return GrpcioServer("127.0.0.1", 0, HOT, [], limits=LIMITS, tls=tls)
    return WireServer("127.0.0.1", 0, HOT, [], limits=LIMITS, tls=tls)


def channel(engine: str, address: str, tls: TlsConfig | None = None) -> Channel:
    if engine == "grpcio":
        return GrpcioChannel(address, limits=LIMITS, tls=tls)
    return WireChannel(address, limits=LIMITS, tls=tls)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended."""

    code: str
    text: str = ""
    messages: tuple[bytes, ...] = ()
    trailers: tuple[tuple[str, str | bytes], ...] = ()
