"""What a call says of its requests beside their messages: one per call, or per stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mesh.core.errors import InvalidRequest
from mesh.core.forwarding import NOTHING, Pattern, forwarded
from mesh.wire.forward import read
from mesh.wire.transport import FORWARD_HEADER, Metadata


@dataclass(slots=True)
class Asked:
    """What a call says of its requests beside their messages."""

    method: str
    metadata: Callable[[], Metadata]
    """Made when it is wanted: it costs more than the rest."""
    deadline_s: float | None
    model: str = ""
    """What the router resolved the name to; empty: the message's own name counts."""
    version: str = ""
    traceparent: str = ""
    pipeline: str = ""
    """The revision, when `model` is a pipeline's name that the router wants to be run here."""
    caller: str = ""
    """See `Request.caller`."""
    forwarded: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    """Headers that models read as parameters."""
    refused: str = ""
    """Why no request with these headers is taken; empty: it is."""

    @property
    def tells(self) -> bool:
        """Whether who asks is a router, which keeps states."""
        return bool(self.model)

    def check(self) -> None:
        """Raise `InvalidRequest` for headers that a call may not have."""
        if self.refused:
            raise InvalidRequest(self.refused)


def heard_of(metadata: Metadata, pattern: Pattern | None, *, routed: bool) -> tuple[Mapping[str, str], str]:
    """Return the headers that models read as parameters, and why they are not taken.

    A router says which they are; `pattern` is for callers of this node itself.
    """
    if routed:
        fields = [value for name, value in metadata if name == FORWARD_HEADER and isinstance(value, str)]
        return (read(fields) if fields else NOTHING), ""
    try:
        return forwarded(pattern, metadata), ""
    except InvalidRequest as error:
        return NOTHING, error.message
