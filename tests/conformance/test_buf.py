"""buf curl against a router: gRPC through connect-go, which is no grpc library, with messages known by reflection."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fixtures.mesh import MODELS, Process, mesh_up
from tests.fixtures.tools import need

ROW = {"name": "x", "datatype": "FP32", "shape": [1, 4], "contents": {"fp32Contents": [6.7, 3.0, 5.2, 2.3]}}


@pytest.fixture(scope="module")
def mesh() -> Iterator[Process]:
    need("buf")
    with mesh_up(MODELS / "demo") as process:
        yield process


def buf(mesh: Process, method: str, *messages: Any, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Call a method of the inference service with messages as JSON."""
    given = "\n".join(json.dumps(message) for message in messages)
    command = [need("buf"), "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--reflect", *flags]
    url = f"http://{mesh.grpc}/inference.GRPCInferenceService/{method}"
    return subprocess.run(
        [*command, "--data", "@-", url], input=given, capture_output=True, text=True, timeout=100, check=False
    )


def answers(done: subprocess.CompletedProcess[str]) -> list[Any]:
    """Return the messages that buf printed, one JSON value behind the other."""
    assert done.returncode == 0, done.stderr
    found, rest = [], done.stdout.strip()
    while rest:
        value, end = json.JSONDecoder().raw_decode(rest)
        found.append(value)
        rest = rest[end:].lstrip()
    return found


def test_buf_lists_the_methods_by_reflection(mesh: Process) -> None:
    command = [need("buf"), "curl", "--protocol", "grpc", "--list-methods", f"http://{mesh.grpc}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert {"inference.GRPCInferenceService/ModelStreamInfer", "mesh.v1.MeshControl/ListNodes"} <= set(
        done.stdout.split()
    )


@pytest.mark.parametrize("version", ["grpc-v1", "grpc-v1alpha"])
def test_both_versions_of_reflection_describe_an_empty_request(mesh: Process, version: str) -> None:
    done = buf(mesh, "ServerReady", {}, flags=("--reflect-protocol", version))
    assert answers(done) == [{"ready": True}]


def test_a_model_infers(mesh: Process) -> None:
    (answer,) = answers(buf(mesh, "ModelInfer", {"modelName": "iris", "id": "7", "inputs": [ROW]}))
    assert (answer["modelName"], answer["id"]) == ("iris", "7")
    assert answer["outputs"][0] == {"name": "label", "datatype": "INT64", "shape": ["1"]}


def test_a_stream_answers_each_message_in_order(mesh: Process) -> None:
    messages = [{"modelName": "iris", "id": str(index), "inputs": [ROW]} for index in range(100)]
    found = answers(buf(mesh, "ModelStreamInfer", *messages))
    assert [each["inferResponse"]["id"] for each in found] == [str(index) for index in range(100)]
    assert not any("errorMessage" in each for each in found)


def test_an_error_is_its_status_with_its_text_unchanged(mesh: Process) -> None:
    done = buf(mesh, "ModelInfer", {"modelName": "ünknown 100%"})
    # buf's exit code is the gRPC code, three bits to the left.
    assert done.returncode == 5 << 3
    error = json.loads(done.stderr)
    assert error == {"code": "not_found", "message": "Request for unknown model: 'ünknown 100%' is not found"}


def test_a_header_reaches_the_router(mesh: Process) -> None:
    message = {"modelName": "nothing", "inputs": [ROW]}
    (answer,) = answers(buf(mesh, "ModelInfer", message, flags=("--header", "mm-model-id: iris")))
    assert answer["modelName"] == "iris"
