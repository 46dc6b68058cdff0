"""Metrics: what a scrape says after what was counted."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mesh.core.errors import Code
from mesh.core.types import Copy, CopyState, Device, DeviceKind, ModelName, ModelVersion, Node, NodeId, Version
from mesh.core.view import ClusterView
from mesh.telemetry.metrics import MAX_LABEL_VALUES, NodeMetrics, RouterMetrics
from mesh.telemetry.series import SECONDS, Histogram

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(registry: CollectorRegistry) -> Samples:
    """Return every sample of a real scrape, parsed by Prometheus' own parser."""
    text = generate_latest(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, metric: str, /, **labels: str) -> float | None:
    return samples.get((metric, tuple(sorted(labels.items()))))


def view_of(*pairs: tuple[str, str]) -> ClusterView:
    models: dict[ModelName, dict[Version, ModelVersion]] = {}
    for name, version in pairs:
        models.setdefault(ModelName(name), {})[Version(version)] = ModelVersion(
            ModelName(name), Version(version), "onnx", "file:///m", "d", 1
        )
    return ClusterView(revision=7, models=models, nodes={NodeId("a"): Node(NodeId("a"), "127.0.0.1:1", "i")})


def test_a_router_counts_calls_by_model_version_and_code() -> None:
    metrics = RouterMetrics()
    metrics.view_published(view_of(("iris", "1"), ("iris", "2")))
    metrics.request_done("iris", "1", Code.OK, 0.002, 1)
    metrics.request_done("iris", "1", Code.OK, 0.2, 3)
    metrics.request_done("iris", "1", Code.UNAVAILABLE, 1.0, 2)
    metrics.request_done("iris", "2", Code.OK, 0.002, 1)
    seen = scrape(metrics.registry)
    assert value(seen, "mesh_router_requests_total", model="iris", version="1", code="OK") == 2
    assert value(seen, "mesh_router_requests_total", model="iris", version="1", code="UNAVAILABLE") == 1
    assert value(seen, "mesh_router_requests_total", model="iris", version="2", code="OK") == 1
    assert value(seen, "mesh_router_attempts_total", model="iris", version="1") == 6
    assert value(seen, "mesh_router_request_seconds_count", model="iris", version="1") == 3
    assert value(seen, "mesh_router_request_seconds_sum", model="iris", version="1") == pytest.approx(1.202)
    assert value(seen, "mesh_router_request_seconds_bucket", model="iris", version="1", le="0.005") == 1
    assert value(seen, "mesh_router_request_seconds_bucket", model="iris", version="1", le="+Inf") == 3


def test_names_that_clients_make_up_share_one_series() -> None:
    metrics = RouterMetrics()
    metrics.view_published(view_of(("iris", "1")))
    for number in range(50):
        metrics.request_done(f"made-up-{number}", str(number), Code.NOT_FOUND, 0.001, 0)
        metrics.request_done("iris", f"v{number}", Code.NOT_FOUND, 0.001, 0)
    seen = scrape(metrics.registry)
    requests = {labels: count for (name, labels), count in seen.items() if name == "mesh_router_requests_total"}
    assert requests == {
        (("code", "NOT_FOUND"), ("model", "unknown"), ("version", "unknown")): 50,
        (("code", "NOT_FOUND"), ("model", "iris"), ("version", "unknown")): 50,
    }


def test_series_of_a_model_that_left_the_mesh_go_away() -> None:
    metrics = RouterMetrics()
    metrics.view_published(view_of(("iris", "1"), ("iris", "2"), ("digits", "1")))
    for model, version in (("iris", "1"), ("iris", "2"), ("digits", "1")):
        metrics.request_done(model, version, Code.OK, 0.001, 1)
    metrics.view_published(view_of(("iris", "2")))
    seen = scrape(metrics.registry)
    left = {
        dict(labels)["model"] + dict(labels)["version"]
        for (name, labels) in seen
        if name == "mesh_router_requests_total"
    }
    assert left == {"iris2"}
    assert value(seen, "mesh_router_all_requests_total", code="OK") == 3


def test_cold_calls_of_a_model_that_left_the_mesh_are_counted_together() -> None:
    metrics = RouterMetrics()
    metrics.view_published(view_of(("iris", "1"), ("digits", "1")))
    metrics.cold_wait("iris", 0.3, "served")
    metrics.cold_wait("digits", 0.3, "served")
    metrics.view_published(view_of(("iris", "1")))
    seen = scrape(metrics.registry)
    cold = {labels: count for (name, labels), count in seen.items() if name == "mesh_router_cold_requests_total"}
    assert cold == {(("model", "iris"), ("outcome", "served")): 1, (("model", "other"), ("outcome", "served")): 1}


