"""One graph in one hop and the same graph over two nodes: the same answers, and one hop where one is enough."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from mesh.api.messages import control
from mesh_client import Client, MeshClientError, Tensor
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import Process, start_node, start_router, until
from tests.fixtures.models import onnx_model, python_model
from tests.fixtures.tools import need

pytestmark = pytest.mark.timeout(120)

FLOAT = "inputs: [{name: x, dtype: FP32, shape: [-1, 2]}]\noutputs: [{name: y, dtype: FP32, shape: [-1, 2]}]\n"
MODELS = {
    "plus": (FLOAT, "return {'y': inputs['x'] + 1}"),
    "times": (FLOAT, "return {'y': inputs['x'] * request.parameters.get('by', 10)}"),
    "row": (FLOAT.replace("[-1, 2]", "[2]"), "return {'y': inputs['x'][::-1] + 100}"),
    "sign": (
        FLOAT.partition("outputs")[0] + "outputs: [{name: kind, dtype: BYTES, shape: [1]}]\n",
        "return {'kind': numpy.array(['up' if inputs['x'].sum() > 0 else 'down'])}",
    ),
    "text": (
        FLOAT.partition("outputs")[0] + "outputs: [{name: said, dtype: BYTES, shape: [-1, 2]}]\n",
        "return {'said': inputs['x'].astype(int).astype(str)}",
    ),
    "length": (
        "inputs: [{name: said, dtype: BYTES, shape: [-1, 2]}]\noutputs: [{name: y, dtype: INT64, shape: [-1, 2]}]\n",
        "return {'y': numpy.vectorize(len, otypes=['int64'])(inputs['said'])}",
    ),
    "brain": (FLOAT.replace("FP32", "BF16"), "return {'y': inputs['x'] * 2}"),
    "fails": (FLOAT, "raise ValueError('never works')"),
    "slow": (FLOAT, "time.sleep(max(0.0, min(1.0, float(inputs['x'].max())))); return {'y': inputs['x']}"),
}
NUMBERS = {"double": ("Add", ["x", "x"]), "square": ("Mul", ["x", "x"]), "sum": ("Add", ["x", "z"])}
"""ONNX models of one operator: runs so short that their steps may become one chain."""
SIDES = ("left", "right")
X = np.array([[1.0, 2.0], [30.0, 400.0]], np.float32)


def write(repository: Path) -> None:
    for side in SIDES:
        label = f"node_labels: {{side: {side}}}\n"
        for name, (yaml, body) in MODELS.items():
            python_model(repository, f"{name}-{side}", f"{label}{yaml}", body)
        for name, (operator, inputs) in NUMBERS.items():
            onnx_model(repository, f"{name}-{side}", f"{label}max_batch_size: 4\n", operator, inputs)


class Mesh:
    """A router, and a node for each side."""

    def __init__(self, etcd: EtcdServer, repository: Path) -> None:
        self._etcd = etcd
        self._repository = repository
        self.router = start_router(etcd.address)
        self.nodes = {side: self.start(side) for side in SIDES}
        for process in (self.router, *self.nodes.values()):
            process.wait_ready()

    def start(self, side: str) -> Process:
        """Start the node of a side."""
        return start_node(self._etcd.address, side, "--label", f"side={side}", models=self._repository)

    def load(self, client: Client, side: str) -> None:
        """Load all models of a side: placed by chance, a first request would go step by step."""
        for name in (*MODELS, *NUMBERS):
            client.load(f"{name}-{side}")

    def requests(self, model: str) -> int:
        """Return the requests that the router answered or passed on for `model`, in hops of their own."""
        text = urllib.request.urlopen(f"http://{self.router.http}/metrics", timeout=30).read().decode()
        found = re.findall(rf'mesh_router_requests_total{{[^}}]*model="{model}"[^}}]*}} ([0-9.e+]+)', text)
        return int(sum(map(float, found)))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    need("etcd")
    folder = tmp_path_factory.mktemp("mesh")
    write(folder / "models")
    etcd = EtcdServer(folder / "etcd")
    etcd.launch_and_wait()
    mesh = Mesh(etcd, folder / "models")
    with Client(mesh.router.grpc, timeout_s=60) as client:
        until(lambda: len(client.models()) == 2 * len(MODELS) + 2 * len(NUMBERS), what="the models are known")
        for side in SIDES:
            mesh.load(client, side)
    yield mesh
    for process in (mesh.router, *mesh.nodes.values()):
        process.kill()
    etcd.kill()


@pytest.fixture
def client(mesh: Mesh) -> Iterator[Client]:
    with Client(mesh.router.grpc, timeout_s=60) as client:
        yield client


Steps = list[control.Step]
Inputs = Mapping[str, Tensor | np.ndarray[Any, np.dtype[Any]]]


def step(name: str, model: str, source: str, to: str = "x", **more: object) -> control.Step:
    return control.Step(name=name, model=model, inputs={to: source}, **more)  # type: ignore[arg-type] # fields of Step


GRAPHS: dict[str, tuple[Steps, dict[str, str]]] = {
    "diamond": (
        [
            step("a", "plus", "$x"),
            step("b", "times", "a.y"),
            step("c", "row", "a.y", each=["x"]),
            step("d", "plus", "b.y"),
        ],
        {"b": "d.y", "c": "c.y", "x": "$x"},
    ),
    "branches": (
        [
            step("kind", "sign", "$x"),
            step("up", "plus", "$x", when="kind.kind == 'up'"),
            step("down", "times", "$x", when="kind.kind != 'up'"),
            step("end", "plus", "up.y | down.y"),
        ],
        {"y": "end.y", "kind": "kind.kind", "down": "down.y"},
    ),
    "texts": ([step("t", "text", "$x"), step("l", "length", "t.said", "said")], {"said": "t.said", "y": "l.y"}),
    "brains": ([step("a", "brain", "$x"), step("b", "brain", "a.y")], {"y": "b.y"}),
    "parameters": (
        [step("a", "times", "$x"), step("b", "times", "a.y", parameters={"by": control.Value(int_value=3)})],
        {"y": "b.y"},
    ),
    "saved": ([step("a", "plus", "$x"), step("b", "fails", "a.y", retries=1)], {"y": "b.y"}),
    "numbers": (
        [
            step("a", "double", "$x"),
            step("b", "square", "a.y"),
            control.Step(name="c", model="sum", inputs={"x": "b.y", "z": "a.y"}),
            step("d", "square", "a.y"),
        ],
        {"y": "c.y", "a": "a.y", "d": "d.y", "x": "$x"},
    ),
    "timed": ([step("a", "plus", "$x"), step("b", "slow", "a.y", timeout_s=0.2)], {"y": "b.y"}),
}
"""Models are named without their side."""


def apply(client: Client, name: str, graph: str, sides: str) -> str:
    """Apply a graph with the models of its steps on these sides in turn; "l" is left."""
    steps, outputs = GRAPHS[graph]
    placed = []
    for index, each in enumerate(steps):
        other = control.Step()
        other.CopyFrom(each)
        side = "left" if sides[index % len(sides)] == "l" else "right"
        other.model = f"{each.model}-{side}"
        if graph == "saved" and each.model == "fails":
            other.on_error.use = f"times-{side}"
        placed.append(other)
    answer = client.apply_pipeline(control.Pipeline(name=name, steps=placed, outputs=outputs))
    assert [f"{each.path}: {each.message}" for each in answer.problems] == []
    return name


def outcome(client: Client, name: str, given: Inputs) -> object:
    """Return the answer by output, or what went wrong without the models' sides."""
    try:
        result = client.infer(name, given, parameters={"by": 7})
    except MeshClientError as error:
        return error.code, re.sub(r"-(left|right)|'[a-z]+-(fused|spread)'|node '\w+'", "", error.message)
    return {each: (result[each].dtype.str, result[each].tolist()) for each in result}


