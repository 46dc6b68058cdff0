"""Which idle copies a device gives up for a new one, and what more room would cost.

A copy is worth what callers would lose without it: the requests per second that are expected of it, times the seconds
that each would wait for it to come back. What goes first is what is worth least per byte. (The knapsack's greedy rule;
with equal sizes and loads it is the order of the expected rates.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mesh.core.view import VersionKey

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


def _without_needless(chosen: list[Idle], spare: int) -> list[Idle]:
    """Return `chosen` without those that the larger ones after them made needless, the most valuable spared first."""
    kept = list(chosen)
    for each in sorted(chosen, key=lambda copy: (-copy.loss, -copy.bytes, copy.key)):
        if each.bytes <= spare:
            kept.remove(each)
            spare -= each.bytes
    return kept
