"""The remote runtime, with a mesh as the other server: one router's models are another's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mesh_client import Client, MeshClientError, Tensor
from tests.fixtures.mesh import Process, free_port, mesh_up, until

pytestmark = pytest.mark.timeout(120)

FLOAT = "inputs: [{name: x, dtype: FP32, shape: [-1, 2]}]\noutputs: [{name: y, dtype: FP32, shape: [-1, 2]}]\n"


def model(repository: Path, name: str, yaml: str, body: str = "") -> None:
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder.parent / "model.yaml").write_text(yaml)
    code = f"import numpy\n\nclass Model:\n    def infer(self, inputs, request):\n        {body}\n"
    (folder / ("model.py" if body else "README")).write_text(code if body else "elsewhere")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    there, ours = tmp_path_factory.mktemp("there"), tmp_path_factory.mktemp("here")
    model(there, "plus", f"runtime: python\n{FLOAT}", "return {'y': inputs['x'] + request.parameters.get('by', 1)}")
    model(there, "breaks", f"runtime: python\n{FLOAT}", "raise ValueError('no')")
    text = FLOAT.replace("FP32", "BYTES")
    model(there, "texts", f"runtime: python\n{text}", "return {'y': inputs['x'][:, ::-1]}")
    with mesh_up(there) as other:
        at = f'address: "{other.grpc}"'
        model(ours, "remote-plus", f"runtime: remote\nparameters: {{{at}, model: plus}}\n")
        model(ours, "remote-texts", f"runtime: remote\nparameters: {{{at}, model: texts}}\n{text}")
        model(ours, "remote-batched", f"runtime: remote\nmax_batch_size: 8\nparameters: {{{at}, model: plus}}\n{FLOAT}")
        model(ours, "breaks", f"runtime: remote\nparameters: {{{at}}}\n{FLOAT}")
        model(ours, "unknown", f"runtime: remote\nparameters: {{{at}, model: nobody}}\n{FLOAT}")
        model(ours, "nowhere", f"runtime: remote\nparameters: {{address: '127.0.0.1'}}\n{FLOAT}")
        model(ours, "misspelt", f"runtime: remote\nparameters: {{{at}, modle: plus}}\n{FLOAT}")
        model(ours, "never", f"runtime: remote\nparameters: {{{at}, parallel: '0'}}\n{FLOAT}")
        model(ours, "later", f"runtime: remote\nparameters: {{{at}, timeout_s: soon}}\n{FLOAT}")
        with mesh_up(ours) as process:
            with Client(process.grpc, timeout_s=60) as client:
                until(lambda: len(client.models()) == 9, what="the models are known")
            yield process


@pytest.fixture
def client(here: Process) -> Iterator[Client]:
    with Client(here.grpc, timeout_s=60) as client:
        yield client


X = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)


def test_a_remote_model_answers_like_one_of_our_own(client: Client) -> None:
    assert client.infer("remote-plus", {"x": X})["y"].tolist() == (X + 1).tolist()
    assert client.infer("remote-plus", {"x": X}, parameters={"by": 5})["y"].tolist() == (X + 5).tolist()
    metadata = client.model_metadata("remote-plus")
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [("x", "FP32", [-1, 2])]
    assert client.infer("remote-batched", {"x": X})["y"].tolist() == (X + 1).tolist()
    texts = Tensor(np.array([[b"a", b"bc"]], dtype=object), "BYTES")
    assert client.infer("remote-texts", {"x": texts})["y"].tolist() == [[b"bc", b"a"]]


def test_what_the_other_server_says_is_passed_on_with_where_it_came_from(client: Client) -> None:
    with pytest.raises(
        MeshClientError, match=r"model 'breaks' \('breaks' at 127\.0\.0\.1:\d+\): model 'breaks' raised"
    ):
        client.infer("breaks", {"x": X})


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("unknown", r"failed to load model 'unknown' \('nobody' at .*\)"),
        ("nowhere", "expected parameters.address as host:port, got '127.0.0.1'"),
        ("misspelt", r"parameters of a remote model are address, .*; got \['modle'\]"),
        ("never", "timeout_s and parallel must be above 0"),
        ("later", "expected numbers as timeout_s and parallel"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_a_sentence(client: Client, name: str, told: str) -> None:
    with pytest.raises(MeshClientError, match=told):
        client.load(name)


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    model(tmp_path, "gone", f"runtime: remote\nparameters: {{address: '127.0.0.1:{free_port()}'}}\n{FLOAT}")
    with mesh_up(tmp_path) as process, Client(process.grpc, timeout_s=60) as client:
        until(lambda: len(client.models()) == 1, what="the model is known")
        with pytest.raises(MeshClientError, match=r"failed to load model 'gone' .*(UNAVAILABLE|DEADLINE_EXCEEDED)"):
            client.load("gone")
