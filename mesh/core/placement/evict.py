"""Which idle copies a device gives up for a new one, and what more room would cost.

A copy is worth what callers would lose without it: the requests per second that are expected of it, times the seconds
that each would wait for it to come back. What goes first is what is worth least per byte. (The knapsack's greedy rule;
with equal sizes and loads it is the order of the expected rates.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from mesh.core.view import VersionKey

ORDERED_PER_S: Final = 1000.0
"""Copies that are put in order a second at most: 4 us each, so 0.4% of a core however many there are."""
MORE: Final = 16
"""Copies beyond those that are enough: one of them alone may be worth less than several (`victims`)."""

POINTS = 8
"""Points of a curve: one copy, two, four ... so that it stays small however many copies there are."""


@dataclass(frozen=True, slots=True)
class Idle:
    """A copy that may be evicted: nothing in flight, not below its model's minimum, not used this very moment."""

    key: VersionKey
    bytes: int
    loss: float
    """Seconds of callers' waiting per second that its absence is expected to cost."""
    last_used_s: float = 0.0


def in_order(idle: Iterable[Idle]) -> list[Idle]:
    """Return the copies in the order in which they go: least loss per byte, then used longest ago. O(n log n)."""
    return sorted(idle, key=lambda copy: (copy.loss / max(1, copy.bytes), copy.last_used_s, copy.key))


def victims(missing: int, order: Sequence[Idle]) -> list[Idle] | None:
    """Return the copies to evict for `missing` more bytes; none when it is no more than 0, None when all are too few.

    `order` is `in_order`'s. Where one larger copy alone is worth less than the several that would go for it, it goes.
    O(copies looked at) and at most O(n).
    """
    if missing <= 0:
        return []
    chosen: list[Idle] = []
    freed = 0
    for each in order:
        if freed >= missing:
            break
        chosen.append(each)
        freed += each.bytes
    if freed < missing:
        return None
    chosen = _without_needless(chosen, freed - missing)
    if len(chosen) > 1:
        enough = [each for each in order if each.bytes >= missing]
        single = min(enough, key=lambda copy: (copy.loss, copy.bytes, copy.key), default=None)
        if single is not None and single.loss < sum(each.loss for each in chosen):
            return [single]
    return chosen


def curve(order: Sequence[Idle]) -> tuple[tuple[int, float], ...]:
    """Return up to `POINTS` points (bytes freed, loss), for the first copy of `order`, the first two, four ... and all.

    Both grow. What a router can promise itself from it is the loss at the first point of enough bytes. O(n).
    """
    points: list[tuple[int, float]] = []
    freed, loss, at = 0, 0.0, 1
    for count, each in enumerate(order, start=1):
        freed += each.bytes
        loss += each.loss
        last = count == len(order)
        if last or (count == at and len(points) < POINTS - 1):
            points.append((freed, loss))
            at *= 2
    return tuple(points)


class Order:
    """The copies of a device in the order in which they go, as of a moment. O(n log n) to make, O(1) for one that goes.

    While it is used, `now` tells what a copy is worth by then; None: it may not go any more. One that was used since
    the order was made has lost its place in it.
    """

    def __init__(self, idle: Iterable[Idle], made_s: float) -> None:
        self.made_s = made_s
        self._copies = in_order(idle)
        self._bytes = list(accumulate([copy.bytes for copy in self._copies], initial=0))
        self._losses = list(accumulate([copy.loss for copy in self._copies], initial=0.0))
        self._at = 0
        """The first that has not gone, or lost its place."""

    def is_old(self, now_s: float) -> bool:
        """Tell whether it is to be made anew: the more copies, the later, so that all of it costs the same a second."""
        return now_s - self.made_s > len(self._copies) / ORDERED_PER_S

    def first(self, missing: int, now: Callable[[Idle], Idle | None]) -> list[Idle]:
        """Return the first copies that go, enough for `missing` bytes and some more to choose from, if there are."""
        found: list[Idle] = []
        freed, more = 0, MORE
        for at in range(self._at, len(self._copies)):
            copy = self._copies[at]
            latest = now(copy)
            if latest is None or latest.last_used_s != copy.last_used_s:
                self._at += at == self._at
                continue
            found.append(latest)
            freed += latest.bytes
            more -= freed >= missing
            if not more:
                break
        return found

    def curve(self) -> tuple[tuple[int, float], ...]:
        """Return the `curve` of those that have not gone, as they were when it was made. O(POINTS)."""
        left = len(self._copies) - self._at
        counts = sorted({*(1 << point for point in range(POINTS - 1) if 1 << point < left), left} - {0})
        freed, loss = self._bytes[self._at], self._losses[self._at]
        return tuple((self._bytes[self._at + n] - freed, self._losses[self._at + n] - loss) for n in counts)

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Order {len(self._copies) - self._at} of {len(self._copies)}>"


def _without_needless(chosen: list[Idle], spare: int) -> list[Idle]:
    """Return `chosen` without those that the larger ones after them made needless, the most valuable spared first."""
    kept = list(chosen)
    for each in sorted(chosen, key=lambda copy: (-copy.loss, -copy.bytes, copy.key)):
        if each.bytes <= spare:
            kept.remove(each)
            spare -= each.bytes
    return kept