@pytest.mark.parametrize("graph", GRAPHS)
def test_fused_and_spread_give_the_same(mesh: Mesh, client: Client, graph: str) -> None:
    fused, spread = apply(client, f"{graph}-fused", graph, "l"), apply(client, f"{graph}-spread", graph, "lr")
    dtype = "BF16" if graph == "brains" else "FP32"
    inputs: list[Inputs] = [{"x": Tensor(values, dtype)} for values in (X, -X, X * 0, X[:1])]
    inputs += [
        {"x": np.zeros((5, 2), np.float32)},
        {"x": X.astype(np.int64)},
        {"z": X},
        {"x": np.zeros((1, 3), np.float32)},
        {"x": X[:0]},
    ]
    model = GRAPHS[graph][0][0].model
    before = mesh.requests(f"{model}-left")
    found = [outcome(client, fused, each) for each in inputs]
    assert found == [outcome(client, spread, each) for each in inputs]
    assert mesh.requests(f"{model}-left") == before, "no step went through the router"


def test_streams_run_in_one_hop_too_and_keep_their_order(mesh: Mesh, client: Client) -> None:
    name = apply(client, "streamed-fused", "diamond", "l")
    before = mesh.requests("plus-left")
    with client.stream() as stream:
        for number in range(200):
            stream.send(name, {"x": np.full((1, 2), number, np.float32)}, id=str(number))
        stream.half_close()
        found = [(result.id, float(result["b"][0, 0])) for result in stream]
    assert found == [(str(number), (number + 1) * 10.0 + 1) for number in range(200)]
    assert mesh.requests("plus-left") == before


