"""What of a caller's call goes on to nodes, on the coroutine path; `target.Passed` is the same for the wire's own."""

from __future__ import annotations

from collections.abc import Mapping

from mesh.core.types import ModelVersion
from mesh.router.observe import Observed
from mesh.wire.forward import written
from mesh.wire.peek import Peeked
from mesh.wire.transport import MODEL_HEADER, VERSION_HEADER, Call, Metadata

_DROPPED_PREFIXES = ("mesh-", "grpc-", ":")
_DROPPED = frozenset({"user-agent", "content-type", "te", "mm-model-id", "mm-vmodel-id", "triton_grpc_error"})
"""Said between the caller and this router only."""
_TRACE = frozenset({"traceparent", "tracestate"})
_DROPPED_TRACED = _DROPPED | _TRACE


def metadata(call: Call, model: ModelVersion, seen: Observed | None, forwarded: Mapping[str, str]) -> Metadata:
    """Return what goes to the node: the caller's own metadata, what models read of it, what was resolved, the trace."""
    dropped = _DROPPED_TRACED if seen is not None and seen.traced else _DROPPED
    kept = [pair for pair in call.metadata if pair[0] not in dropped and not pair[0].startswith(_DROPPED_PREFIXES)]
    if forwarded:
        # Once is enough: a list of headers has a bound.
        kept = [pair for pair in kept if pair[0] not in forwarded or pair[0] in _TRACE]
    return (
        *kept,
        *written(forwarded),
        *(seen.headers() if seen is not None else ()),
        (MODEL_HEADER, model.name),
        (VERSION_HEADER, model.version),
    )


def named_in(call: Call, request: Peeked) -> str:
    """Return the name that is asked for. One in ModelMesh's metadata wins over that in the message."""
    return call.meta("mm-vmodel-id") or call.meta("mm-model-id") or request.model_name
