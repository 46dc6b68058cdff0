"""What is written in pieces is what prometheus_client writes at once, and nobody waits for it."""

from __future__ import annotations

import asyncio
import time

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from mesh.core.errors import Code
from mesh.telemetry.exposition import written
from mesh.telemetry.metrics import NodeMetrics, RouterMetrics


async def text_of(registry: CollectorRegistry) -> str:
    return b"".join([chunk async for chunk in written(registry)]).decode()


def counted(metrics: NodeMetrics, models: int) -> None:
    for number in range(models):
        metrics.load_done(f"m{number}", "1", ok=True, seconds=0.1)
        metrics.request_done(f"m{number}", "1", Code.OK, queue_s=0.001, compute_s=0.01, total_s=0.0123)
        metrics.batch_run(f"m{number}", "1", 2, 0.01)


async def test_it_is_the_text_that_prometheus_client_writes() -> None:
    metrics = NodeMetrics(CollectorRegistry())
    counted(metrics, 3)
    metrics.load_done('a "name"\\\n', "1", ok=False, seconds=1e-7)
    assert await text_of(metrics.registry) == generate_latest(metrics.registry).decode()


async def test_a_row_that_counted_since_is_written_anew() -> None:
    metrics = NodeMetrics(CollectorRegistry())
    counted(metrics, 2)
    await text_of(metrics.registry)
    metrics.request_done("m1", "1", Code.NOT_FOUND, queue_s=0.0, compute_s=0.0, total_s=0.5)
    metrics.batch_run("m0", "1", 8, 0.01)
    metrics.dropped("m0", "1")
    assert await text_of(metrics.registry) == generate_latest(metrics.registry).decode()


async def test_ordinary_families_of_a_process_are_written_too() -> None:
    text = await text_of(RouterMetrics().registry)
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {"process_resident_memory_bytes", "python_gc_collections", "mesh_router_models"} <= names


async def test_long_labels_and_special_values() -> None:
    registry = CollectorRegistry()
    gauge = GaugeMetricFamily("a", "b\\c\nd", labels=["x", "b"])
    for value in (float("nan"), float("inf"), -1.5, 1e300, 3.0):
        gauge.add_metric([str(value) + '"\\\n', "ü"], value)

    class One:
        def collect(self) -> list[GaugeMetricFamily]:
            return [gauge]

    registry.register(One())
    assert await text_of(registry) == generate_latest(registry).decode()


async def test_the_loop_does_other_things_meanwhile() -> None:
    """The CPU between two turns of the loop stays small, however many models are written. Not judged by the clock."""
    metrics = NodeMetrics(CollectorRegistry())
    counted(metrics, 1500)
    longest_s, done = 0.0, asyncio.Event()

    async def watch() -> None:
        nonlocal longest_s
        while not done.is_set():
            begun_s = time.thread_time()
            await asyncio.sleep(0)
            longest_s = max(longest_s, time.thread_time() - begun_s)

    watching = asyncio.create_task(watch())
    text = await text_of(metrics.registry)
    done.set()
    await watching
    assert text.count("\n") > 50_000
    assert longest_s < 0.05
