"""What a call says of its requests beside their messages: one per call, or per stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mesh.wire.transport import Metadata


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

    @property
    def tells(self) -> bool:
        """Whether who asks is a router, which keeps states."""
        return bool(self.model)
