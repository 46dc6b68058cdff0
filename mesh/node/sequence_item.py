"""A request of a sequence while it is with its copy, and who hears of a generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mesh.core.sessions.schedule import Sequence, Step
from mesh.node.item import Item, Waiter
from mesh.node.runtimes.base import Tensors


class Generating(Waiter, Protocol):
    """Hears the responses of a generation as they come; `ran` follows the last."""

    def response(self, outputs: Tensors, state: bytes) -> bool:
        """Take a response; False when no more should be made until `SequenceBatcher.resume`."""


@dataclass(slots=True, eq=False)
class SequenceItem(Item):
    """A request of a sequence."""

    sequence: Sequence[Item] | None = None
    step: Step[Item] | None = None
    began_s: float = 0.0
    """When its first turn began; 0: it waits for it."""
    run_s: float = 0.0
    """Of all its turns."""
    paused: bool = False
    """Its caller does not read."""
