"""What routers and nodes count, under Prometheus names with base units (`mesh_*`), one registry per process object.

The request path adds to plain numbers (`mesh.telemetry.series`); families are made from them at a scrape. Methods are
called from the event loop's thread, and so are scrapes (`mesh.telemetry.exposition`). Triton's names are in
`mesh.telemetry.triton`.
"""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

import prometheus_client
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from mesh.api.clock import steady_s
from mesh.core.errors import Code
from mesh.core.pipeline.spec import Pipeline
from mesh.core.traffic.clients import Clients
from mesh.core.traffic.held import HeldBytes
from mesh.core.types import Copy, Node
from mesh.core.view import ClusterView
from mesh.telemetry.gauges import node_gauges, sequences, sessions
from mesh.telemetry.series import FEW_BATCHES, UNKNOWN, Families, Family, Histogram, Key, SeriesTable, Totals
from mesh.telemetry.statistics import Statistics
from mesh.telemetry.triton import NodeRow, TritonCollector

MAX_LABEL_VALUES: Final = 2000
"""Children of one family whose labels are not bound to known models (node ids come and go); above it: "other"."""


OTHER: Final = "other"


def new_registry() -> CollectorRegistry:
    """Return a registry with the numbers of this process (memory, CPU, garbage collection) in it."""
    registry = CollectorRegistry()
    prometheus_client.ProcessCollector(registry=registry)
    prometheus_client.PlatformCollector(registry=registry)
    prometheus_client.GCCollector(registry=registry)
    return registry


class RouterRow:
    """What a router counts per model and version."""

    __slots__ = ("attempts", "codes", "seconds")

    def __init__(self) -> None:
        self.codes = [0] * len(Code)
        self.attempts = 0
        self.seconds = Histogram()

    def stamp(self) -> Hashable:
        """Return what is another one after anything was counted."""
        return sum(self.codes), self.attempts

    def merge(self, other: RouterRow) -> None:
        """Count what `other` has counted."""
        self.codes = [mine + its for mine, its in zip(self.codes, other.codes, strict=True)]
        self.attempts += other.attempts
        self.seconds.merge(other.seconds)


