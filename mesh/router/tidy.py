"""Deleting what versions that are gone left in the registry: their placements, and what was known of their deaths.

`mesh.core.placement.orphans` says which and when; this file deletes, and only where the version has no record at that
moment of the registry: whatever was published meanwhile keeps its placement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from mesh.core.placement.orphans import PLACEMENT_S, SUSPECT_S, Orphans
from mesh.core.types import ModelName, Version
from mesh.core.view import ClusterView, VersionKey
from mesh.registry.keys import model_key, placement_key, suspect_key
from mesh.registry.store import MAX_WRITES, Guard, Store
from mesh.telemetry import logs

log = logs.get(__name__)

_Key = Callable[[ModelName, Version], str]

KINDS: Final[tuple[tuple[str, _Key], ...]] = (("placements", placement_key), ("deaths", suspect_key))


class Tidy:
    """Deletes, for as long as its router leads. `placement_s`, `suspect_s`: for how long a record stays alone."""

    def __init__(self, store: Store, *, placement_s: float = PLACEMENT_S, suspect_s: float = SUSPECT_S) -> None:
        self._store = store
        self._placements: Orphans[VersionKey] = Orphans(placement_s)
        self._suspects: Orphans[VersionKey] = Orphans(suspect_s)

    async def step(self, view: ClusterView, placements: Iterable[VersionKey], now_s: float) -> None:
        """Delete what is due of `placements`, the ones without a version, and of the view's suspects.

        `now_s` is monotonic. O(orphans + suspects). Raises `RegistryUnavailable`; what was not deleted is due again.
        """
        alone = [key for key in view.suspects if key[1] not in view.models.get(key[0], ())]
        both = ((self._placements, placements), (self._suspects, alone))
        for (what, named), (orphans, keys) in zip(KINDS, both, strict=True):
            due = orphans.step(keys, now_s)
            deleted = 0
            for at in range(0, len(due), MAX_WRITES):
                deleted += await self._delete(orphans, due[at : at + MAX_WRITES], named, now_s)
            if deleted:
                log.info("deleted what models that are gone left", what=what, count=deleted)

    async def _delete(self, orphans: Orphans[VersionKey], keys: Sequence[VersionKey], named: _Key, now_s: float) -> int:
        """Delete those of `keys` that have no version; return how many. Where one of them has, it is found by halves.

        O(log keys) transactions for each one that has.
        """
        gone = [Guard(model_key(*key), mod_revision=0) for key in keys]
        if await self._store.write({named(*key): None for key in keys}, guards=gone) is not None:
            return len(keys)
        if len(keys) == 1:
            orphans.kept(keys[0], now_s)
            return 0
        half = len(keys) // 2
        parts = (keys[:half], keys[half:])
        return sum([await self._delete(orphans, part, named, now_s) for part in parts])

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Tidy placements={self._placements!r} suspects={self._suspects!r}>"
