"""What an HTTP caller is told of an error: the text that gRPC's callers read, and the status that fits its code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from mesh.api.details import read_details, trailers_of
from mesh.api.status import status_of
from mesh.core.errors import Code, MeshError, TooLarge, code_of, let_go
from mesh.telemetry import logs

log = logs.get(__name__)

STATUS: Final[Mapping[Code, int]] = {
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.UNAUTHENTICATED: 401,
}
"""The HTTP status of each gRPC code (google/rpc/code.proto says which); 500 for the others."""


class Failure(msgspec.Struct, frozen=True):
    """An error as it is answered."""

    status: int
    text: str
    headers: dict[str, str]

    @property
    def body(self) -> bytes:
        """The JSON that Triton and KServe answer with."""
        return msgspec.json.encode({"error": self.text})


def failure(error: Exception) -> Failure:
    """Return how `error` is answered; one outside our tree is logged. What it holds of the request is let go."""
    if not isinstance(error, MeshError):
        log.error("a request over HTTP failed", exc_info=error)
    code = code_of(error)
    status = 413 if isinstance(error, TooLarge) else STATUS.get(code, 500)
    _, text = status_of(error)
    details = read_details(getattr(error, "trailers", ()) or trailers_of(error))
    headers = {}
    if details.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(details.retry_after_s)))
    let_go(error)
    return Failure(status, text, headers)
