"""Pipelines on real processes: called like models by every kind of client, changed and broken under traffic."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from mesh.api.messages import control
from mesh_client import AsyncClient, Client, InvalidInput, MeshClientError, ModelNotFound, StreamError
from tests.fixtures.etcd import EtcdServer, eventually
from tests.fixtures.mesh import start_node, start_router, until
from tests.fixtures.tools import need

pytestmark = pytest.mark.timeout(120)

YAML = """runtime: python
inputs: [{name: x, dtype: FP32, shape: [-1, 2]}]
outputs: [{name: y, dtype: FP32, shape: [-1, 2]}]
"""
ONE = YAML.replace("[-1, 2]", "[2]")
CLASS = YAML.partition("outputs:")[0] + "outputs: [{name: kind, dtype: INT64, shape: [1]}]\n"
MODELS = {
    "plus": (YAML, "return {'y': inputs['x'] + 1}"),
    "times": (YAML, "return {'y': inputs['x'] * 10}"),
    "half": (YAML, "return {'y': inputs['x'] / 2}"),
    "each": (ONE, "assert inputs['x'].shape == (2,); return {'y': inputs['x'] + 100}"),
    "sign": (CLASS, "return {'kind': (inputs['x'].sum(keepdims=True)[0] > 0).astype('int64')}"),
    "fails": (YAML, "raise ValueError('this one never works')"),
    "slow": (YAML, "time.sleep(1000 * float(inputs['x'].max())); return {'y': inputs['x']}"),
}
X = np.array([[1.0, 2.0]], np.float32)


def write(repository: Path) -> None:
    for name, (yaml, body) in MODELS.items():
        folder = repository / name / "1"
        folder.mkdir(parents=True)
        (folder.parent / "model.yaml").write_text(yaml)
        (folder / "model.py").write_text(f"import time\n\nclass Model:\n    def infer(self, inputs):\n        {body}\n")


class Mesh:
    """Two nodes and a router over an etcd."""

    def __init__(self, etcd: EtcdServer, repository: Path) -> None:
        self.router = start_router(etcd.address)
        self.nodes = {name: start_node(etcd.address, name, models=repository) for name in "ab"}
        for process in (self.router, *self.nodes.values()):
            process.wait_ready()

    def stop(self) -> None:
        for process in (self.router, *self.nodes.values()):
            process.kill()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    need("etcd")
    folder = tmp_path_factory.mktemp("mesh")
    write(folder / "models")
    etcd = EtcdServer(folder / "etcd")
    etcd.launch_and_wait()
    mesh = Mesh(etcd, folder / "models")
    with Client(mesh.router.grpc) as client:
        until(lambda: len(client.models()) == len(MODELS), what="the models are known")
    yield mesh
    mesh.stop()
    etcd.kill()


@pytest.fixture
def client(mesh: Mesh) -> Iterator[Client]:
    with Client(mesh.router.grpc, timeout_s=60) as client:
        yield client


def step(name: str, model: str, x: str, **more: Any) -> control.Step:
    return control.Step(name=name, model=model, inputs={"x": x}, **more)


def apply(client: Client, name: str, steps: list[control.Step], **outputs: str) -> control.ApplyPipelineResponse:
    answer = client.apply_pipeline(control.Pipeline(name=name, steps=steps, outputs=outputs))
    assert [f"{each.path}: {each.message}" for each in answer.problems] == []
    return answer


def test_a_graph_is_called_like_a_model(client: Client) -> None:
    steps = [step("a", "plus", "$x"), step("b", "times", "a.y"), step("c", "half", "a.y")]
    apply(client, "graph", steps, tens="b.y", halves="c.y", same="$x")
    result = client.infer("graph", {"x": X}, id="r1")
    assert {name: result[name].tolist() for name in result} == {
        "tens": [[20.0, 30.0]],
        "halves": [[1.0, 1.5]],
        "same": [[1.0, 2.0]],
    }
    assert (result.model_name, result.model_version, result.id) == ("graph", "1", "r1")
    only = client.infer("graph", {"x": X}, outputs=["halves"])
    assert list(only) == ["halves"]
    assert client.model_ready("graph")
    metadata = client.model_metadata("graph")
    assert (metadata.platform, list(metadata.versions)) == ("ensemble", ["1"])
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [("x", "FP32", [-1, 2])]
    assert client.model_config("graph").platform == "ensemble"


def test_tritonclient_needs_to_know_nothing(mesh: Mesh, client: Client) -> None:
    apply(client, "for-triton", [step("a", "plus", "$x"), step("b", "times", "a.y")], y="b.y")
    other = triton.InferenceServerClient(mesh.router.grpc)
    given = triton.InferInput("x", [1, 2], "FP32")
    given.set_data_from_numpy(X)
    assert other.infer("for-triton", [given]).as_numpy("y").tolist() == [[20.0, 30.0]]
    assert other.is_model_ready("for-triton")
    other.close()


async def test_a_stream_keeps_the_order_of_its_requests(mesh: Mesh, client: Client) -> None:
    apply(client, "streamed", [step("a", "plus", "$x"), step("b", "times", "a.y")], y="b.y")
    async with AsyncClient(mesh.router.grpc) as other, other.stream() as stream:

        async def send() -> None:
            for number in range(300):
                # Messages for a model between those for the pipeline: one order over both.
                name = "streamed" if number % 3 else "plus"
                await stream.send(name, {"x": np.full((1, 2), number, np.float32)}, id=str(number))
            await stream.half_close()

        sending = asyncio.create_task(send())
        found = [(result.id, float(result["y"][0, 0])) async for result in stream]
        await sending
    assert found == [(str(n), (n + 1) * 10.0 if n % 3 else n + 1.0) for n in range(300)]


def test_branches_by_a_condition_merge(client: Client) -> None:
    steps = [
        control.Step(name="kind", model="sign", inputs={"x": "$x"}),
        step("up", "plus", "$x", when="kind.kind == 1"),
        step("down", "half", "$x", when="kind.kind == 0"),
        step("end", "times", "up.y | down.y"),
    ]
    apply(client, "branches", steps, y="end.y", up="up.y")
    result = client.infer("branches", {"x": X})
    assert {name: result[name].tolist() for name in result} == {"y": [[20.0, 30.0]], "up": [[2.0, 3.0]]}
    result = client.infer("branches", {"x": -X})
    assert {name: result[name].tolist() for name in result} == {"y": [[-5.0, -10.0]]}


def test_a_step_runs_over_each_element(client: Client) -> None:
    apply(client, "elements", [step("a", "each", "$x", each=["x"]), step("b", "times", "a.y")], y="b.y")
    rows = np.arange(10, dtype=np.float32).reshape(5, 2)
    assert client.infer("elements", {"x": rows})["y"].tolist() == ((rows + 100) * 10).tolist()


def test_pipelines_are_steps_of_pipelines_but_never_of_themselves(client: Client) -> None:
    apply(client, "inner", [step("a", "plus", "$x")], y="a.y")
    apply(client, "outer", [step("a", "inner", "$x"), step("b", "inner", "a.y")], y="b.y")
    assert client.infer("outer", {"x": X})["y"].tolist() == [[3.0, 4.0]]
    answer = client.apply_pipeline(
        control.Pipeline(name="inner", steps=[step("a", "outer", "$x")], outputs={"y": "a.y"})
    )
    assert [each.path for each in answer.problems] == ["steps[0].model"]
    assert "contains 'inner'" in answer.problems[0].message


def test_a_failing_step_is_named_and_another_model_stands_in(client: Client) -> None:
    apply(client, "broken", [step("a", "plus", "$x"), step("b", "fails", "a.y")], y="b.y")
    with pytest.raises(MeshClientError, match=r"step 'b' of pipeline 'broken': .*this one never works"):
        client.infer("broken", {"x": X})
    spare = control.OnError(use="times")
    apply(client, "saved", [step("a", "plus", "$x"), step("b", "fails", "a.y", retries=1, on_error=spare)], y="b.y")
    assert client.infer("saved", {"x": X})["y"].tolist() == [[20.0, 30.0]]


def test_a_step_has_a_timeout_of_its_own_and_the_request_its_deadline(client: Client) -> None:
    apply(client, "patient", [step("a", "slow", "$x", timeout_s=0.3)], y="a.y")
    client.infer("slow", {"x": X * 0})
    assert client.infer("patient", {"x": X * 0})["y"].tolist() == [[0.0, 0.0]]
    with pytest.raises(MeshClientError, match=r"step 'a' of pipeline 'patient': no answer within the step's timeout"):
        client.infer("patient", {"x": X}, timeout_s=60)
    spare = control.OnError(use="half")
    apply(client, "spared", [step("a", "slow", "$x", timeout_s=0.3, on_error=spare)], y="a.y")
    assert client.infer("spared", {"x": X}, timeout_s=60)["y"].tolist() == [[0.5, 1.0]]


def test_bad_requests_are_told_as_a_model_would(client: Client) -> None:
    apply(client, "strict", [step("a", "plus", "$x")], y="a.y")
    with pytest.raises(InvalidInput, match=r"expected 1 inputs but got 1 inputs for model 'strict'. Got"):
        client.infer("strict", {"z": X})
    with pytest.raises(InvalidInput, match="data-type is 'INT64', but model 'strict' expects 'FP32'"):
        client.infer("strict", {"x": X.astype(np.int64)})
    with pytest.raises(InvalidInput, match=r"shape for input 'x' for model 'strict'. Expected \[-1,2\], got"):
        client.infer("strict", {"x": np.zeros((1, 3), np.float32)})
    with pytest.raises(InvalidInput, match="unexpected inference output 'z' for model 'strict'"):
        client.infer("strict", {"x": X}, outputs=["z"])
    with pytest.raises(ModelNotFound, match="'strict' version 9 is not found"):
        client.infer("strict", {"x": X}, version="9")
    with client.stream() as stream:
        with pytest.raises(StreamError, match="but model 'strict' expects 'FP32'"):
            stream.infer("strict", {"x": X.astype(np.int64)})
        assert stream.infer("strict", {"x": X})["y"].tolist() == [[2.0, 3.0]], "the stream goes on"


async def test_a_pipeline_changes_under_traffic_and_every_answer_is_of_one_revision(mesh: Mesh, client: Client) -> None:
    apply(client, "changing", [step("a", "plus", "$x"), step("b", "times", "a.y")], y="b.y")
    answers: list[tuple[str, list[list[float]]]] = []
    stop = asyncio.Event()

    async def call(other: AsyncClient) -> None:
        while not stop.is_set():
            result = await other.infer("changing", {"x": X}, timeout_s=60)
            answers.append((result.model_version, result["y"].tolist()))

    async with AsyncClient(mesh.router.grpc) as other, asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(call(other))
        await eventually(lambda: len(answers) >= 50, what="50 answers")
        changed = await asyncio.to_thread(
            apply, client, "changing", [step("a", "half", "$x"), step("b", "times", "a.y")], y="b.y"
        )
        assert (changed.changed, changed.pipeline.revision) == (True, 2)
        goal = len(answers) + 50
        await eventually(lambda: len(answers) >= goal, what="50 answers more")
        stop.set()
    assert dict(answers) == {"1": [[20.0, 30.0]], "2": [[5.0, 10.0]]}
    assert all(value == ([[20.0, 30.0]] if version == "1" else [[5.0, 10.0]]) for version, value in answers)


def test_a_pipeline_that_makes_no_sense_is_refused_with_every_problem(client: Client) -> None:
    bad = control.Pipeline(
        name="nonsense", steps=[step("a", "plus", "$$"), step("b", "pluss", "a.y")], outputs={"y": "c.y"}
    )
    answer = client.apply_pipeline(bad)
    assert [each.path for each in answer.problems] == ["steps[0].inputs.x"]
    bad.steps[0].inputs["x"] = "$x"
    answer = client.apply_pipeline(bad)
    assert [each.path for each in answer.problems] == ["steps[1].model", "outputs.y"]
    with pytest.raises(ModelNotFound):
        client.infer("nonsense", {"x": X})
    answer = client.apply_pipeline(control.Pipeline(name="plus", steps=[step("a", "half", "$x")], outputs={"y": "a.y"}))
    assert "there is a model 'plus'" in answer.problems[0].message


def test_the_command_line_applies_lists_shows_chains_and_deletes(mesh: Mesh, client: Client, tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = (sys.executable, "-m", "mesh.cli.main", *words, "--address", mesh.router.grpc)
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    file = tmp_path / "p.yaml"
    file.write_text(
        "kind: Pipeline\nname: from-file\nsteps:\n  - {name: a, model: plus, inputs: {x: $x}}\n"
        "  - {name: b, model: times, inputs: {x: a.why}}\noutputs: {y: b.y}\n"
    )
    done = run("apply", "-f", str(file))
    assert done.returncode == 1
    assert f"{file}:5: steps[1].inputs.x: expected an output of model 'plus', got 'why'" in done.stderr
    file.write_text(file.read_text().replace("why", "y"))
    assert run("apply", "-f", str(file), "--dry-run").stdout == "pipeline from-file would be revision 1\n"
    assert run("apply", "-f", str(file)).stdout == "pipeline from-file is now revision 1\n"
    assert run("apply", "-f", str(file)).stdout == "pipeline from-file is as it was, revision 1\n"
    assert "a: plus, b: times" in run("pipelines").stdout
    assert "x <- a.y" in run("pipelines", "show", "from-file").stdout
    assert run("pipelines", "chain", "chained", "plus", "half", "plus").returncode == 0
    assert client.infer("chained", {"x": X})["y"].tolist() == [[2.0, 2.5]]
    assert run("pipelines", "delete", "from-file").returncode == 0
    until(lambda: not client.model_ready("from-file"), what="it is forgotten")
    assert run("pipelines", "delete", "from-file").returncode == 1


def test_typed_contents_are_answered_to_people_with_grpcurl(mesh: Mesh, client: Client) -> None:
    apply(client, "typed", [step("a", "plus", "$x")], y="a.y")
    need("grpcurl")
    row = (
        '{"model_name": "typed", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "contents": '
        '{"fp32_contents": [1, 2]}}], "parameters": {"mesh_typed_contents": {"bool_param": true}}}'
    )
    command = ("grpcurl", "-plaintext", "-d", row, mesh.router.grpc, "inference.GRPCInferenceService/ModelInfer")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert '"fp32_contents"' in done.stdout, done.stderr


async def test_a_node_that_dies_in_the_middle_costs_no_request(mesh: Mesh, client: Client) -> None:
    """It leaves one node, on which all the other tests pass as well."""
    apply(client, "lasting", [step("a", "plus", "$x"), step("b", "times", "a.y")], y="b.y")
    answers = 0
    stop = asyncio.Event()

    async def call(other: AsyncClient) -> None:
        nonlocal answers
        while not stop.is_set():
            result = await other.infer("lasting", {"x": X}, timeout_s=60)
            assert result["y"].tolist() == [[20.0, 30.0]]
            answers += 1

    async def enough(count: int) -> None:
        goal = answers + count
        await eventually(lambda: answers >= goal, what=f"{count} answers")

    async with AsyncClient(mesh.router.grpc) as other, asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(call(other))
        await enough(50)
        mesh.nodes["a"].send(signal.SIGKILL)
        await enough(100)
        stop.set()
