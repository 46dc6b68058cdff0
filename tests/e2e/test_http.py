"""KServe v2 and Triton's extensions over HTTP against a real mesh: unmodified tritonclient.http, and gRPC beside it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from mesh.core.types import Dtype
from mesh_client import Client
from tests.fixtures.mesh import MODELS, Process, mesh_up
from tests.fixtures.models import python_model

ECHO = "inputs: [{name: x, dtype: %s, shape: [-1, -1]}]\noutputs: [{name: y, dtype: %s, shape: [-1, -1]}]\n"
DTYPES = [dtype.value for dtype in Dtype]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("echo")
    for dtype in DTYPES:
        python_model(folder, f"echo_{dtype}", ECHO % (dtype, dtype), 'return {"y": inputs["x"]}')
    with mesh_up(MODELS / "demo", MODELS / "triton-examples", MODELS / "triton-decoupled", folder) as process:
        yield process


@pytest.fixture
def client(mesh: Process) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(mesh.http, network_timeout=60, connection_timeout=60)
    yield client
    client.close()


def ask(mesh: Process, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Return status and JSON (or text) of an answer."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{mesh.http}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=100) as answer:
            status, text, kind = answer.status, answer.read(), answer.headers["content-type"]
    except urllib.error.HTTPError as error:
        with error:
            status, text, kind = error.code, error.read(), error.headers["content-type"]
    return status, json.loads(text) if kind == "application/json" else text.decode()


def simple(*, binary: bool) -> list[Any]:
    inputs = []
    for name, array in (("INPUT0", np.arange(16)), ("INPUT1", np.ones(16))):
        each = triton.InferInput(name, [1, 16], "INT32")
        each.set_data_from_numpy(array.astype(np.int32).reshape(1, 16), binary_data=binary)
        inputs.append(each)
    return inputs


@pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_infers_with_and_without_binary_tensors_packed_or_not(
    client: triton.InferenceServerClient, binary: bool, packed: str | None
) -> None:
    outputs = [
        triton.InferRequestedOutput("OUTPUT0", binary_data=binary),
        triton.InferRequestedOutput("OUTPUT1", binary_data=not binary),
    ]
    result = client.infer(
        "simple",
        simple(binary=binary),
        outputs=outputs,
        request_id="7",
        request_compression_algorithm=packed,
        response_compression_algorithm=packed,
    )
    assert result.as_numpy("OUTPUT0").tolist() == [[at + 1 for at in range(16)]]
    assert result.as_numpy("OUTPUT1").tolist() == [[at - 1 for at in range(16)]]
    assert result.get_response()["id"] == "7"


def test_tritonclient_classifies_and_names_versions(client: triton.InferenceServerClient) -> None:
    image = triton.InferInput("data_0", [3, 224, 224], "FP32")
    image.set_data_from_numpy(np.zeros((3, 224, 224), np.float32))
    output = triton.InferRequestedOutput("fc6_1", class_count=3)
    result = client.infer("densenet_onnx", [image], "1", outputs=[output])
    top = result.as_numpy("fc6_1")
    assert top.shape == (3,)
    assert top[0].decode().count(":") == 2
    with pytest.raises(InferenceServerException, match="version 9 is not found") as caught:
        client.infer("simple", simple(binary=True), "9")
    assert caught.value.status() == "404"


def test_tritonclient_asks_about_server_and_models(client: triton.InferenceServerClient, mesh: Process) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("simple")
    assert client.is_model_ready("simple", "1")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata()["name"] == "mesh"
    client.infer("simple", simple(binary=True))
    with triton_grpc.InferenceServerClient(mesh.grpc) as twin:
        assert client.get_model_metadata("simple") == {
            **twin.get_model_metadata("simple", as_json=True),
            **{
                side: [
                    {**each, "shape": [int(axis) for axis in each["shape"]]}
                    for each in twin.get_model_metadata("simple", as_json=True)[side]
                ]
                for side in ("inputs", "outputs")
            },
        }
        assert {each["name"] for each in client.get_model_repository_index()} == {
            each["name"] for each in twin.get_model_repository_index(as_json=True)["models"]
        }
    config = client.get_model_config("simple")
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (8, [16])
    (stats,) = client.get_inference_statistics("simple")["model_stats"]
    assert stats["inference_stats"]["success"]["count"] >= 1
    assert "simple" in {each["name"] for each in client.get_inference_statistics()["model_stats"]}


def test_tritonclient_loads_and_unloads(client: triton.InferenceServerClient) -> None:
    client.load_model("simple_int8")
    assert client.is_model_ready("simple_int8")
    client.unload_model("simple_int8")
    assert not client.is_model_ready("simple_int8")
    with pytest.raises(InferenceServerException, match="has no available versions"):
        client.infer("simple_int8", simple(binary=True))
    client.load_model("simple_int8", config='{"max_batch_size": 4}')
    assert client.get_model_config("simple_int8")["max_batch_size"] == 4
    with pytest.raises(InferenceServerException, match="failed to load 'nothing'"):
        client.load_model("nothing")


def test_tritonclient_changes_settings(client: triton.InferenceServerClient) -> None:
    assert client.get_trace_settings()["trace_level"] == ["OFF"]
    assert client.update_trace_settings(settings={"trace_level": ["OFF"]})["trace_level"] == ["OFF"]
    assert client.update_log_settings({"log_verbose_level": 1})["log_verbose_level"] == 1
    assert client.update_log_settings({"log_verbose_level": 0})["log_verbose_level"] == 0
    with pytest.raises(InferenceServerException, match="trace setting 'log_frequency' is not offered"):
        client.update_trace_settings(settings={"log_frequency": "1"})


def test_tritonclient_runs_a_sequence_and_asks_side_by_side(client: triton.InferenceServerClient) -> None:
    def step(value: int, **flags: Any) -> int:
        each = triton.InferInput("INPUT", [1, 1], "INT32")
        each.set_data_from_numpy(np.array([[value]], np.int32))
        return int(client.infer("simple_sequence", [each], sequence_id=5, **flags).as_numpy("OUTPUT")[0, 0])

    assert [step(3, sequence_start=True), step(4), step(5, sequence_end=True)] == [4, 4, 5]
    pending = [client.async_infer("simple", simple(binary=True)) for _ in range(4)]
    assert [each.get_result().as_numpy("OUTPUT0")[0, 0] for each in pending] == [1] * 4


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_json_and_grpc_give_equal_answers_or_equal_errors(mesh: Process, dtype: str, data: st.DataObject) -> None:
    shape = [data.draw(st.integers(0, 3)), data.draw(st.integers(1, 3))]
    count = shape[0] * shape[1] + data.draw(st.sampled_from([0, 0, 0, 1]))
    element: st.SearchStrategy[Any]
    if dtype == "BYTES":
        element = st.text(max_size=5)
    elif dtype == "BOOL":
        element = st.booleans()
    elif "INT" in dtype:
        held = np.iinfo(dtype.lower())
        element = st.integers(int(held.min), int(held.max))
    else:
        element = st.floats(width=16, allow_nan=False, allow_infinity=False)
    values = data.draw(st.lists(element, min_size=count, max_size=count))
    version = data.draw(st.sampled_from(["", "1", "2"]))
    path = f"/v2/models/echo_{dtype}{f'/versions/{version}' if version else ''}/infer"
    status, told = ask(mesh, path, {"inputs": [{"name": "x", "shape": shape, "datatype": dtype, "data": values}]})
    given_ = triton_grpc.InferInput("x", shape, dtype)
    array = _array(values, dtype)
    given_._data = None
    given_._raw_content = _raw(array, dtype)
    with triton_grpc.InferenceServerClient(mesh.grpc) as twin:
        answer, error = _outcome(lambda: twin.infer(f"echo_{dtype}", [given_], version))
        if error is not None:
            assert status in (400, 404)
            assert told["error"] == error.message()
        else:
            assert status == 200, told
            (y,) = told["outputs"]
            assert y["shape"] == shape
            raw = answer.get_response().raw_output_contents[0]
            assert _raw(_array(y["data"], dtype), dtype) == raw


def _outcome(infer: Callable[[], Any]) -> tuple[Any, InferenceServerException | None]:
    try:
        return infer(), None
    except InferenceServerException as error:
        return None, error


def _array(values: list[Any], dtype: str) -> Any:
    kind: Any = {"BOOL": "?", "BYTES": object, "FP16": "f2", "FP32": "f4", "FP64": "f8", "BF16": "f4"}.get(
        dtype, dtype.lower()
    )
    return np.array([value.encode() for value in values] if dtype == "BYTES" else values, kind)


def _raw(array: Any, dtype: str) -> bytes:
    from mesh.api.tensors import encode_raw

    return encode_raw(array.reshape(-1), Dtype(dtype))


def test_bytes_that_are_no_text_have_a_form(mesh: Process) -> None:
    data = ["é", {"b64": "/w=="}]
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "BYTES", "data": data}]}
    status, told = ask(mesh, "/v2/models/echo_BYTES/infer", body)
    assert (status, told["outputs"][0]["data"]) == (200, data)


def test_a_name_in_a_path_may_be_encoded(mesh: Process) -> None:
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [2]}]}
    for tail in ("infer", "versions/1/infer"):
        status, told = ask(mesh, f"/v2/models/echo%5FFP32/{tail}", body)
        assert (status, told["model_name"]) == (200, "echo_FP32"), told


def test_generate_takes_one_object_and_gives_one(mesh: Process) -> None:
    status, told = ask(
        mesh, "/v2/models/simple_string/generate", {"INPUT0": ["1"] * 16, "INPUT1": ["2"] * 16, "id": "3"}
    )
    assert (status, told["OUTPUT0"], told["id"]) == (200, ["3"] * 16, "3")
    status, told = ask(mesh, "/v2/models/repeat_int32/generate", {"IN": [1, 2], "DELAY": [0, 0], "WAIT": 0})
    assert status == 400
    assert "generate expects model to produce exactly 1 response" in told["error"]
    assert ask(mesh, "/v2/models/nothing/generate", {})[0] == 404
    assert ask(mesh, "/v2/models/simple_string/generate", {"INPUT0": [1]})[0] == 400


def test_generate_stream_sends_events_as_they_come(mesh: Process) -> None:
    status, told = ask(mesh, "/v2/models/repeat_int32/generate_stream", {"IN": [4, 5], "DELAY": [0, 0], "WAIT": 0})
    assert status == 200
    events = [json.loads(line.removeprefix("data: ")) for line in told.strip().split("\n\n")]
    assert [(each["OUT"], each["IDX"]) for each in events] == [(4, 0), (5, 1)]
    asked = {"PROMPT": "the mesh ", "parameters": {"max_tokens": 20, "temperature": 0.4, "seed": 1}}
    _, told = ask(mesh, "/v2/models/prose/generate_stream", asked)
    text = "".join(json.loads(line.removeprefix("data: "))["TEXT"] for line in told.strip().split("\n\n"))
    with Client(mesh.grpc) as client:
        prompt = {"PROMPT": np.array([["the mesh "]], object)}
        parameters = {"max_tokens": 20, "temperature": 0.4, "seed": 1}
        responses = client.generate("prose", prompt, parameters=parameters)
        assert text == "".join(each["TEXT"][0, 0].decode() for each in responses)
    assert ask(mesh, "/v2/models/nothing/generate_stream", {})[0] == 404
    status, told = ask(mesh, "/v2/models/repeat_int32/generate_stream", {"IN": [1], "DELAY": ["x"], "WAIT": 0})
    assert (status, "whole numbers as elements of input 'DELAY'" in told["error"]) == (400, True)


def test_a_deadline_is_kept(mesh: Process) -> None:
    body = {"IN": [1], "DELAY": [60_000], "WAIT": 0}
    status, told = ask(mesh, "/v2/models/repeat_int32/generate_stream", body, **{"x-request-timeout-ms": "300"})
    assert (status, "deadline" in told["error"].lower()) == (504, True)