def test_steps_of_a_fused_request_count_at_their_models(mesh: Mesh, client: Client) -> None:
    name = apply(client, "counted-fused", "parameters", "r")

    def count() -> int:
        (found,) = client.model_statistics("times-right").model_stats
        return int(found.inference_count)

    client.infer(name, {"x": X})
    before = count()
    client.infer(name, {"x": X})
    assert count() == before + 2


def stages(client: Client, model: str) -> tuple[int, int, int]:
    """Return how often a model answered, and the nanoseconds it took to read and to answer in all."""
    (found,) = client.model_statistics(model).model_stats
    stats = found.inference_stats
    return stats.success.count, stats.compute_input.ns, stats.compute_output.ns


def test_tiny_steps_run_as_one_chain_and_are_counted_each(client: Client) -> None:
    name = apply(client, "chained-fused", "numbers", "l")

    def runs_as_a_chain() -> bool:
        count, *spent_ns = stages(client, "sum-left")
        with client.stream() as stream:
            for number in range(100):
                stream.send(name, {"x": np.full((1, 2), number, np.float32)}, id=str(number))
            stream.half_close()
            found = [(result.id, float(result["y"][0, 0])) for result in stream]
        assert found == [(str(number), 4.0 * number**2 + 2 * number) for number in range(100)]
        counted, *now_ns = stages(client, "sum-left")
        assert counted == count + 100
        # Between the steps of a chain nothing is read or written.
        return now_ns == spent_ns

    # The first runs of a model are slow, and as long as a mean run is not short each step has its own queue.
    until(runs_as_a_chain, what="the steps run as a chain")


def test_a_chain_beside_requests_to_its_models(client: Client) -> None:
    name = apply(client, "beside-fused", "numbers", "r")
    with ThreadPoolExecutor(8) as pool:
        chained = [pool.submit(client.infer, name, {"x": X * number}) for number in range(100)]
        alone = [pool.submit(client.infer, "square-right", {"x": X * number}) for number in range(100)]
        for number in range(100):
            a = X * number * 2
            assert chained[number].result()["y"].tolist() == (a * a + a).tolist()
            assert alone[number].result()["y"].tolist() == ((X * number) ** 2).tolist()


@pytest.mark.parametrize("sides", ["l", "lr"], ids=["fused", "spread"])
def test_what_only_models_answer_with_is_refused(client: Client, sides: str) -> None:
    name = apply(client, f"classes-{sides}", "parameters", sides)
    other = triton.InferenceServerClient(client.address)
    given = triton.InferInput("x", [2, 2], "FP32")
    given.set_data_from_numpy(X)
    with pytest.raises(InferenceServerException, match="'classification' is not offered for outputs of pipeline"):
        other.infer(name, [given], outputs=[triton.InferRequestedOutput("y", class_count=2)])
    other.close()


def test_a_node_without_a_model_leaves_the_request_to_others(mesh: Mesh, client: Client) -> None:
    name = apply(client, "left-behind-fused", "diamond", "r")
    assert client.infer(name, {"x": X})["x"].tolist() == X.tolist()
    client.unload("row-right")
    with pytest.raises(MeshClientError, match="row-right"):
        client.infer(name, {"x": X})
    client.load("row-right")
    assert client.infer(name, {"x": X})["x"].tolist() == X.tolist()


def test_a_caller_who_leaves_stops_the_steps(mesh: Mesh, client: Client) -> None:
    steps = [step("a", "slow-left", "$x"), step("b", "slow-left", "a.y"), step("c", "plus-left", "b.y")]
    client.apply_pipeline(control.Pipeline(name="long-fused", steps=steps, outputs={"y": "c.y"}))

    def count(model: str) -> int:
        (found,) = client.model_statistics(model).model_stats
        return int(found.inference_stats.success.count)

    before = count("plus-left")
    with pytest.raises(MeshClientError, match=r"deadline|in time"):
        client.infer("long-fused", {"x": np.ones((1, 2), np.float32)}, timeout_s=0.5)
    assert client.infer("long-fused", {"x": np.zeros((1, 2), np.float32)})["y"].tolist() == [[1.0, 1.0]]
    assert count("plus-left") == before + 1, "the request that was given up never came to its last step"


def test_the_node_that_ran_it_may_die(mesh: Mesh, client: Client) -> None:
    name = apply(client, "outliving-fused", "parameters", "r")
    client.infer(name, {"x": X})
    mesh.nodes["right"].kill()
    try:
        with pytest.raises(MeshClientError, match=r"step '.' of pipeline 'outliving-fused'|times-right"):
            client.infer(name, {"x": X}, timeout_s=3)
    finally:
        mesh.nodes["right"] = mesh.start("right").wait_ready()
    mesh.load(client, "right")
    assert client.infer(name, {"x": X})["y"].tolist() == (X * 30).tolist()
