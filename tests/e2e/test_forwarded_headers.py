"""Headers that models read as parameters, on every way to a model: real processes, both engines."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from mesh.api.messages import control
from mesh_client import Client
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import ENGINE, Process, start_node, start_router, until
from tests.fixtures.models import folder_of, python_model
from tests.fixtures.tools import need

pytestmark = pytest.mark.timeout(180)

TEXT = "inputs: [{name: x, dtype: FP32, shape: [-1]}]\noutputs: [{name: y, dtype: BYTES, shape: [-1]}]\n"
SEEN = "import json; return {'y': numpy.array([json.dumps(dict(request.parameters))], object), 'x': inputs['x']}"
BOTH = (
    "inputs: [{name: x, dtype: FP32, shape: [-1]}]\n"
    "outputs: [{name: y, dtype: BYTES, shape: [-1]}, {name: x, dtype: FP32, shape: [-1]}]\n"
)
MODELS = {
    "seen": (BOTH + "node_labels: {near: 'yes'}\n", SEEN),
    "far": (BOTH + "node_labels: {far: 'yes'}\n", SEEN),
    "several": (
        TEXT + "decoupled: true\n",
        "import json; yield {'y': numpy.array([json.dumps(dict(request.parameters))], object)}",
    ),
}
STEPS = """
import json
import numpy as np

class Model:
    def infer(self, inputs, sequences):
        for each in sequences:
            said = {key: value for key, value in each.parameters.items() if key.startswith("x-")}
            each.state["said"] = each.state.get("said", []) + [said]
        return {"y": np.array([[json.dumps(each.state["said"])] for each in sequences], object)}
