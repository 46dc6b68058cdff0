"""The states of a copy's sequences for those who keep them too: when one goes along with an answer, and as what."""

from __future__ import annotations

from mesh.api.snapshot import encode_snapshot
from mesh.core.errors import MeshError, ModelFailed
from mesh.core.sessions.policy import is_due
from mesh.core.sessions.schedule import Sequence
from mesh.core.types import Sequencing
from mesh.node.item import Item
from mesh.node.runtimes.base import Steps
from mesh.node.sequence_item import SequenceItem


class Telling:
    """One copy's. `bytes` is the size of the state that was encoded last."""

    def __init__(self, sequencing: Sequencing, steps: Steps, digest: str) -> None:
        self._sequencing = sequencing
        self._steps = steps
        self._digest = digest
        self.bytes = 0

    def encoded(self, sequence: Sequence[Item], *, done: bool = False) -> bytes:
        """Return the state of a sequence as it travels. Raises `ModelFailed` for one that cannot."""
        try:
            packed = self._steps.packed(sequence.state)
        except MeshError:
            raise
        except Exception as error:  # A device that does not give it back: the other steps of the run are answered.
            raise ModelFailed(f"the state of a sequence cannot be read: {error}") from error
        return encode_snapshot(packed, count=sequence.count, digest=self._digest, done=done)

    def behind(
        self, sequence: Sequence[Item], item: SequenceItem, *, done: bool = False
    ) -> tuple[bytes, Exception | None]:
        """Return the state behind a step when it is to be told, else nothing; and why it cannot be."""
        step = item.step
        if not item.request.tells or (step is not None and step.end and not self._steps.generates):
            return b"", None
        sequence.untold += 1
        sequence.untold_bytes += item.size
        sizes = {"state_bytes": self.bytes, "message_bytes": sequence.untold_bytes}
        if not is_due(self._sequencing, messages=sequence.untold, **sizes):
            return b"", None
        try:
            state = self.encoded(sequence, done=done)
        except MeshError as error:
            return b"", error
        sequence.untold = sequence.untold_bytes = 0
        self.bytes = len(state)
        return state, None
