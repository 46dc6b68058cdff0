"""From our errors to gRPC statuses and back, in one place."""

from __future__ import annotations

from typing import Any

import grpc

from mesh.core import errors
from mesh.core.errors import RemoteError
from mesh.core.texts import status_text

GRPC_CODE: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
"""grpcio's status by the number that travels."""


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """Return the code and the text a caller sees for `error`.

    An error outside our tree is a fault of ours: INTERNAL with its type and text, so that a report can name it. A long
    text is cut.
    """
    code, text = errors.status_of(error)
    return GRPC_CODE[int(code)], status_text(text)


def remote_error(error: grpc.RpcError, *, answered_key: str) -> RemoteError:
    """Return a failed grpcio call as our error.

    `answered_key` is the trailer that the peer puts on every answer: without it the status was made up by the local
    transport, because the peer went away or was never reached.
    """
    code: grpc.StatusCode = error.code()
    details: str = error.details() or ""
    trailers = metadata_pairs(error.trailing_metadata())
    failed = code in _TRANSPORT_CODES and all(key != answered_key for key, _ in trailers)
    return RemoteError(
        code.value[0],
        details,
        transport_failed=failed,
        unsent=failed and any(text in details for text in _UNSENT_TEXTS),
        trailers=trailers,
    )


def metadata_pairs(metadata: Any) -> tuple[tuple[str, str | bytes], ...]:
    """Return grpcio's metadata, in any of its shapes or None, as pairs."""
    return tuple((key, value) for key, value in metadata) if metadata else ()


_TRANSPORT_CODES = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED}
)
"""What grpcio makes of refused, reset and cut connections and of streams reset with each HTTP/2 error code."""

_UNSENT_TEXTS = ("failed to connect", "Connection refused", "GOAWAY received before", "name resolution", "DNS")
"""grpcio tells only in words that a request was never written."""