def test_series_of_a_copy_that_is_held_no_more_go_and_the_node_s_totals_stay() -> None:
    """1,500 models that pass through leave no line behind; one that comes back begins at 0."""
    metrics = node_metrics()
    before = scrape(metrics.registry)
    for number in range(1500):
        metrics.load_done(f"m{number}", "1", ok=True, seconds=0.1)
        metrics.request_done(f"m{number}", "1", Code.OK, queue_s=0.0, compute_s=0.01, total_s=0.01)
        metrics.batch_run(f"m{number}", "1", 2, 0.01)
        metrics.request_done(f"m{number}", "7", Code.NOT_FOUND, queue_s=0.0, compute_s=0.0, total_s=0.01)
        metrics.dropped(f"m{number}", "1")
    seen = scrape(metrics.registry)
    assert {name for name, _ in seen} == {name for name, _ in before}
    assert len(seen) == len(before) + 1  # NOT_FOUND is a code that was not answered before.
    assert value(seen, "mesh_node_all_requests_total", code="OK") == 1502
    assert value(seen, "mesh_node_all_requests_total", code="NOT_FOUND") == 1500
    assert value(seen, "mesh_node_all_loads_total", outcome="ok") == 1501
    assert value(seen, "mesh_node_all_rows_total") == 3010
    assert value(seen, "mesh_node_all_request_seconds_bucket", le="0.0025") == 0
    metrics.load_done("m7", "1", ok=True, seconds=0.1)
    assert value(scrape(metrics.registry), "mesh_node_requests_total", model="m7", version="1", code="OK") is None
    # Who is late counts for nobody, and in the total.
    metrics.request_done("m8", "1", Code.OK, queue_s=0.0, compute_s=0.01, total_s=0.01)
    assert value(scrape(metrics.registry), "mesh_node_all_requests_total", code="OK") == 1503


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["load", "drop", "ask", "run"])), max_size=40))
def test_totals_never_go_back_and_are_the_sum_of_what_was_counted(steps: list[tuple[str, str]]) -> None:
    metrics, asked, before = NodeMetrics(CollectorRegistry()), 0, 0.0
    for model, what in steps:
        if what == "load":
            metrics.load_done(model, "1", ok=True, seconds=0.1)
        elif what == "drop":
            metrics.dropped(model, "1")
        elif what == "ask":
            metrics.request_done(model, "1", Code.OK, queue_s=0.0, compute_s=0.01, total_s=0.01)
            asked += 1
        else:
            metrics.batch_run(model, "1", 1, 0.1)
        now = value(scrape(metrics.registry), "mesh_node_all_requests_total", code="OK") or 0.0
        assert before <= now == asked
        before = now


def test_a_router_counts_streams_failed_attempts_cold_waits_and_its_view() -> None:
    metrics = RouterMetrics()
    metrics.view_published(view_of(("iris", "1")))
    metrics.stream_opened()
    metrics.stream_opened()
    metrics.stream_closed()
    metrics.stream_message("request")
    metrics.stream_message("response")
    metrics.stream_message("response")
    metrics.attempt_failed("a", "unreachable")
    metrics.cold_wait("iris", 0.3, "served")
    seen = scrape(metrics.registry)
    assert value(seen, "mesh_router_streams_open") == 1
    assert value(seen, "mesh_router_stream_messages_total", direction="request") == 1
    assert value(seen, "mesh_router_stream_messages_total", direction="response") == 2
    assert value(seen, "mesh_router_attempts_failed_total", node="a", reason="unreachable") == 1
    assert value(seen, "mesh_router_cold_requests_total", model="iris", outcome="served") == 1
    assert value(seen, "mesh_router_cold_wait_seconds_sum", outcome="served") == pytest.approx(0.3)
    assert value(seen, "mesh_router_view_revision") == 7
    assert value(seen, "mesh_router_nodes") == 1
    assert value(seen, "mesh_router_models") == 1


def test_nodes_that_come_and_go_cannot_make_series_without_end() -> None:
    metrics = RouterMetrics()
    for number in range(MAX_LABEL_VALUES + 10):
        metrics.attempt_failed(f"node-{number}", "unreachable")
    seen = scrape(metrics.registry)
    counts = [count for (name, _), count in seen.items() if name == "mesh_router_attempts_failed_total"]
    assert len(counts) == MAX_LABEL_VALUES + 1
    assert value(seen, "mesh_router_attempts_failed_total", node="other", reason="unreachable") == 10


def node_metrics() -> NodeMetrics:
    metrics = NodeMetrics()
    metrics.load_done("iris", "1", ok=True, seconds=0.5)
    metrics.load_done("bad", "1", ok=False, seconds=0.25)
    metrics.request_done("iris", "1", Code.OK, queue_s=0.001, compute_s=0.004, total_s=0.006)
    metrics.request_done("iris", "1", Code.OK, queue_s=0.003, compute_s=0.004, total_s=0.008)
    metrics.request_done("iris", "1", Code.INVALID_ARGUMENT, queue_s=0.0, compute_s=0.0, total_s=0.5)
    metrics.batch_run("iris", "1", 8, 0.004)
    metrics.batch_run("iris", "1", 2, 0.002)
    return metrics


