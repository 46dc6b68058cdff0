"""What ModelStatistics tells of each response of models with several: counted where it is made, summed over nodes."""

from __future__ import annotations

import json
import queue
import urllib.request
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from tests.fixtures.mesh import Process, mesh_up, until
from tests.fixtures.models import folder_of, python_model

pytestmark = pytest.mark.timeout(180)

SIGNATURE = (
    "inputs: [{name: x, dtype: INT32, shape: [-1]}]\noutputs: [{name: y, dtype: INT32, shape: [-1]}]\n"
    "decoupled: true\nmin_copies: 2\n"
)
COUNTS = """
        for n in range(int(inputs["x"][0])):
            time.sleep(0.002)
            yield {"y": numpy.array([n], numpy.int32)}
        if inputs["x"].size > 1:
            raise ValueError("no more")
"""
STEPS = """
import numpy as np

class Model:
    def step(self, generations):
        for each in generations:
            at = each.state["at"] = each.state.get("at", 0) + 1
            if at <= each.inputs["x"][0]:
                each.send({"y": np.array([at], np.int32)})
            else:
                each.done = True
"""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    models = tmp_path_factory.mktemp("models")
    for name in ("counts", "fails", "endless", "long"):
        python_model(models, name, SIGNATURE, COUNTS.strip())
    (folder_of(models, "steps", "runtime: python\n" + SIGNATURE) / "model.py").write_text(STEPS)
    with mesh_up(models, nodes=2) as process:
        yield process


def ask(client: Any, found: queue.Queue[Any], model: str, *x: int) -> None:
    tensor = triton.InferInput("x", [len(x)], "INT32")
    tensor.set_data_from_numpy(np.array(x, np.int32))
    client.async_stream_infer(model, [tensor], enable_empty_final_response=True)
    while True:
        result, error = found.get(timeout=60)
        if error is not None or result.get_response().parameters["triton_final_response"].bool_param:
            return


def counts_of(address: str, model: str) -> dict[str, dict[str, int]]:
    with triton.InferenceServerClient(address) as client:
        (stats,) = client.get_inference_statistics(model).model_stats
    return {
        key: {name.name: value.count for name, value in each.ListFields() if value.count}
        for key, each in stats.response_stats.items()
    }


def answered(computed: int, **more: int) -> dict[str, int]:
    return {"compute_infer": computed, "compute_output": computed, "success": computed} | more


@pytest.mark.parametrize("model", ["counts", "steps"])
def test_each_response_is_counted_by_its_place(mesh: Process, model: str) -> None:
    with triton.InferenceServerClient(mesh.grpc) as client:
        found: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: found.put((result, error)))
        for _ in range(6):  # Over both nodes.
            ask(client, found, model, 3)
        ask(client, found, model, 1)
        ask(client, found, model, 0)
    assert counts_of(mesh.grpc, model) == {
        "0": answered(7) | {"compute_infer": 8, "empty_response": 1},
        "1": answered(6) | {"compute_infer": 7, "empty_response": 1},
        "2": answered(6),
        "3": {"compute_infer": 6, "empty_response": 6},
    }
    if model == "counts":
        with triton.InferenceServerClient(mesh.grpc) as client:
            (stats,) = client.get_inference_statistics(model).model_stats
        first = stats.response_stats["0"]
        assert first.compute_infer.ns >= 7 * 2_000_000
        assert first.success.ns >= first.compute_output.ns
    with urllib.request.urlopen(f"http://{mesh.http}/v2/models/{model}/stats", timeout=60) as answer:
        (told,) = json.loads(answer.read())["model_stats"]
    assert sorted(told["response_stats"]) == ["0", "1", "2", "3"]
    assert told["response_stats"]["1"]["success"]["count"] == 6
    assert told["response_stats"]["3"]["cancel"] == {"count": 0, "ns": 0}


def test_an_error_and_a_caller_who_left_stand_where_a_response_would(mesh: Process) -> None:
    with triton.InferenceServerClient(mesh.grpc) as client:
        found: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: found.put((result, error)))
        ask(client, found, "fails", 1, 1)
        assert counts_of(mesh.grpc, "fails") == {"0": answered(1), "1": {"compute_infer": 1, "fail": 1}}
        tensor = triton.InferInput("x", [1], "INT32")
        tensor.set_data_from_numpy(np.array([1_000_000], np.int32))
        client.async_stream_infer("endless", [tensor])
        found.get(timeout=60)
        client.stop_stream(cancel_requests=True)
    counted = partial(counts_of, mesh.grpc, "endless")
    until(lambda: sum(each.get("cancel", 0) for each in counted().values()) == 1, what="it was cancelled")
    assert sum(each.get("fail", 0) + each.get("empty_response", 0) for each in counted().values()) == 0


def test_what_is_far_behind_is_counted_together(mesh: Process) -> None:
    with triton.InferenceServerClient(mesh.grpc) as client:
        found: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: found.put((result, error)))
        ask(client, found, "long", 300)
    counts = counts_of(mesh.grpc, "long")
    assert counts["255"]["success"] == 1
    assert counts["256+"] == answered(44) | {"compute_infer": 45, "empty_response": 1}
    assert len(counts) == 257
