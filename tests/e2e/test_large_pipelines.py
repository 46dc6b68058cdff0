"""Pipelines that are short to write and long to check or to run are refused, and the router goes on meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from mesh.api.messages import control
from mesh_client import Client, Pipeline
from tests.fixtures import raw
from tests.fixtures.mesh import Process, mesh_up
from tests.fixtures.repositories import add_echo


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    repository = tmp_path_factory.mktemp("repository")
    add_echo(repository)
    with mesh_up(repository) as process:
        yield process


def twice(name: str, model: str, tensors: tuple[str, str] = ("x", "x"), *, uses: int = 2) -> Pipeline:
    """Return a pipeline that uses a model or pipeline several times, one behind the other."""
    taken, given = tensors
    pipeline = Pipeline(name)
    before = pipeline.input("x", "FP32 [-1, -1]")
    for at in range(uses):
        before = pipeline.step(f"s{at}", model, {taken: before})[given]
    pipeline.output("x", before)
    return pipeline


def ask(address: str, model: str) -> list[float]:
    with raw.channel_to(address) as channel:
        answer = raw.infer(channel, raw.request(model, raw.floats(1, 2, 3, 4)))
    return list(memoryview(answer.raw_output_contents[0]).cast("f"))


def problems(client: Client, pipeline: Pipeline | control.Pipeline) -> str:
    return "; ".join(f"{each.path}: {each.message}" for each in client.apply_pipeline(pipeline).problems)


def test_a_tower_of_pipelines_is_checked_at_once_and_refused_where_it_grows_too_large(mesh: Process) -> None:
    with Client(mesh.grpc, timeout_s=60) as client:
        assert problems(client, twice("p1", "echo", ("x", "y"))) == ""
        for level in range(2, 13):
            assert problems(client, twice(f"p{level}", f"p{level - 1}")) == ""
        said = problems(client, twice("p13", "p12"))
        assert said == "steps: the pipeline becomes 16382 steps with the pipelines in it; at most 10000 are run"
        said = problems(client, twice("p1", "echo", ("x", "y"), uses=5))
        assert "which has this one in it, then becomes " in said
        assert {each.name for each in client.pipelines()} == {f"p{level}" for level in range(1, 13)}
        assert client.model_metadata("p12").outputs[0].datatype == "FP32"
    assert ask(mesh.grpc, "p3") == [1, 2, 3, 4]


def test_a_pipeline_that_is_too_long_is_refused_and_nobody_waits_for_it(mesh: Process) -> None:
    message = control.Pipeline(name="long")
    for at in range(1000):
        step = message.steps.add(name=f"step-{at:04}", model="echo")
        for tensor in range(15):
            step.inputs[f"x{tensor}"] = f"stepp-{at:04}.y"
    message.outputs["x"] = "step-0000.y"
    with Client(mesh.grpc, timeout_s=60) as client:
        ask(mesh.grpc, "echo")
        said: list[str] = []
        caller = threading.Thread(target=lambda: said.append(problems(client, message)))
        caller.start()
        answered = 0
        while caller.is_alive():
            ask(mesh.grpc, "echo")
            answered += 1
        caller.join()
        assert "did you mean 'step-0000'" in said[0]
        assert said[0].count("steps[") == 100
        assert answered > 3
        message.steps.add(name="one more", model="echo")
        assert problems(client, message) == "steps: expected at most 1000 steps, got 1001"