class RouterMetrics:
    """The numbers of one router; register nothing else under its names."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = new_registry() if registry is None else registry
        self._table: SeriesTable[RouterRow] = SeriesTable(RouterRow)
        self._view: Callable[[], ClusterView] = ClusterView
        self._streams_open = 0
        self._messages = {"request": 0, "response": 0}
        self._failed: Counter[tuple[str, ...]] = Counter()
        self._sessions: Callable[[], Sequence[Any]] = list
        self._silent: Callable[[], int] = int
        self._cold: Counter[tuple[str, ...]] = Counter()
        self._cold_seconds: dict[str, Histogram] = {}
        self._pipelines: Mapping[str, Pipeline] = {}
        self._revisions: dict[str, dict[str, Pipeline]] = {}
        self.registry.register(_Scrape(self._collect))

    def view_published(self, view: ClusterView) -> None:
        """Say what the mesh holds now: names outside it are counted as "unknown". O(1) while pipelines stay."""
        self._view = lambda: view
        if view.pipelines is not self._pipelines:
            self._pipelines = view.pipelines
            self._revisions = {name: {str(each.revision): each} for name, each in view.pipelines.items()}
        known: Any = ChainMap(cast("Any", self._revisions), cast("Any", view.models))
        self._table.keep(known)

    def request_done(self, model: str, version: str, code: Code, total_s: float, attempts: int) -> None:
        """Count one call, or one message of a stream, that was answered. About 1 us.

        `model` and `version` are what the request was resolved to, or as the client wrote them when it was not.
        `total_s` is seconds from the first byte to the answer; `attempts` is how many copies were asked.
        """
        row = self._table.find(model, version)
        row.codes[code] += 1
        row.attempts += attempts
        row.seconds.add(total_s)

    def statistics(self, model: str, version: str) -> Any:
        """Return the protocol's ModelStatistics of what was asked for by this name, as far as a router counts."""
        row = self._table.find(model, version)
        found = Statistics()
        requests, good = sum(row.codes), row.codes[Code.OK]
        found.inferences = found.executions = good
        # The times of failed requests are not kept apart: each is taken for a mean one.
        mean_ns = row.seconds.total / requests * 1e9 if requests else 0.0
        found.success.count, found.success.ns = good, int(mean_ns * good)
        found.fail.count, found.fail.ns = requests - good, int(mean_ns * (requests - good))
        return found.message(model, version, 0)

    def attempt_failed(self, node: str, reason: str) -> None:
        """Count one attempt at a copy on `node` that failed; `reason` is one of a few fixed words."""
        _count(self._failed, (node, reason))

    def observe(self, sessions: Callable[[], Sequence[Any]], silent: Callable[[], int]) -> None:
        """Show `sessions` (mesh.v1 SessionGroup messages), and how many nodes do not answer, at each scrape.

        They are called from the scraping thread.
        """
        self._sessions, self._silent = sessions, silent

    def cold_wait(self, model: str, seconds: float, outcome: str) -> None:
        """Count one call that waited for a cold model; `outcome` is one of a few fixed words, such as "served"."""
        _count(self._cold, (model, outcome))
        self._cold_seconds.setdefault(outcome, Histogram()).add(seconds)

    def stream_opened(self) -> None:
        """Count a ModelStreamInfer that began."""
        self._streams_open += 1

    def stream_closed(self) -> None:
        """Count a ModelStreamInfer that ended, however it ended."""
        self._streams_open -= 1

    def stream_messages(self, direction: str, count: int) -> None:
        """Count `count` messages at once."""
        self._messages[direction] += count

    def stream_message(self, direction: str) -> None:
        """Count one message of a stream; `direction` is "request" or "response"."""
        self._messages[direction] += 1

    def _collect(self) -> Iterator[Metric]:
        view, family = self._view(), Families(self._table)
        yield family.codes("mesh_router_requests", "Calls answered, by gRPC code.", lambda row: row.codes)
        yield family.histogram(
            "mesh_router_request_seconds", "Time from a call's first byte to its answer.", lambda row: row.seconds
        )
        yield family.counter("mesh_router_attempts", "Copies asked for calls.", lambda row: row.attempts)
        yield family.all_codes("mesh_router_all_requests", "Calls answered, whatever model.", lambda row: row.codes)
        yield family.all_seconds("mesh_router_all_request_seconds", "Time they took.", lambda row: row.seconds)
        yield family.all_counter("mesh_router_all_attempts", "Copies asked for them.", lambda row: row.attempts)
        yield _labelled(
            "mesh_router_attempts_failed", "Attempts at a copy that failed.", ("node", "reason"), self._failed
        )
        self._tidy(view)
        yield _labelled("mesh_router_cold_requests", "Calls to a cold model.", ("model", "outcome"), self._cold)
        waits = HistogramMetricFamily("mesh_router_cold_wait_seconds", "Time such calls waited.", labels=["outcome"])
        for outcome, found in list(self._cold_seconds.items()):
            waits.add_metric([outcome], buckets=found.buckets(), sum_value=found.total)
        yield waits
        yield GaugeMetricFamily("mesh_router_streams_open", "Two-way streams open now.", self._streams_open)
        messages = CounterMetricFamily("mesh_router_stream_messages", "Messages of streams.", labels=["direction"])
        for direction, count in self._messages.items():
            messages.add_metric([direction], count)
        yield messages
        yield from sessions(self._sessions())
        yield GaugeMetricFamily("mesh_router_view_revision", "Registry revision of the view.", view.revision)
        yield GaugeMetricFamily("mesh_router_nodes", "Nodes in the view.", len(view.nodes))
        yield GaugeMetricFamily("mesh_router_silent_nodes", "Nodes that do not answer this router now.", self._silent())
        yield GaugeMetricFamily("mesh_router_models", "Model names in the view.", len(view.models))
        quarantined = len(view.quarantined(steady_s()))
        yield GaugeMetricFamily("mesh_router_quarantined_models", "Versions whose callers are refused.", quarantined)

    def _tidy(self, view: ClusterView) -> None:
        """Count the cold calls of models that are gone under "other"."""
        for model, outcome in [key for key in self._cold if key[0] not in view.models and key[0] != OTHER]:
            self._cold[OTHER, outcome] += self._cold.pop((model, outcome))