"""
STATEFUL = (
    "runtime: python\ninputs: [{name: x, dtype: FP32, shape: [-1, 1]}]\n"
    "outputs: [{name: y, dtype: BYTES, shape: [-1, 1]}]\nmax_batch_size: 4\nmin_copies: 2\n"
    "sequence: {idle_s: 600, snapshot_messages: 1000}\n"
)
PATTERN = "^x-tenant|^sequence_|^x-seen-bin"


class Mesh:
    """A router that forwards by patterns of its own, and two nodes of which one does."""

    def __init__(self, etcd: EtcdServer, models: Path, engine: str) -> None:
        wire = ("--wire", engine)
        self.router = start_router(
            etcd.address,
            *wire,
            "--grpc-header-forward-pattern",
            PATTERN,
            "--http-header-forward-pattern",
            "^X-Web|^cookie|^timeout",
        )
        own = ("--grpc-header-forward-pattern", PATTERN)
        self.near = start_node(etcd.address, "near", *wire, *own, "--label", "near=yes", models=models)
        self.far = start_node(etcd.address, "far", *wire, "--label", "far=yes", models=models)
        for each in self.processes:
            each.wait_ready()

    @property
    def processes(self) -> tuple[Process, ...]:
        return self.router, self.near, self.far


@pytest.fixture(scope="module", params=["mesh", "grpcio"])
def mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with running(tmp_path_factory.mktemp("mesh"), request.param) as found:
        yield found


@contextmanager
def running(folder: Path, engine: str = ENGINE) -> Iterator[Mesh]:
    need("etcd")
    models = folder / "models"
    for name, (yaml, body) in MODELS.items():
        python_model(models, name, yaml, body)
    (folder_of(models, "steps", STATEFUL) / "model.py").write_text(STEPS)
    etcd = EtcdServer(folder / "etcd")
    etcd.launch_and_wait()
    found = Mesh(etcd, models, engine)
    with Client(found.router.grpc, timeout_s=60) as client:
        until(lambda: len(client.models()) == len(MODELS) + 1, what="the models are known")
        until(lambda: len(client.nodes()) == 2, what="the nodes are known")
        for name in (*MODELS, "steps"):
            client.load(name)
        apply(client, "one-hop", ("a", "seen", "$x"), ("b", "seen", "a.x"))
        apply(client, "in-parts", ("a", "seen", "$x"), ("b", "far", "a.x"))
        apply(client, "alternating", ("a", "seen", "$x"), ("b", "several", "a.x"))
    yield found
    for process in found.processes:
        process.kill()
    etcd.kill()


def apply(client: Client, name: str, *steps: tuple[str, str, str]) -> None:
    made = [control.Step(name=called, model=model, inputs={"x": source}) for called, model, source in steps]
    answer = client.apply_pipeline(control.Pipeline(name=name, steps=made, outputs={"y": "b.y", "first": "a.y"}))
    assert [each.message for each in answer.problems] == []


def ask(address: str, model: str, headers: dict[str, str], rows: int = 1, **parameters: Any) -> dict[str, Any]:
    """Ask an unmodified tritonclient; return the outputs, read as JSON."""
    with triton.InferenceServerClient(address) as client:
        x = triton.InferInput("x", [rows] if model != "steps" else [rows, 1], "FP32")
        x.set_data_from_numpy(np.ones(x.shape(), np.float32))
        result = client.infer(model, [x], headers=headers, client_timeout=60, **parameters)
        names = [output.name for output in result.get_response().outputs if output.datatype == "BYTES"]
        return {name: json.loads(result.as_numpy(name).reshape(-1)[0]) for name in names}


def stream(address: str, model: str, headers: dict[str, str], messages: int = 2, **parameters: Any) -> list[Any]:
    """Ask over a stream; return what `y` was, read as JSON, of each answer, or the error."""
    found: list[Any] = []
    with triton.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: found.append((result, error)), headers=headers)
        x = triton.InferInput("x", [1] if model != "steps" else [1, 1], "FP32")
        x.set_data_from_numpy(np.ones(x.shape(), np.float32))
        for at in range(messages):
            more = {"sequence_start": at == 0} if model == "steps" else {}
            client.async_stream_infer(model, [x], **parameters, **more)
        until(lambda: len(found) >= messages, what="all are answered")
    return [str(error) if error else json.loads(result.as_numpy("y").reshape(-1)[0]) for result, error in found]


TENANT = {"x-tenant": "acme, inc."}


def test_a_model_reads_the_headers_that_match(mesh: Mesh) -> None:
    headers = {**TENANT, "x-tenant-of": "many", "x-user": "ann"}
    for _ in range(3):  # The first is learned from, the others may go a shorter way.
        assert ask(mesh.router.grpc, "seen", TENANT)["y"] == TENANT
        assert ask(mesh.router.grpc, "seen", {"x-user": "ann"})["y"] == {}
    assert ask(mesh.router.grpc, "seen", headers)["y"] == {**TENANT, "x-tenant-of": "many"}


def test_a_header_wins_over_a_parameter_of_the_same_name(mesh: Mesh) -> None:
    said = {"x-tenant": "forged", "mine": 3}
    assert ask(mesh.router.grpc, "seen", TENANT, parameters=said)["y"] == {**TENANT, "mine": 3}


def test_what_is_large_comes_with_them_too(mesh: Mesh) -> None:
    assert ask(mesh.router.grpc, "seen", TENANT, rows=500_000)["y"] == TENANT


def test_callers_of_a_node_have_the_nodes_pattern(mesh: Mesh) -> None:
    assert ask(mesh.near.grpc, "seen", TENANT)["y"] == TENANT
    assert ask(mesh.near.grpc, "seen", TENANT)["y"] == TENANT
    assert ask(mesh.far.grpc, "far", TENANT)["y"] == {}
    assert stream(mesh.near.grpc, "seen", TENANT) == [TENANT, TENANT]


def test_messages_of_a_stream_have_those_of_the_stream(mesh: Mesh) -> None:
    assert stream(mesh.router.grpc, "seen", TENANT) == [TENANT, TENANT]
    assert stream(mesh.router.grpc, "seen", {"x-user": "ann"}) == [{}, {}]


def test_models_with_several_responses_read_them(mesh: Mesh) -> None:
    assert stream(mesh.router.grpc, "several", TENANT) == [TENANT, TENANT]


@pytest.mark.parametrize("name", ["one-hop", "in-parts"])
def test_each_step_of_a_pipeline_reads_them(mesh: Mesh, name: str) -> None:
    for _ in range(3):
        assert ask(mesh.router.grpc, name, TENANT) == {"y": TENANT, "first": TENANT}
    assert stream(mesh.router.grpc, name, TENANT) == [TENANT, TENANT]
    assert ask(mesh.router.grpc, name, {}) == {"y": {}, "first": {}}


def test_steps_with_several_responses_read_them(mesh: Mesh) -> None:
    assert stream(mesh.router.grpc, "alternating", TENANT) == [TENANT, TENANT]


def test_each_step_of_a_sequence_reads_its_own(mesh: Mesh) -> None:
    address = mesh.router.grpc
    assert ask(address, "steps", TENANT, sequence_id=7, sequence_start=True)["y"] == [TENANT]
    assert ask(address, "steps", {}, sequence_id=7)["y"] == [TENANT, {}]
    assert ask(address, "steps", {"x-tenant": "b"}, sequence_id=7)["y"] == [TENANT, {}, {"x-tenant": "b"}]
    assert stream(mesh.router.grpc, "steps", TENANT, sequence_id=8) == [[TENANT], [TENANT, TENANT]]
    assert ask(mesh.near.grpc, "steps", TENANT, sequence_id=9, sequence_start=True)["y"] == [TENANT]


@pytest.mark.parametrize("name", ["seen", "several", "one-hop", "steps"])
def test_a_reserved_name_is_refused_in_tritons_words(mesh: Mesh, name: str) -> None:
    said = "Header 'sequence_id' is reserved for Triton usage and cannot be forwarded."
    headers = {"sequence_id": "7"}
    for address in (mesh.router.grpc, mesh.near.grpc):
        if name == "one-hop" and address == mesh.near.grpc:
            continue
        if name != "several":
            with pytest.raises(Exception, match=said) as caught:
                ask(address, name, headers)
            assert "INVALID_ARGUMENT" in str(caught.value)
        answers = stream(address, name, headers, sequence_id=1)
        assert all(said in each for each in answers), answers


def test_binary_headers_are_left_out(mesh: Mesh) -> None:
    assert ask(mesh.router.grpc, "seen", {"x-seen-bin": b"\0\1"})["y"] == {}  # type: ignore[dict-item] # as grpcio


def over_http(mesh: Mesh, path: str, body: Any, **headers: str) -> Any:
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"http://{mesh.router.http}/v2/models/{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_http_has_a_pattern_of_its_own(mesh: Mesh) -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}
    headers = {"X-Web": "1", "Cookie": "a=b", "X-Tenant": "acme"}
    expected = {"x-web": "1", "cookie": "a=b"}
    answer = over_http(mesh, "seen/infer", body, **headers)
    assert json.loads(answer["outputs"][0]["data"][0]) == expected
    assert json.loads(over_http(mesh, "seen/generate", {"x": 1.0}, **headers)["y"]) == expected
    assert json.loads(over_http(mesh, "several/generate", {"x": 1.0}, **headers)["y"]) == expected
    answer = over_http(mesh, "in-parts/infer", body, **headers)
    assert [json.loads(each["data"][0]) for each in answer["outputs"]] == [expected, expected]
    status, answer = over_http(mesh, "seen/infer", body, timeout="1")
    assert status == 400
    assert answer["error"] == "Header 'timeout' is reserved for Triton usage and cannot be forwarded."


def test_steps_that_are_run_again_elsewhere_read_what_they_had(tmp_path: Path) -> None:
    with running(tmp_path) as mesh:
        address, ids = mesh.router.grpc, range(1, 9)
        for id_ in ids:
            ask(address, "steps", TENANT, sequence_id=id_, sequence_start=True)
            ask(address, "steps", {"x-tenant": f"of {id_}"}, sequence_id=id_)
        mesh.near.kill()
        for id_ in ids:
            said = ask(address, "steps", {}, sequence_id=id_)["y"]
            assert said == [TENANT, {"x-tenant": f"of {id_}"}, {}]
