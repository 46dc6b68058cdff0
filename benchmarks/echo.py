"""A grpc.aio server that answers with the request's bytes. Run as a script: `echo.py HOST:PORT`.

The yardstick: what the transport costs when nothing is inferred. On uvloop where it is installed, as the mesh is.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc


async def unary(message: bytes, context: Any) -> bytes:  # noqa: ARG001 - grpcio passes it
    return message


async def stream(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:  # noqa: ARG001 - grpcio passes it
    async for message in messages:
        yield message


class Echo(grpc.GenericRpcHandler):  # type: ignore[type-arg] # generic in the stubs only, not when it runs
    """Answers any method; only one name is known to be a single call's."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method."""
        if details.method.endswith("/ModelInfer"):
            return grpc.unary_unary_rpc_method_handler(unary)
        return grpc.stream_stream_rpc_method_handler(stream)


async def main(address: str) -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers([Echo()])
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main(sys.argv[1]))
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main(sys.argv[1]))
