"""A grpcio server with threads for bytes: `threads.py HOST:PORT` echoes, with UPSTREAM behind it passes calls on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
THREADS = 32
"""As many as the load has calls in flight."""
CENTURY_S = 3e9


class Echo(grpc.GenericRpcHandler):  # type: ignore[type-arg] # generic in the stubs only, not when it runs
    """Answers any method; only one name is known to be a single call's."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method."""

        def unary(message: bytes, context: Any) -> bytes:  # noqa: ARG001 - grpcio passes it
            return message

        def stream(messages: Iterator[bytes], context: Any) -> Iterator[bytes]:  # noqa: ARG001 - grpcio passes it
            return messages

        return _handler(details.method, unary, stream)


class Proxy(grpc.GenericRpcHandler):  # type: ignore[type-arg] # generic in the stubs only, not when it runs
    """Passes any method on, with metadata and deadline."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._calls: dict[str, Any] = {}

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method."""
        method = details.method

        def unary(message: bytes, context: Any) -> bytes:
            call = self._calls.get(method) or self._calls.setdefault(
                method, self._channel.unary_unary(method, None, None)
            )
            answer: bytes = call(message, timeout=_timeout(context), metadata=_metadata(context))
            return answer

        def stream(messages: Iterator[bytes], context: Any) -> Iterator[bytes]:
            call: Any = self._channel.stream_stream(method, None, None)
            answers: Iterator[bytes] = call(messages, timeout=_timeout(context), metadata=_metadata(context))
            return answers

        return _handler(method, unary, stream)


def _handler(method: str, unary: Any, stream: Any) -> Any:
    if method.endswith("/ModelInfer"):
        return grpc.unary_unary_rpc_method_handler(unary)
    return grpc.stream_stream_rpc_method_handler(stream)


def _timeout(context: Any) -> float | None:
    """Return the seconds that the call may take; without a deadline grpcio says some centuries."""
    left_s: float = context.time_remaining()
    return left_s if left_s < CENTURY_S else None


def _metadata(context: Any) -> Any:
    return tuple(pair for pair in context.invocation_metadata() if pair[0] != "user-agent")


def main(address: str, upstream: str = "") -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        server = grpc.server(pool, options=OPTIONS)
        handlers = Proxy(grpc.insecure_channel(upstream, options=OPTIONS)) if upstream else Echo()
        server.add_generic_rpc_handlers([handlers])
        server.add_insecure_port(address)
        server.start()
        server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])
