"""A grpc.aio server for bytes: `aio.py HOST:PORT` answers with the request, `aio.py HOST:PORT UPSTREAM` passes it on.

The echo is the yardstick of what the transport costs when nothing is inferred; the proxy of what it costs twice. On
uvloop where it is installed, as the mesh is.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Echo(grpc.GenericRpcHandler):  # type: ignore[type-arg] # generic in the stubs only, not when it runs
    """Answers any method; only one name is known to be a single call's."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method."""

        async def unary(message: bytes, context: Any) -> bytes:  # noqa: ARG001 - grpcio passes it
            return message

        async def stream(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:  # noqa: ARG001 - same
            async for message in messages:
                yield message

        return _handler(details.method, unary, stream)


class Proxy(grpc.GenericRpcHandler):  # type: ignore[type-arg] # generic in the stubs only, not when it runs
    """Passes any method on, with metadata and deadline."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._calls: dict[str, Any] = {}

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method."""
        method = details.method

        async def unary(message: bytes, context: Any) -> bytes:
            call = self._calls.get(method) or self._calls.setdefault(
                method, self._channel.unary_unary(method, None, None)
            )
            answer: bytes = await call(message, timeout=context.time_remaining(), metadata=_metadata(context))
            return answer

        async def stream(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            call = self._channel.stream_stream(method, None, None)
            async for answer in call(messages, timeout=context.time_remaining(), metadata=_metadata(context)):
                yield answer

        return _handler(method, unary, stream)


def _handler(method: str, unary: Any, stream: Any) -> Any:
    if method.endswith("/ModelInfer"):
        return grpc.unary_unary_rpc_method_handler(unary)
    return grpc.stream_stream_rpc_method_handler(stream)


def _metadata(context: Any) -> Any:
    return tuple(pair for pair in context.invocation_metadata() if pair[0] != "user-agent")


async def main(address: str, upstream: str = "") -> None:
    server = grpc.aio.server(options=OPTIONS)
    handlers = Proxy(grpc.aio.insecure_channel(upstream, options=OPTIONS)) if upstream else Echo()
    server.add_generic_rpc_handlers([handlers])
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main(*sys.argv[1:]))
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main(*sys.argv[1:]))
