"""What a refusal tells programs: google.rpc.Status in the trailer ``grpc-status-details-bin``.

``ErrorInfo`` has the reason and facts, ``RetryInfo`` when to call again (gRPC, "Richer error model";
google/rpc/error_details.proto).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.message import DecodeError

from mesh.api.gen.mesh.v1 import details_pb2 as pb
from mesh.core.errors import MeshError, code_of
from mesh.core.texts import shortened

TRAILER: Final = "grpc-status-details-bin"
DOMAIN: Final = "mesh"

MAX_TEXT: Final = 512
MAX_FACT: Final = 256
"""Characters. The trailer comes beside grpc-message, and grpcio takes 8 KiB of both together."""

_TYPE: Final = "type.googleapis.com/google.rpc."


@dataclass(frozen=True, slots=True)
class Details:
    """What could be read from the trailer."""

    reason: str = ""
    """Such as "NO_CAPACITY"; empty when nothing was told."""
    retry_after_s: float | None = None
    """Seconds after which calling again makes sense; None when nothing was told."""
    facts: Mapping[str, str] = field(default_factory=dict)


def trailers_of(error: BaseException) -> tuple[tuple[str, bytes], ...]:
    """Return the trailer for an error of ours that has a reason; nothing for any other."""
    if not isinstance(error, MeshError) or not error.reason:
        return ()
    status = pb.StatusDetails(code=int(code_of(error)), message=shortened(error.message, MAX_TEXT))
    facts = {name: shortened(value, MAX_FACT) for name, value in error.facts.items()}
    info = pb.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts)
    status.details.add(type_url=f"{_TYPE}ErrorInfo", value=info.SerializeToString())
    if error.retry_after_s is not None:
        seconds, rest = divmod(max(0.0, error.retry_after_s), 1.0)
        retry = pb.RetryInfo(retry_delay=pb.Span(seconds=int(seconds), nanos=int(rest * 1e9)))
        status.details.add(type_url=f"{_TYPE}RetryInfo", value=retry.SerializeToString())
    return ((TRAILER, status.SerializeToString()),)


def read_details(trailers: Iterable[Any]) -> Details:
    """Return what a call's trailers, pairs of key and value, tell; what cannot be read tells nothing."""
    value = next((value for key, value in trailers if key == TRAILER), None)
    if not isinstance(value, bytes):
        return Details()
    found = Details()
    try:
        for each in pb.StatusDetails.FromString(value).details:
            kind = each.type_url.rpartition("/")[2]
            if kind == "google.rpc.ErrorInfo":
                info = pb.ErrorInfo.FromString(each.value)
                found = Details(info.reason, found.retry_after_s, dict(info.metadata))
            elif kind == "google.rpc.RetryInfo":
                delay = pb.RetryInfo.FromString(each.value).retry_delay
                found = Details(found.reason, delay.seconds + delay.nanos / 1e9, found.facts)
    except DecodeError:
        return Details()
    return found
