"""Triton's metric names over the node's own numbers, for dashboards that know them.

Names and meanings are those of Triton's metrics documentation: counters per model and version, times in microseconds,
times of successful requests only. Nothing is counted twice: the values are read from `NodeRow` at a scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Final

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from mesh.core.errors import Code
from mesh.telemetry.series import BATCHES, LABELS, Family, Histogram, Key, SeriesTable


class NodeRow:
    """What a node counts per model and version."""

    __slots__ = ("batches", "codes", "compute", "load_s", "loads", "ok_s", "queue", "run_s", "seconds")

    def __init__(self) -> None:
        self.codes = [0] * len(Code)
        self.seconds = Histogram()
        self.queue = Histogram()
        self.compute = Histogram()
        self.batches = Histogram(BATCHES)
        self.ok_s = 0.0
        self.run_s = 0.0
        self.loads = [0, 0]
        self.load_s = 0.0

    def stamp(self) -> Hashable:
        """Return what is another one after anything was counted: each time is counted with a request, run or load."""
        return sum(self.codes), sum(self.batches.counts), sum(self.loads)

    def merge(self, other: NodeRow) -> None:
        """Count what `other` has counted."""
        self.codes = [mine + its for mine, its in zip(self.codes, other.codes, strict=True)]
        self.loads = [mine + its for mine, its in zip(self.loads, other.loads, strict=True)]
        self.seconds.merge(other.seconds)
        self.queue.merge(other.queue)
        self.compute.merge(other.compute)
        self.batches.merge(other.batches)
        self.ok_s += other.ok_s
        self.run_s += other.run_s
        self.load_s += other.load_s


FAMILIES: Final[tuple[tuple[str, str, Callable[[NodeRow], float]], ...]] = (
    ("nv_inference_request_success", "Number of successful inference requests", lambda row: row.codes[Code.OK]),
    (
        "nv_inference_request_failure",
        "Number of failed inference requests",
        lambda row: sum(row.codes) - row.codes[Code.OK],
    ),
    ("nv_inference_count", "Number of inferences performed, one per row of a batch", lambda row: row.batches.total),
    ("nv_inference_exec_count", "Number of model executions performed", lambda row: row.batches.count()),
    (
        "nv_inference_request_duration_us",
        "Cumulative time of successful requests in microseconds",
        lambda row: _us(row.ok_s),
    ),
    (
        "nv_inference_queue_duration_us",
        "Cumulative time successful requests waited in microseconds",
        lambda row: _us(row.queue.total),
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Cumulative time the model ran for successful requests in microseconds",
        lambda row: _us(row.compute.total),
    ),
)


class TritonCollector(Collector):
    """Reads `table` under Triton's names."""

    def __init__(self, table: SeriesTable[NodeRow]) -> None:
        self._table = table

    def collect(self) -> Iterator[Metric]:
        """Yield Triton's families.

        They are untyped: `prometheus_client` writes counters with a `_total` at the end, which Triton's names lack.
        """
        for name, text, read in FAMILIES:
            yield Family(self._table, name, text, "unknown", _samples(name, read))


def _samples(name: str, read: Callable[[NodeRow], float]) -> Callable[[Key, NodeRow], tuple[Sample]]:
    return lambda key, row: (Sample(name, dict(zip(LABELS, key, strict=True)), read(row)),)


def _us(seconds: float) -> int:
    return round(seconds * 1_000_000)
