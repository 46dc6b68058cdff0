"""Requests that share a run or an event loop: one of them takes no more than itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mesh.api.messages import ModelInferRequest
from tests.fixtures import raw
from tests.fixtures.mesh import Process, mesh_up
from tests.fixtures.repositories import add_echo, add_python

PICKY = """\
    import time
    import numpy as np

    class Model:
        def infer(self, inputs):
            time.sleep(0.01)
            if np.isnan(inputs["x"]).any():
                raise ValueError("not a number")
            return {"y": inputs["x"] * 2, "rows": np.full_like(inputs["x"], len(inputs["x"]))}
"""
PICKY_YAML = """\
    max_batch_size: 64
    max_queue_delay_us: 5000
    inputs: [{name: x, dtype: FP32, shape: [-1, 1]}]
    outputs: [{name: y, dtype: FP32, shape: [-1, 1]}, {name: rows, dtype: FP32, shape: [-1, 1]}]
"""


def add_looping(repository: Path) -> None:
    """Write `looping`: as many rounds as the INT64 input `n` [1] says."""
    one = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["a", "a"], ["b"]),
            helper.make_node("Tanh", ["b"], ["c"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            one("round", TensorProto.INT64, []),
            one("go", TensorProto.BOOL, []),
            one("a", TensorProto.FLOAT, [64, 64]),
        ],
        [one("on", TensorProto.BOOL, []), one("c", TensorProto.FLOAT, [64, 64])],
    )
    weights = [
        numpy_helper.from_array(np.array(True), "yes"),
        numpy_helper.from_array(np.ones((64, 64), dtype=np.float32), "start"),
        numpy_helper.from_array(np.array([0], dtype=np.int64), "axes"),
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Squeeze", ["n", "axes"], ["rounds"]),
            helper.make_node("Loop", ["rounds", "yes", "start"], ["end"], body=body),
            helper.make_node("ReduceMax", ["end"], ["y"], keepdims=1),
        ],
        "looping",
        [one("n", TensorProto.INT64, [1])],
        [one("y", TensorProto.FLOAT, [1, 1])],
        initializer=weights,
    )
    folder = repository / "looping" / "1"
    folder.mkdir(parents=True)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, str(folder / "model.onnx"))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    repository = tmp_path_factory.mktemp("repository")
    add_echo(repository)
    add_python(repository, "picky", PICKY_YAML, PICKY)
    add_python(repository, "once", PICKY_YAML + "    rerun_failed_batches: false\n", PICKY)
    add_looping(repository)
    with mesh_up(repository) as process:
        yield process


def asked(channel: grpc.Channel, model: str, value: float) -> tuple[float, float] | str:
    try:
        answer = raw.infer(channel, raw.request(model, raw.floats(value), shape=(1, 1)))
    except grpc.RpcError as error:
        return str(error.details())
    named = {each.name: content for each, content in zip(answer.outputs, answer.raw_output_contents, strict=True)}
    y, rows = (float(np.frombuffer(named[name], np.float32)[0]) for name in ("y", "rows"))
    return y, rows


def all_at_once(address: str, model: str, values: list[float]) -> list[tuple[float, float] | str]:
    with raw.channel_to(address) as channel, ThreadPoolExecutor(len(values)) as callers:
        asked(channel, model, 0.0)
        return list(callers.map(lambda value: asked(channel, model, value), values))


def test_one_row_that_fails_among_two_hundred_calls_fails_alone(mesh: Process) -> None:
    values = [float(each) for each in range(200)]
    values[100] = float("nan")
    found = all_at_once(mesh.grpc, "picky", values)
    assert found.pop(100) == "model 'picky' raised ValueError: not a number"
    del values[100]
    answers = [each for each in found if not isinstance(each, str)]
    assert [y for y, _ in answers] == [2 * value for value in values]
    assert max(rows for _, rows in answers) > 1, "calls do run together"


def test_a_model_can_say_that_a_failed_batch_is_not_run_again(mesh: Process) -> None:
    values = [float(each) for each in range(200)]
    values[100] = float("nan")
    failed = [each for each in all_at_once(mesh.grpc, "once", values) if isinstance(each, str)]
    assert len(failed) > 1
    assert set(failed) == {"model 'once' raised ValueError: not a number"}


def rounds(count: int) -> ModelInferRequest:
    return raw.request("looping", count.to_bytes(8, "little"), name="n", datatype="INT64", shape=(1,))


def test_a_run_that_is_long_because_of_a_value_holds_nobody_up(mesh: Process) -> None:
    with raw.channel_to(mesh.grpc) as channel:
        for _ in range(100):
            raw.infer(channel, rounds(1))
        raw.infer(channel, raw.request("echo", raw.floats(1, 2, 3, 4)))
        done = threading.Event()

        def long() -> None:
            try:
                raw.infer(channel, rounds(100_000))
            finally:
                done.set()

        caller = threading.Thread(target=long)
        caller.start()
        answered = 0
        while not done.is_set():
            raw.infer(channel, raw.request("echo", raw.floats(1, 2, 3, 4)))
            answered += 1
        caller.join()
    # On the loop it lets nobody in between its beginning and its end.
    assert answered > 20
