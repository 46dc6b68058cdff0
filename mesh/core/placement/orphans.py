"""Which records of versions that the repository no longer has may go from the registry.

A placement outlives its version's record for a while, so that a folder that is taken away and put back (a deployment
that is no single rename, a share that is away) finds its nodes and its history again. Ages are counted by the one who
watches, from when it first saw the record alone: no record's clock is compared. The shell (`mesh.router.steward`)
deletes on the condition that the version still has no record, so that one published meanwhile keeps what it has.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nsmallest
from typing import Final, Generic, TypeVar

PLACEMENT_S: Final = 30.0
"""For how long a placement stays without its version: several scans of a repository (5 s) and a slow copy."""

SUSPECT_S: Final = 3600.0
"""For how long it is remembered that files ended processes, after they went: putting them back is no way around it."""

AT_ONCE: Final = 1024
"""Records deleted in one pass, eight transactions; the others follow in the next."""

K = TypeVar("K")


class Orphans(Generic[K]):
    """Records without their version, and since when. `wait_s` is for how long one has to be seen so."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._since_s: dict[K, float] = {}

    def step(self, alone: Iterable[K], now_s: float) -> list[K]:
        """Return the keys to delete of those that are `alone` now, the oldest first, at most `AT_ONCE`. O(alone).

        One that is not in `alone` has its version again, or is gone.
        """
        since_s = self._since_s
        self._since_s = {key: since_s.get(key, now_s) for key in alone}
        due = [(at_s, at) for at, at_s in enumerate(self._since_s.values()) if now_s - at_s >= self._wait_s]
        keys = list(self._since_s)
        return [keys[at] for _, at in nsmallest(AT_ONCE, due)]

    def kept(self, key: K, now_s: float) -> None:
        """Note that `key` could not be deleted, as its version is there after all: its time begins anew."""
        self._since_s[key] = now_s

    def __repr__(self) -> str:
        """Show the count."""
        return f"<Orphans {len(self._since_s)}>"
