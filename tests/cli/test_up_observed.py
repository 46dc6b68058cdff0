"""A whole mesh as an operator sees it: traces at a real OTLP receiver, metrics at a real scrape, JSON logs."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mesh.api.messages import ModelInferRequest, ModelInferResponse
from tests.cli.running import DEADLINE_S, Up, up
from tests.telemetry.receiver import attributes, receiving

pytestmark = pytest.mark.timeout(600)

INFER = "/inference.GRPCInferenceService/ModelInfer"
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"


def iris(running: Up) -> None:
    request = ModelInferRequest(model_name="iris")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    tensor.contents.fp32_contents.extend([5.1, 3.5, 1.4, 0.2])
    running.ask(INFER, request, ModelInferResponse, (("traceparent", f"00-{TRACE}-{CALLER}-01"),))


def test_a_call_is_one_trace_from_the_caller_over_the_router_to_the_node(tmp_path: Path) -> None:
    with receiving() as (receiver, endpoint):
        with up(tmp_path, "--nodes", "1", env={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}) as running:
            iris(running)
            running.process.terminate()
            assert running.process.wait(DEADLINE_S) == 0, running.said()
        spans = {names["service.name"]: span for names, span in receiver.spans if span.trace_id.hex() == TRACE}
    assert set(spans) == {"mesh-router", "mesh-node"}
    router, node = spans["mesh-router"], spans["mesh-node"]
    assert router.parent_span_id.hex() == CALLER
    assert node.parent_span_id == router.span_id
    for span in (router, node):
        found = attributes(span)
        assert found["rpc.system.name"] == "grpc"
        assert found["rpc.method"] == "inference.GRPCInferenceService/ModelInfer"
        assert found["rpc.response.status_code"] == "OK"
        assert (found["mesh.model"], found["mesh.version"]) == ("iris", "1")
    assert attributes(router)["mesh.node"] == "a"


def test_metrics_of_the_router_count_the_call_and_logs_are_json_lines(tmp_path: Path) -> None:
    with up(tmp_path, "--nodes", "1", "--log-json", "--log-level", "info") as running:
        iris(running)
        with urllib.request.urlopen(f"http://{running.ready['router']['http']}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        running.process.terminate()
        assert running.process.wait(DEADLINE_S) == 0
        lines = [line.partition("  {") for line in running.said().splitlines()]
    samples = {
        (sample.name, sample.labels.get("model"), sample.labels.get("code")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["mesh_router_requests_total", "iris", "OK"] == 1
    assert samples["mesh_router_request_seconds_count", "iris", None] == 1
    assert samples["mesh_router_nodes", None, None] == 1
    records = [json.loads("{" + rest) for _, mark, rest in lines if mark]
    assert {"router serving", "node serving", "loaded"} <= {record["text"] for record in records}
