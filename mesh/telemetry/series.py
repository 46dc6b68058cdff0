"""Plain numbers per model and version that the request path adds to, and the families read from them at a scrape.

The families of `prometheus_client` take a lock per number; a request here touches a dozen. These are plain additions,
made from one thread (the event loop). Families are read row by row, as slowly as their reader likes, and what a row's
lines say is kept until it counts again (`mesh.telemetry.exposition`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, Final, Generic, Protocol, Self, TypeVar

from prometheus_client.core import Metric
from prometheus_client.samples import Sample

from mesh.core.errors import Code

UNKNOWN: Final = "unknown"
"""The label value of every model or version that the mesh does not hold, so that clients cannot make series."""

SECONDS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
"""Upper bounds of time buckets, seconds: from a small model on the CPU (100 us) to a slow load (a minute)."""

FEW_SECONDS: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5)
"""Those of `SECONDS` that are told of each model; of all models together, all are. With thousands of models, buckets
are most of what is scraped, sent and stored."""

BATCHES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
"""Upper bounds of batch size buckets, rows."""

FEW_BATCHES: Final = (1.0, 8.0, 64.0)

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

    def merge(self, other: Histogram) -> None:
        """Count what `other`, of the same bounds, has counted."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def buckets(self, told: tuple[float, ...] = ()) -> list[tuple[str, float]]:
        """Return (upper bound, cumulative count), the last one for +Inf, as Prometheus wants them.

        `told` are those of the bounds that are wanted; all by default.
        """
        seen = 0
        found = []
        for bound, count in zip((*self.bounds, None), self.counts, strict=True):
            seen += count
            if bound is None or not told or bound in told:
                found.append(("+Inf" if bound is None else repr(bound), float(seen)))
        return found

    def samples(self, name: str, labels: dict[str, str], told: tuple[float, ...] = ()) -> Iterator[Sample]:
        """Yield its samples under `name`."""
        buckets = self.buckets(told)
        for bound, count in buckets:
            yield Sample(f"{name}_bucket", {**labels, "le": bound}, count)
        yield Sample(f"{name}_count", labels, buckets[-1][1])
        yield Sample(f"{name}_sum", labels, self.total)


class Row(Protocol):
    """The numbers of one pair."""

    def stamp(self) -> Hashable:
        """Return what is another one after anything was counted."""

    def merge(self, other: Self) -> None:
        """Count what `other` has counted."""


S = TypeVar("S", bound=Row)


class SeriesTable(Generic[S]):
    """The numbers of every (model, version) that is known, and one set for all that are not.

    `make` makes the numbers of one pair. Bound: the pairs known, plus one per known model for its unknown versions,
    plus one. What a pair that is gone had counted stays in the total of all.
    """

    __slots__ = ("_make", "_rows", "_texts", "_versions", "gone")

    def __init__(self, make: Callable[[], S]) -> None:
        self._make = make
        self._rows: dict[Key, S] = {}
        self._texts: dict[Key, tuple[Hashable, dict[str, str]]] = {}
        self._versions: Mapping[Any, Mapping[Any, object]] = {}
        self.gone = make()
        """The numbers of all pairs that are not known any more."""

    def keep(self, versions: Mapping[Any, Mapping[Any, object]]) -> None:
        """Say which versions of which models are known now. O(1): the mapping is kept, not copied."""
        self._versions = versions

    def find(self, model: str, version: str) -> S:
        """Return the numbers of the pair, or those of what is unknown. O(1)."""
        row = self._rows.get((model, version))
        return self._add(model, version) if row is None else row

    def forget(self, model: str, version: str) -> None:
        """Let the numbers of a pair go into those of what is gone. O(1). One that comes back begins at 0."""
        self._texts.pop((model, version), None)
        row = self._rows.pop((model, version), None)
        if row is not None:
            self.gone.merge(row)

    def _add(self, model: str, version: str) -> S:
        held = self._versions.get(model)
        key = (UNKNOWN, UNKNOWN) if held is None else (model, version if version in held else UNKNOWN)
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = self._make()
        return row

    def rows(self) -> Iterator[tuple[Key, S]]:
        """Yield the pairs that are known and those of unknown names; forget versions that are gone.

        Read it as slowly as you like: what is added meanwhile is not in it.
        """
        for key, row in list(self._rows.items()):
            model, version = key
            held = self._versions.get(model)
            if model == UNKNOWN or (held is not None and (version == UNKNOWN or version in held)):
                yield key, row
            else:
                self.forget(model, version)

    def total(self) -> Iterator[S]:
        """Yield the numbers of all there ever was, again and again, the last of them whole. They never go back.

        A row more is in each, so that its reader can pause in between.
        """
        total = self._make()
        total.merge(self.gone)
        for row in list(self._rows.values()):
            yield total
            total.merge(row)
        yield total

    def text(self, family: str, key: Key, row: S, make: Callable[[], str]) -> str:
        """Return what `make` said of a row of `family` when it last had counted something."""
        stamp, known = row.stamp(), self._texts.get(key)
        if known is None or known[0] != stamp:
            known = stamp, {}
            if key in self._rows:
                self._texts[key] = known
        text = known[1].get(family)
        if text is None:
            text = known[1][family] = make()
        return text


