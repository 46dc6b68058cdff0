"""What the gateway asks of its process: the functions that gRPC calls, and no others.

Every way in becomes a KServe v2 message, is answered by these, and has no rules of its own.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc

from mesh.core.errors import RemoteError
from mesh.core.forwarding import Pattern
from mesh.core.traffic.held import HeldBytes
from mesh.wire.transport import Call, UnaryHandler


@dataclass(frozen=True, slots=True)
class GrpcCalls:
    """The calls of one router, without their transport."""

    infer: UnaryHandler
    """ModelInfer."""
    stream: Callable[[Call, AsyncIterator[bytes]], AsyncGenerator[bytes]]
    """ModelStreamInfer. Closing the answers gives up what is not answered."""
    service: Any
    """The servicer of inference.GRPCInferenceService's other methods: `await service.Method(request, context)`."""
    held: HeldBytes
    """The process's account of what callers make it hold."""
    max_body_bytes: int
    """Largest body taken in, as sent and as inflated: the largest message of gRPC."""
    forwards: Pattern | None = None
    """The headers that models read as parameters."""

    async def ask(self, method: str, request: Any, deadline_s: float | None = None) -> Any:
        """Return the answer of a method of `service`. Raises a `MeshError`: what a gRPC caller would be told."""
        return await getattr(self.service, method)(request, _Context(deadline_s))


async def one(message: bytes) -> AsyncIterator[bytes]:
    """Yield the one message of a stream of requests."""
    yield message


class _Context:
    """What a servicer asks of a grpcio call, for a call that came another way."""

    def __init__(self, deadline_s: float | None) -> None:
        self._deadline_s = deadline_s

    def time_remaining(self) -> float | None:
        """Return the seconds to the deadline; None without one."""
        return None if self._deadline_s is None else max(0.0, self._deadline_s - time.monotonic())

    async def abort(
        self, code: grpc.StatusCode, text: str, trailers: Sequence[tuple[str, str | bytes]] = ()
    ) -> NoReturn:
        """End the call with a status."""
        raise RemoteError(code.value[0], text, trailers=tuple(trailers))