class NodeMetrics:
    """The numbers of one node, under the mesh's names and under Triton's."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = new_registry() if registry is None else registry
        self._loaded: dict[str, dict[str, None]] = {}
        self._table: SeriesTable[NodeRow] = SeriesTable(NodeRow)
        self._table.keep(self._loaded)
        self._node: Callable[[], Node | None] = lambda: None
        self._copies: Callable[[], Sequence[Copy]] = tuple
        self._served: Callable[[], Sequence[Any]] = list
        self._kept_bytes: Callable[[], int] = int
        self._outstanding: Callable[[], int] = lambda: 0
        self._deaths: Counter[tuple[str, ...]] = Counter()
        self.registry.register(_Scrape(self._collect))
        self.registry.register(TritonCollector(self._table))

    def observe(
        self, node: Callable[[], Node | None], copies: Callable[[], Sequence[Copy]], outstanding: Callable[[], int]
    ) -> None:
        """Say where the gauges come from: the node's own record, its copies and its requests in flight.

        All are asked at each scrape. They are called from the scraping thread and must only read.
        """
        self._node, self._copies, self._outstanding = node, copies, outstanding

    def observe_sequences(self, served: Callable[[], Sequence[Any]], kept_bytes: Callable[[], int]) -> None:
        """Show the live sequences of `served`, the copies that answer, and what is kept of other nodes' sequences."""
        self._served, self._kept_bytes = served, kept_bytes

    def request_done(
        self, model: str, version: str, code: Code, *, queue_s: float, compute_s: float, total_s: float
    ) -> None:
        """Count one request that was answered; times in seconds. About 1 us.

        Queue and compute times are counted for successful requests only, as Triton does. Models that were never
        loaded here (see `load_done`) are counted as "unknown".
        """
        row = self._table.find(model, version)
        row.codes[code] += 1
        row.seconds.add(total_s)
        if code == 0:
            row.ok_s += total_s
            row.queue.add(queue_s)
            row.compute.add(compute_s)

    def steps_done(self, model: str, version: str, count: int, *, compute_s: float) -> None:
        """Count requests of a step that ran together without a queue, each of which took `compute_s`."""
        row = self._table.find(model, version)
        row.codes[Code.OK] += count
        row.seconds.add(compute_s, count)
        row.ok_s += compute_s * count
        row.queue.add(0.0, count)
        row.compute.add(compute_s, count)

    def batch_run(self, model: str, version: str, batch_size: int, compute_s: float) -> None:
        """Count one execution of a model over `batch_size` rows."""
        row = self._table.find(model, version)
        row.batches.add(batch_size)
        row.run_s += compute_s

    def load_done(self, model: str, version: str, ok: bool, seconds: float) -> None:  # noqa: FBT001 - reads as a fact
        """Count one load that ended; from now on `model`, `version` has series of its own."""
        self._loaded.setdefault(model, {})[version] = None
        row = self._table.find(model, version)
        row.loads[0 if ok else 1] += 1
        row.load_s += seconds

    def dropped(self, model: str, version: str) -> None:
        """Note that a copy is held no more: its series go, and what they counted stays in the node's totals."""
        versions = self._loaded.get(model, {})
        versions.pop(version, None)
        if not versions:
            self._loaded.pop(model, None)
            self._table.forget(model, UNKNOWN)
        self._table.forget(model, version)

    def model_died(self, model: str, version: str, process: str) -> None:
        """Count a process that a version ended; `process` is one of a few fixed words."""
        _count(self._deaths, (model, version, process))

    def _collect(self) -> Iterator[Metric]:
        family = Families(self._table)
        yield family.codes("mesh_node_requests", "Requests answered, by gRPC code.", lambda row: row.codes)
        yield family.histogram(
            "mesh_node_request_seconds", "Time from a request's last byte to its answer.", lambda row: row.seconds
        )
        yield family.histogram(
            "mesh_node_queue_seconds", "Time successful requests waited for a batch.", lambda row: row.queue
        )
        yield family.histogram(
            "mesh_node_compute_seconds", "Time the runtime ran for successful requests.", lambda row: row.compute
        )
        yield family.histogram("mesh_node_batch_rows", "Rows per execution.", lambda row: row.batches, FEW_BATCHES)
        yield family.counter("mesh_node_run_seconds", "Time the runtime ran, each run once.", lambda row: row.run_s)
        yield self._loads()
        told = "Processes that models ended, a node's own when it is here again."
        yield _labelled("mesh_node_model_deaths", told, ("model", "version", "process"), self._deaths)
        yield family.counter("mesh_node_load_seconds", "Time spent on loads.", lambda row: row.load_s)
        yield from self._totals(family)
        yield GaugeMetricFamily("mesh_node_outstanding", "Requests in flight.", self._outstanding())
        yield from sequences(self._served())
        yield GaugeMetricFamily("mesh_node_kept_bytes", "Snapshots of other nodes' sequences.", self._kept_bytes())
        node = self._node()
        if node is not None:
            yield from node_gauges(node, self._copies())

    def _loads(self) -> Metric:
        def samples(key: Key, row: NodeRow) -> Iterable[Sample]:
            return _load_samples("mesh_node_loads_total", row, {"model": key[0], "version": key[1]})

        return Family(self._table, "mesh_node_loads", "Loads that ended.", "counter", samples)

    def _totals(self, family: Families[NodeRow]) -> Iterator[Metric]:
        """Yield the node's totals: what every model that was ever here counted."""
        yield family.all_codes("mesh_node_all_requests", "Requests answered, whatever model.", lambda row: row.codes)
        yield family.all_seconds("mesh_node_all_request_seconds", "Time they took.", lambda row: row.seconds)
        yield family.all_counter("mesh_node_all_runs", "Executions.", lambda row: row.batches.count())
        yield family.all_counter("mesh_node_all_rows", "Rows of them.", lambda row: row.batches.total)
        yield family.all_counter("mesh_node_all_run_seconds", "Time they took.", lambda row: row.run_s)
        yield Totals(
            self._table,
            "mesh_node_all_loads",
            "Loads that ended, whatever model.",
            "counter",
            lambda row: _load_samples("mesh_node_all_loads_total", row, {}),
        )
        yield family.all_counter("mesh_node_all_load_seconds", "Time spent on them.", lambda row: row.load_s)