def test_a_node_counts_requests_runs_and_loads() -> None:
    seen = scrape(node_metrics().registry)
    labels = {"model": "iris", "version": "1"}
    assert value(seen, "mesh_node_requests_total", **labels, code="OK") == 2
    assert value(seen, "mesh_node_requests_total", **labels, code="INVALID_ARGUMENT") == 1
    assert value(seen, "mesh_node_request_seconds_count", **labels) == 3
    assert value(seen, "mesh_node_queue_seconds_sum", **labels) == pytest.approx(0.004)
    assert value(seen, "mesh_node_compute_seconds_count", **labels) == 2
    assert value(seen, "mesh_node_batch_rows_sum", **labels) == 10
    assert value(seen, "mesh_node_batch_rows_bucket", **labels, le="8.0") == 2
    assert value(seen, "mesh_node_batch_rows_bucket", **labels, le="1.0") == 0
    assert value(seen, "mesh_node_run_seconds_total", **labels) == pytest.approx(0.006)
    assert value(seen, "mesh_node_loads_total", **labels, outcome="ok") == 1
    assert value(seen, "mesh_node_loads_total", model="bad", version="1", outcome="failed") == 1
    assert value(seen, "mesh_node_load_seconds_total", model="bad", version="1") == 0.25


def test_triton_names_say_the_same_in_triton_units() -> None:
    seen = scrape(node_metrics().registry)
    labels = {"model": "iris", "version": "1"}
    assert value(seen, "nv_inference_request_success", **labels) == 2
    assert value(seen, "nv_inference_request_failure", **labels) == 1
    assert value(seen, "nv_inference_count", **labels) == 10
    assert value(seen, "nv_inference_exec_count", **labels) == 2
    assert value(seen, "nv_inference_request_duration_us", **labels) == 14_000
    assert value(seen, "nv_inference_queue_duration_us", **labels) == 4_000
    assert value(seen, "nv_inference_compute_infer_duration_us", **labels) == 8_000


def test_a_node_that_never_loaded_a_model_counts_it_as_unknown() -> None:
    metrics = node_metrics()
    metrics.request_done("nonsense", "9", Code.NOT_FOUND, queue_s=0.0, compute_s=0.0, total_s=0.001)
    seen = scrape(metrics.registry)
    assert value(seen, "mesh_node_requests_total", model="unknown", version="unknown", code="NOT_FOUND") == 1
    assert value(seen, "mesh_node_requests_total", model="nonsense", version="9", code="NOT_FOUND") is None


def test_gauges_are_read_from_the_node_when_scraped() -> None:
    metrics = NodeMetrics()
    assert value(scrape(metrics.registry), "mesh_node_copies", state="ready") is None
    copies = (
        Copy(ModelName("iris"), Version("1"), CopyState.READY),
        Copy(ModelName("m"), Version("1"), CopyState.FAILED),
    )
    node = Node(
        NodeId("a"),
        "127.0.0.1:1",
        "i",
        devices=(Device(DeviceKind.CPU, 0, "cpu", 100, 40),),
        draining=True,
    )
    metrics.observe(lambda: node, lambda: copies, lambda: 5)
    seen = scrape(metrics.registry)
    assert value(seen, "mesh_node_copies", state="ready") == 1
    assert value(seen, "mesh_node_copies", state="failed") == 1
    assert value(seen, "mesh_node_copies", state="loading") == 0
    assert value(seen, "mesh_node_device_total_bytes", device="cpu:0", name="cpu") == 100
    assert value(seen, "mesh_node_device_free_bytes", device="cpu:0", name="cpu") == 40
    assert value(seen, "mesh_node_outstanding") == 5
    assert value(seen, "mesh_node_draining") == 1


def test_two_processes_in_one_do_not_share_numbers() -> None:
    first, second = NodeMetrics(), NodeMetrics()
    first.load_done("iris", "1", ok=True, seconds=0.1)
    assert value(scrape(first.registry), "mesh_node_loads_total", model="iris", version="1", outcome="ok") == 1
    assert value(scrape(second.registry), "mesh_node_loads_total", model="iris", version="1", outcome="ok") is None


def test_a_registry_also_tells_memory_and_cpu_of_the_process() -> None:
    seen = scrape(RouterMetrics().registry)
    memory = value(seen, "process_resident_memory_bytes")
    assert memory is not None
    assert memory > 1_000_000


@given(st.lists(st.floats(min_value=0, max_value=200)))
def test_buckets_are_cumulative_and_end_at_the_count(values: list[float]) -> None:
    histogram = Histogram()
    for each in values:
        histogram.add(each)
    counts = dict(histogram.buckets())
    for bound in SECONDS:
        assert counts[repr(bound)] == sum(each <= bound for each in values)
    assert counts["+Inf"] == len(values) == histogram.count()