class Family(Metric, Generic[S]):
    """A family with samples for each row of a table, made when they are read."""

    def __init__(
        self, table: SeriesTable[S], name: str, text: str, kind: str, read: Callable[[Key, S], Iterable[Sample]]
    ) -> None:
        self._table = table
        self._read = read
        super().__init__(name, text, kind)

    @property
    def samples(self) -> list[Sample]:
        """All of them, as `prometheus_client` reads them."""
        return [sample for key, row in self._table.rows() for sample in self._read(key, row)]

    @samples.setter
    def samples(self, _none: list[Sample]) -> None:
        """Take what `Metric` begins with."""

    def texts(self, lines: Callable[[Iterable[Sample]], str]) -> Iterator[str]:
        """Yield the text of each row, which `lines` makes where it is not known yet."""
        for key, row in self._table.rows():
            yield self._table.text(self.name, key, row, lambda key=key, row=row: lines(self._read(key, row)))  # type: ignore[misc]  # mypy infers no type for defaults that bind a loop's variables


class Totals(Metric, Generic[S]):
    """A family of the sum of all rows of a table and of what is gone."""

    def __init__(
        self, table: SeriesTable[S], name: str, text: str, kind: str, read: Callable[[S], Iterable[Sample]]
    ) -> None:
        self._table = table
        self._read = read
        super().__init__(name, text, kind)

    @property
    def samples(self) -> list[Sample]:
        """All of them, as `prometheus_client` reads them."""
        *_, total = self._table.total()
        return list(self._read(total))

    @samples.setter
    def samples(self, _none: list[Sample]) -> None:
        """Take what `Metric` begins with."""

    def texts(self, lines: Callable[[Iterable[Sample]], str]) -> Iterator[str]:
        """Yield nothing for each row, and then the text."""
        totals = self._table.total()
        total = next(totals)
        for _ in totals:  # The same numbers, with one row more.
            yield ""
        yield lines(self._read(total))


class Families(Generic[S]):
    """Makes the families of a table."""

    def __init__(self, table: SeriesTable[S]) -> None:
        self._table = table

    def histogram(
        self, name: str, text: str, read: Callable[[S], Histogram], told: tuple[float, ...] = FEW_SECONDS
    ) -> Metric:
        """Return the histogram `name` with the values `read` finds in each row, in the buckets `told`."""

        def samples(key: Key, row: S) -> Iterable[Sample]:
            found = read(row)
            return found.samples(name, _labels(key), told) if any(found.counts) else ()

        return Family(self._table, name, text, "histogram", samples)

    def codes(self, name: str, text: str, read: Callable[[S], list[int]]) -> Metric:
        """Return the counter `name` per gRPC code with the counts `read` finds in each row."""
        return Family(self._table, name, text, "counter", lambda key, row: code_samples(name, read(row), _labels(key)))

    def counter(self, name: str, text: str, read: Callable[[S], float]) -> Metric:
        """Return the counter `name` with the number `read` finds in each row."""
        return Family(
            self._table, name, text, "counter", lambda key, row: (Sample(f"{name}_total", _labels(key), read(row)),)
        )

    def all_codes(self, name: str, text: str, read: Callable[[S], list[int]]) -> Metric:
        """Return `codes` of all rows together, and of those that are gone."""
        return Totals(self._table, name, text, "counter", lambda row: code_samples(name, read(row), {}))

    def all_seconds(self, name: str, text: str, read: Callable[[S], Histogram]) -> Metric:
        """Return the histogram of all rows together, in all buckets."""
        return Totals(self._table, name, text, "histogram", lambda row: read(row).samples(name, {}))

    def all_counter(self, name: str, text: str, read: Callable[[S], float]) -> Metric:
        """Return `counter` of all rows together."""
        return Totals(self._table, name, text, "counter", lambda row: (Sample(f"{name}_total", {}, read(row)),))


def code_samples(name: str, counts: list[int], labels: dict[str, str]) -> Iterator[Sample]:
    """Yield the samples of the counter `name` for the codes that were answered."""
    for code, count in zip(CODE_NAMES, counts, strict=True):
        if count:
            yield Sample(f"{name}_total", {**labels, "code": code}, count)


def _labels(key: Key) -> dict[str, str]:
    return {"model": key[0], "version": key[1]}
