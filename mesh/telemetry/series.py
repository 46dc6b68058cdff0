"""Plain numbers per model and version that the request path adds to, and the histograms read from them at a scrape.

The families of `prometheus_client` take a lock per number; a request here touches a dozen. These are plain additions,
made from one thread (the event loop), read from any.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

from mesh.core.errors import Code

UNKNOWN: Final = "unknown"
"""The label value of every model or version that the mesh does not hold, so that clients cannot make series."""

SECONDS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
"""Upper bounds of time buckets, seconds: from a small model on the CPU (100 us) to a slow load (a minute)."""

BATCHES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
"""Upper bounds of batch size buckets, rows."""

CODE_NAMES: Final = tuple(code.name for code in Code)
LABELS: Final = ("model", "version")

Key = tuple[str, str]


class Histogram:
    """Counts per bucket (not cumulative) and the sum of all values."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, count: int = 1) -> None:
        """Count `value`, so many times. O(log buckets)."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.total += value * count

    def count(self) -> int:
        """Return how many values were added."""
        return sum(self.counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Return (upper bound, cumulative count), the last one for +Inf, as Prometheus wants them."""
        names = [repr(bound) for bound in self.bounds] + ["+Inf"]
        seen = 0
        found = []
        for name, count in zip(names, self.counts, strict=True):
            seen += count
            found.append((name, float(seen)))
        return found


S = TypeVar("S")


class SeriesTable(Generic[S]):
    """The numbers of every (model, version) that is known, and one set for all that are not.

    `make` makes the numbers of one pair. Bound: the pairs known, plus one per known model for its unknown versions,
    plus one.
    """

    __slots__ = ("_make", "_rows", "_versions")

    def __init__(self, make: Callable[[], S]) -> None:
        self._make = make
        self._rows: dict[Key, S] = {}
        self._versions: Mapping[Any, Mapping[Any, object]] = {}

    def keep(self, versions: Mapping[Any, Mapping[Any, object]]) -> None:
        """Say which versions of which models are known now. O(1): the mapping is kept, not copied."""
        self._versions = versions

    def find(self, model: str, version: str) -> S:
        """Return the numbers of the pair, or those of what is unknown. O(1)."""
        row = self._rows.get((model, version))
        return self._add(model, version) if row is None else row

    def _add(self, model: str, version: str) -> S:
        held = self._versions.get(model)
        key = (UNKNOWN, UNKNOWN) if held is None else (model, version if version in held else UNKNOWN)
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = self._make()
        return row

    def rows(self) -> Iterator[tuple[Key, S]]:
        """Yield the pairs that are known and those of unknown names; forget versions that are gone."""
        for key, row in list(self._rows.items()):
            model, version = key
            held = self._versions.get(model)
            if model == UNKNOWN or (held is not None and (version == UNKNOWN or version in held)):
                yield key, row
            else:
                self._rows.pop(key, None)


class Family(Generic[S]):
    """A histogram or counter over all rows of a table, made at a scrape."""

    def __init__(self, table: SeriesTable[S]) -> None:
        self._table = table

    def histogram(self, name: str, text: str, read: Callable[[S], Histogram]) -> HistogramMetricFamily:
        """Return the histogram `name` with the values `read` finds in each row."""
        family = HistogramMetricFamily(name, text, labels=LABELS)
        for key, row in self._table.rows():
            found = read(row)
            buckets = found.buckets()
            if buckets[-1][1]:
                family.add_metric(key, buckets=buckets, sum_value=found.total)
        return family

    def codes(self, name: str, text: str, read: Callable[[S], list[int]]) -> CounterMetricFamily:
        """Return the counter `name` per gRPC code with the counts `read` finds in each row."""
        family = CounterMetricFamily(name, text, labels=(*LABELS, "code"))
        for key, row in self._table.rows():
            for code, count in zip(CODE_NAMES, list(read(row)), strict=True):
                if count:
                    family.add_metric((*key, code), count)
        return family

    def counter(self, name: str, text: str, read: Callable[[S], float]) -> CounterMetricFamily:
        """Return the counter `name` with the number `read` finds in each row."""
        family = CounterMetricFamily(name, text, labels=LABELS)
        for key, row in self._table.rows():
            family.add_metric(key, read(row))
        return family
