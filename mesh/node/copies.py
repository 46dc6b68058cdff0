"""The records of the copies of one node, and which of them changed since they were published last."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final, Protocol

from mesh.core.placement.filters import retry_after_s
from mesh.core.types import Copy, CopyState
from mesh.core.view import VersionKey
from mesh.node.served import Served

GONE_S: Final = 0.03
"""Within which others hear that a copy is gone: whoever asks it meanwhile is told that it did not run, and asks
another. Most loads that took its room are over by then, and one transaction says all of it."""

LOADING_S: Final = 0.1
"""Within which others hear that a copy is loading: the placement says so already. Most loads are over by then."""

_WITHIN_S: Final = {
    CopyState.READY: 0.0,
    CopyState.FAILED: 0.0,
    CopyState.DRAINING: GONE_S,
    CopyState.LOADING: LOADING_S,
}


class Hear(Protocol):
    """Is told that a record changed."""

    def __call__(self, *, within_s: float) -> None:
        """Take that one changed, and within which time others are to hear of it."""


def _deaf(*, within_s: float) -> None:
    """Hear nothing."""


class Copies(Mapping[VersionKey, Copy]):
    """The records by version. `on_change` is called after any was set or dropped."""

    def __init__(self) -> None:
        self._records: dict[VersionKey, Copy] = {}
        self._untold: set[VersionKey] = set()
        """Those that changed since `changed` was asked."""
        self._round: list[VersionKey] = []
        """Those whose last use is still to be noted in this round."""
        self._pauses: dict[VersionKey, float] = {}
        """Until when (monotonic) those that failed are not to be tried again."""
        self.on_change: Hear = _deaf

    def set(self, copy: Copy) -> None:
        """Put a record, as one that changed now; with one that failed, its pause begins."""
        key = copy.model, copy.version
        pause_s = retry_after_s(copy.failures) if copy.state is CopyState.FAILED else 0.0
        self._records[key] = replace(copy, changed_s=time.time(), pause_s=pause_s)
        self._pauses.pop(key, None)
        if pause_s:
            self._pauses[key] = time.monotonic() + pause_s
        self._untold.add(key)
        self.on_change(within_s=_WITHIN_S[copy.state])

    def drop(self, key: VersionKey) -> None:
        """Take a record away, if it is there."""
        self._records.pop(key, None)
        self._pauses.pop(key, None)
        self._untold.add(key)
        self.on_change(within_s=GONE_S)

    def end_pauses(self, now_s: float) -> None:
        """Let those be tried again whose pause is over at `now_s`, which is monotonic. O(copies that failed)."""
        for key in [key for key, until_s in self._pauses.items() if until_s <= now_s]:
            del self._pauses[key]
            self._records[key] = replace(self._records[key], pause_s=0.0)
            self._untold.add(key)

    def changed(self) -> dict[VersionKey, Copy | None]:
        """Return those that changed since this was asked last, None for one that is gone. O(those)."""
        changed = {key: self._records.get(key) for key in self._untold}
        self._untold.clear()
        return changed

    def note_uses(self, served: Mapping[VersionKey, Served], share: float) -> None:
        """Note the last use, to the minute, of this share of what is served: the next in turn."""
        if not self._round:
            self._round = list(served)
        for _ in range(min(len(self._round), math.ceil(len(served) * share))):
            key = self._round.pop()
            each, copy = served.get(key), self._records.get(key)
            if each is not None and copy is not None and copy.last_used_s != (used_s := each.last_used_s // 60 * 60):
                self._records[key] = replace(copy, last_used_s=used_s)
                self._untold.add(key)

    def __getitem__(self, key: VersionKey) -> Copy:
        """Return a record. Raises KeyError."""
        return self._records[key]

    def __iter__(self) -> Iterator[VersionKey]:
        """Iterate over the keys."""
        return iter(self._records)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._records)

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Copies {len(self)} untold={len(self._untold)}>"
