"""What a registry lost with its data and gets back from those who still know it.

A registry that was wiped, or restored from an older backup, is another history: that a record is not in it says nothing
about the mesh. Nodes and their copies come back by themselves and are waited for (`mesh.core.grace`). The records that
belong to no process, versions, placements, pipelines and deaths, stay in the view until somebody has put them back, or
written others in their place. What is in the registry counts, whoever wrote it.

Pure. The shell is `mesh.registry.restore`.
"""

from __future__ import annotations

from collections.abc import Iterable

from mesh.core.fold import Change, ModelChange, PipelineChange, PlacementChange, SuspectChange

LASTING = (ModelChange, PlacementChange, PipelineChange, SuspectChange)
"""Deletions of these are held back: nobody's lease keeps such a record."""


class Lost:
    """The deletions that are held back. The view that its changes are folded into still has what they would delete."""

    def __init__(self) -> None:
        self._held: dict[Change, None] = {}

    def __bool__(self) -> bool:
        """Tell whether something is to be put back."""
        return bool(self._held)

    @property
    def held(self) -> list[Change]:
        """The deletions that are held back, in the order of their coming."""
        return list(self._held)

    def listed(self, absent: Iterable[Change], *, anew: bool) -> list[Change]:
        """Return which deletions count, of what is in the view and not in a fresh list; hold the others back.

        `anew`: the list is of another history. O(absent).
        """
        counts = []
        for change in absent:
            if isinstance(change, LASTING) and (anew or change in self._held):
                self._held[change] = None
            else:
                counts.append(change)
        return counts

    def changed(self, changes: Iterable[Change]) -> None:
        """Take what the registry says of single records: what is there again, or deleted since. O(changes)."""
        for change in changes if self._held else ():
            self.back(change)

    def back(self, change: Change) -> None:
        """Note that what `change` is about is in the registry again, or need not be."""
        match change:
            case ModelChange(key):
                self._held.pop(ModelChange(key, None), None)
            case PlacementChange(key):
                self._held.pop(PlacementChange(key, None), None)
            case PipelineChange(name):
                self._held.pop(PipelineChange(name, None), None)
            case SuspectChange(key):
                self._held.pop(SuspectChange(key, None), None)
            case _:
                pass

    def __repr__(self) -> str:
        """Show the count."""
        return f"<Lost {len(self._held)}>"
