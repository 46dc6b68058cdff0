"""The requests in flight for one model over the last seconds, in memory that is bounded.

Pure: clocks come from the caller. What is made of the average is `mesh.core.placement.autoscale`'s.
"""

from __future__ import annotations

from array import array
from math import ceil, floor
from typing import Final

MAX_SPAN_S: Final = 3600.0
"""The longest window (Knative autoscaling: "window" is at most an hour): 29 KB; a minute is half a KB."""


class Window:
    """A sliding average weighted by time. Buckets of a second, as Knative's, hold requests in flight times seconds.

    Exact but for the bucket at its far end, of which a share is taken. Seconds without a sample count as none in
    flight, but for those before the first sample: a model in use for ten seconds is judged by these ten.
    """

    __slots__ = ("_buckets", "_first_s", "_newest", "_until_s")

    def __init__(self, span_s: float) -> None:
        self._buckets = array("d", bytes(8 * _size(span_s)))
        """Second `n` of the clock is at `n` modulo the length; only those up to `_newest` and not older than it all."""
        self._newest = 0
        self._first_s = float("inf")
        self._until_s = float("-inf")

    @property
    def span_s(self) -> float:
        """The longest time that can be averaged over."""
        return float(len(self._buckets) - 1)

    @property
    def since_s(self) -> float | None:
        """Since when what was in flight is known; None without a sample."""
        return self._first_s if self._until_s > float("-inf") else None

    @property
    def until_s(self) -> float:
        """When the last sample ended; -inf without one."""
        return self._until_s

    def add(self, since_s: float, until_s: float, in_flight: float) -> None:
        """Note that `in_flight` requests were at work on average between two times. O(seconds in between), <= span.

        What overlaps an earlier sample is left out. A clock that was set back by more than the window starts anew.
        """
        if self._until_s - until_s > self.span_s:
            self._clear()
        if until_s <= max(since_s, self._until_s):
            return
        since_s = max(since_s, self._until_s)
        self._advance(floor(until_s))
        self._first_s, self._until_s = min(self._first_s, since_s), until_s
        for second in range(floor(max(since_s, until_s - self.span_s)), self._newest + 1):
            overlap_s = min(until_s, second + 1) - max(since_s, second)
            self._buckets[second % len(self._buckets)] += max(0.0, overlap_s) * in_flight

    def average(self, span_s: float, now_s: float) -> float:
        """Return the average of the `span_s` before `now_s`, which is not before the last sample. O(span_s)."""
        begin_s = now_s - min(span_s, self.span_s)
        known_s = now_s - max(begin_s, self._first_s)
        oldest = floor(begin_s)
        if known_s <= 0 or oldest > self._newest:
            return 0.0
        oldest = max(oldest, self._newest + 1 - len(self._buckets))
        total = self._sum(oldest, self._newest)
        if oldest < begin_s:
            # Of the bucket at the far end only the share that is in the window.
            end_s = min(oldest + 1.0, now_s)
            share = min(1.0, (begin_s - oldest) / (end_s - oldest))
            total -= share * self._buckets[oldest % len(self._buckets)]
        return max(0.0, total / known_s)

    def widen(self, span_s: float) -> None:
        """Keep at least `span_s` from now on; what is forgotten already counts as not known. O(1) when it is so."""
        size = _size(span_s)
        if size <= len(self._buckets):
            return
        kept, oldest = self._buckets, self._newest + 1 - len(self._buckets)
        self._buckets = array("d", bytes(8 * size))
        if self._until_s == float("-inf"):
            return
        self._first_s = max(self._first_s, float(oldest))
        for second in range(oldest, self._newest + 1):
            self._buckets[second % size] = kept[second % len(kept)]

    def _advance(self, newest: int) -> None:
        if self._until_s == float("-inf"):
            self._newest = newest
        for second in range(max(self._newest + 1, newest + 1 - len(self._buckets)), newest + 1):
            self._buckets[second % len(self._buckets)] = 0.0
        self._newest = max(self._newest, newest)

    def _sum(self, oldest: int, newest: int) -> float:
        low, high = oldest % len(self._buckets), newest % len(self._buckets) + 1
        if low < high:
            return sum(self._buckets[low:high])
        return sum(self._buckets[low:]) + sum(self._buckets[:high])

    def _clear(self) -> None:
        self._buckets = array("d", bytes(8 * len(self._buckets)))
        self._first_s, self._until_s = float("inf"), float("-inf")

    def __repr__(self) -> str:
        """Show what it spans."""
        return f"<Window {self.span_s:g} s until={self._until_s:.1f}>"


def _size(span_s: float) -> int:
    return ceil(min(max(span_s, 1.0), MAX_SPAN_S)) + 1
