"""What a call can raise: one tree, a class per kind of failure, each with its gRPC code and a sentence that helps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from mesh.api.details import read_details
from mesh.core.errors import Code


class MeshClientError(Exception):
    """The root. `code` is the gRPC status, `message` what happened and what to do, `details` the server's own text.

    Refusals say more: `reason` is their kind in capitals, such as "NO_CAPACITY", `retry_after_s` the seconds after
    which calling again makes sense (None: nothing was told), `facts` what else a program may want to know.
    """

    reason: str = ""
    retry_after_s: float | None = None
    facts: Mapping[str, str] = MappingProxyType({})

    def __init__(self, message: str, *, code: Code = Code.UNKNOWN, details: str = "") -> None:
        """Keep the parts."""
        super().__init__(message)
        self.message = message
        self.code = code
        self.details = details or message


class InvalidInput(MeshClientError):
    """The request can never succeed as it is: a wrong tensor, name, type or shape (INVALID_ARGUMENT)."""

    def __init__(self, message: str, *, code: Code = Code.INVALID_ARGUMENT, details: str = "") -> None:
        """Keep the parts."""
        super().__init__(message, code=code, details=details)


class ModelNotFound(MeshClientError):
    """No such model or version, or it was unloaded (NOT_FOUND)."""


class DeadlineExceeded(MeshClientError):
    """No answer within the timeout (DEADLINE_EXCEEDED)."""


class Unavailable(MeshClientError):
    """Nobody answers, or the mesh cannot take the call now; calling again may help (UNAVAILABLE)."""

    unreached: bool = False
    """Whether no server was reached: the call certainly did nothing."""


class TooLarge(MeshClientError):
    """A message over a cap, or no capacity for the model (RESOURCE_EXHAUSTED)."""


class NotOffered(MeshClientError):
    """The server does not offer this call (UNIMPLEMENTED)."""


class NotAllowed(MeshClientError):
    """The caller is not known or not permitted (UNAUTHENTICATED, PERMISSION_DENIED)."""


class Cancelled(MeshClientError):
    """The call was cancelled (CANCELLED)."""


class ServerFailed(MeshClientError):
    """The model or the server failed (INTERNAL and all other codes)."""

    def __init__(self, message: str, *, code: Code = Code.INTERNAL, details: str = "") -> None:
        """Keep the parts."""
        super().__init__(message, code=code, details=details)


class SessionEnded(MeshClientError):
    """The state of a session is gone and cannot be made again (ABORTED): begin another."""

    def __init__(self, message: str, *, code: Code = Code.ABORTED, details: str = "") -> None:
        """Keep the parts."""
        super().__init__(message, code=code, details=details)


class StreamError(MeshClientError):
    """One request of a stream failed; the stream goes on. `id` is the request's id.

    `resumable` says whether the mesh lost the state of a sequence, and would take it back from whoever kept it.
    """

    def __init__(self, text: str, id: str, *, resumable: bool = False) -> None:  # noqa: A002 - the protocol's word
        """Keep the text; the mesh ends it with the name of its code."""
        named = _CODE_AT_END.search(text)
        super().__init__(text, code=Code[named[1]] if named and named[1] in Code.__members__ else Code.UNKNOWN)
        self.id = id
        self.resumable = resumable


_CODE_AT_END = re.compile(r"\(([A-Z_]+)\)$")


_CLASS: dict[Code, type[MeshClientError]] = {
    Code.INVALID_ARGUMENT: InvalidInput,
    Code.NOT_FOUND: ModelNotFound,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.UNAVAILABLE: Unavailable,
    Code.RESOURCE_EXHAUSTED: TooLarge,
    Code.UNIMPLEMENTED: NotOffered,
    Code.UNAUTHENTICATED: NotAllowed,
    Code.PERMISSION_DENIED: NotAllowed,
    Code.CANCELLED: Cancelled,
    Code.ABORTED: SessionEnded,
}

_HANDSHAKE: tuple[str, ...] = ("handshake", "CERTIFICATE_VERIFY_FAILED", "SSL_ERROR", "Peer name")
"""How grpcio words a server that was reached and not trusted, or that does not speak TLS."""

_UNREACHED: tuple[str, ...] = ("failed to connect", "Connection refused", "DNS resolution", "name resolution")
"""grpcio tells only in words that it never reached a server."""


def closed(address: str) -> MeshClientError:
    """Return the error of a call on a client that was closed."""
    return Cancelled(f"this client of {address} was closed", code=Code.CANCELLED)


def over(address: str) -> MeshClientError:
    """Return the error of sending on a stream that ended well."""
    return MeshClientError(f"this stream to {address} is over: open another", code=Code.FAILED_PRECONDITION)


def half_closed(address: str) -> MeshClientError:
    """Return the error of sending on a stream after `half_close`."""
    return MeshClientError(
        f"this stream to {address} was half-closed: send before half_close, or open another",
        code=Code.FAILED_PRECONDITION,
    )


def left(address: str) -> MeshClientError:
    """Return the error of using a stream that was left or cancelled, or whose client was closed."""
    return Cancelled(f"this stream to {address} was left or cancelled: open another", code=Code.CANCELLED)


def error_of(code: int, details: str, address: str, trailers: Iterable[Any] | None = None) -> MeshClientError:
    """Return the error for a gRPC status of a call to `address`, with what its trailers tell."""
    error = _error_of(code, details, address)
    told = read_details(trailers or ())
    if isinstance(error, Unavailable):
        error.unreached = any(text in details for text in _UNREACHED)
    if told.reason:
        error.reason, error.retry_after_s, error.facts = told.reason, told.retry_after_s, told.facts
    return error


def _error_of(code: int, details: str, address: str) -> MeshClientError:
    known = Code(code)
    message = details or known.name
    if known is Code.UNAVAILABLE and any(text in details for text in _HANDSHAKE):
        message = (
            f"no TLS connection to {address}: check that it speaks TLS, that Tls(ca=...) is the root of its "
            f"certificate and, where it asks for one, that it trusts Tls(cert=..., key=...) ({details})"
        )
    elif known is Code.UNAVAILABLE and any(text in details for text in _UNREACHED):
        message = f"no mesh answers at {address}: start one with `mesh up`, or give the client its address ({details})"
    elif known is Code.DEADLINE_EXCEEDED and (not details or details == "Deadline Exceeded"):
        message = f"no answer from {address} in time; a model may still be loading: call again with a longer timeout_s"
    return _CLASS.get(known, ServerFailed)(message, code=known, details=details)