def _load_samples(name: str, row: NodeRow, labels: dict[str, str]) -> Iterator[Sample]:
    for outcome, count in zip(("ok", "failed"), row.loads, strict=True):
        yield Sample(name, {**labels, "outcome": outcome}, count)


class _Scrape(Collector):
    """Lets a registry call a function at each scrape."""

    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self._make = collect

    def describe(self) -> list[Metric]:
        return list(self._make())

    def collect(self) -> Iterator[Metric]:
        return self._make()


def _count(counts: Counter[tuple[str, ...]], labels: tuple[str, ...]) -> None:
    if labels not in counts and len(counts) >= MAX_LABEL_VALUES:
        labels = (OTHER, *labels[1:])
    counts[labels] += 1


def _labelled(name: str, text: str, labels: tuple[str, ...], counts: Counter[tuple[str, ...]]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in list(counts.items()):
        family.add_metric(values, count)
    return family


def observe_callers(registry: CollectorRegistry, prefix: str, held: HeldBytes, clients: Clients) -> None:
    """Show, at each scrape, what callers make the process hold, and their connections.

    `prefix` is "mesh_node" or "mesh_router".
    """

    def collect() -> Iterator[Metric]:
        yield GaugeMetricFamily(f"{prefix}_held_bytes", "Of requests and answers, from 64 KiB each.", held.held)
        yield GaugeMetricFamily(f"{prefix}_held_limit_bytes", "What may be held of them.", held.limit)
        yield CounterMetricFamily(f"{prefix}_held_refused", "What was not taken because of that.", held.refused)
        yield GaugeMetricFamily(f"{prefix}_connections", "Of gRPC clients, open now.", clients.open)
        yield CounterMetricFamily(f"{prefix}_connections_opened", "Of gRPC clients.", clients.opened)
        goaways = CounterMetricFamily(f"{prefix}_goaways", "Connections that were ended, by code.", labels=["code"])
        for code, count in list(clients.ended.items()):
            goaways.add_metric([code], count)
        yield goaways

    registry.register(_Scrape(collect))
