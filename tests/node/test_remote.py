"""The remote runtime, with a mesh as the other server: one router's models are another's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mesh_client import Client, MeshClientError, Tensor
from tests.fixtures.mesh import Process, free_port, mesh_up, until
from tests.fixtures.models import folder_of, python_model

pytestmark = pytest.mark.timeout(120)

FLOAT = "inputs: [{name: x, dtype: FP32, shape: [-1, 2]}]\noutputs: [{name: y, dtype: FP32, shape: [-1, 2]}]\n"


def remote(repository: Path, name: str, yaml: str) -> None:
    """Write a model that is elsewhere."""
    (folder_of(repository, name, f"runtime: remote\n{yaml}") / "README").write_text("elsewhere")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    there, ours = tmp_path_factory.mktemp("there"), tmp_path_factory.mktemp("here")
    python_model(there, "plus", FLOAT, "return {'y': inputs['x'] + request.parameters.get('by', 1)}")
    python_model(there, "breaks", FLOAT, "raise ValueError('no')")
    text = FLOAT.replace("FP32", "BYTES")
    python_model(there, "texts", text, "return {'y': inputs['x'][:, ::-1]}")
    with mesh_up(there) as other:
        at = f'address: "{other.grpc}"'
        remote(ours, "remote-plus", f"parameters: {{{at}, model: plus}}\n")
        remote(ours, "remote-texts", f"parameters: {{{at}, model: texts}}\n{text}")
        remote(ours, "remote-batched", f"max_batch_size: 8\nparameters: {{{at}, model: plus}}\n{FLOAT}")
        remote(ours, "breaks", f"parameters: {{{at}}}\n{FLOAT}")
        remote(ours, "unknown", f"parameters: {{{at}, model: nobody}}\n{FLOAT}")
        remote(ours, "nowhere", f"parameters: {{address: '127.0.0.1'}}\n{FLOAT}")
        remote(ours, "misspelt", f"parameters: {{{at}, modle: plus}}\n{FLOAT}")
        remote(ours, "never", f"parameters: {{{at}, parallel: '0'}}\n{FLOAT}")
        remote(ours, "later", f"parameters: {{{at}, timeout_s: soon}}\n{FLOAT}")
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
    remote(tmp_path, "gone", f"parameters: {{address: '127.0.0.1:{free_port()}'}}\n{FLOAT}")
    with mesh_up(tmp_path) as process, Client(process.grpc, timeout_s=60) as client:
        until(lambda: len(client.models()) == 1, what="the model is known")
        with pytest.raises(MeshClientError, match=r"failed to load model 'gone' .*(UNAVAILABLE|DEADLINE_EXCEEDED)"):
            client.load("gone")
