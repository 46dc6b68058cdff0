"""Bodies of v2 requests and answers."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.api.messages import InferParameter, ModelInferRequest, ModelInferResponse
from mesh.core.errors import InvalidRequest, TooLarge
from mesh.gateway import v2_json
from mesh.gateway.v2_json import Asked, read_request, write_response

X = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}


def body(**fields: Any) -> bytes:
    return json.dumps({"inputs": [X], **fields}).encode()


def test_a_request_becomes_the_message_that_grpc_would_carry() -> None:
    parameters = {"a": True, "b": -1, "c": 1 << 63, "d": 0.5, "e": "text"}
    asked = read_request(
        body(id="7", parameters=parameters, outputs=[{"name": "y", "parameters": {"classification": 2}}]),
        None,
        "m",
        "3",
    )
    message = asked.message
    assert (message.model_name, message.model_version, message.id) == ("m", "3", "7")
    assert {name: each.WhichOneof("parameter_choice") for name, each in message.parameters.items()} == {
        "a": "bool_param",
        "b": "int64_param",
        "c": "uint64_param",
        "d": "double_param",
        "e": "string_param",
    }
    (x,) = message.inputs
    assert (x.name, x.datatype, list(x.shape)) == ("x", "FP32", [1, 2])
    assert list(message.raw_input_contents) == [b"\0\0\x80?\0\0\0@"]
    assert message.outputs[0].parameters["classification"].int64_param == 2
    assert not asked.is_binary("y")


def test_binary_tensors_come_behind_the_json_in_the_order_of_their_inputs() -> None:
    def binary(name: str, size: int) -> dict[str, Any]:
        return {"name": name, "shape": [size], "datatype": "UINT8", "parameters": {"binary_data_size": size, "own": 1}}

    head = json.dumps({"inputs": [binary("a", 3), X, binary("b", 1)], "parameters": {"binary_data_output": True}})
    asked = read_request(head.encode() + b"\1\2\3\4", len(head), "m", "")
    assert list(asked.message.raw_input_contents) == [b"\1\2\3", b"\0\0\x80?\0\0\0@", b"\4"]
    assert list(asked.message.inputs[0].parameters) == ["own"]
    assert "binary_data_output" not in asked.message.parameters
    assert asked.is_binary("anything")


def test_each_output_may_have_its_own_form() -> None:
    outputs = [{"name": "y", "parameters": {"binary_data": False}}, {"name": "z"}]
    asked = read_request(body(outputs=outputs, parameters={"binary_data_output": True}), None, "m", "")
    assert (asked.is_binary("y"), asked.is_binary("z")) == (False, True)


BINARY = {"name": "x", "shape": [2], "datatype": "UINT8", "parameters": {"binary_data_size": 2}}
REFUSED: list[tuple[bytes, int | None, str]] = [
    (b"", None, "expected a v2 request as JSON"),
    (b"[]", None, "Expected `object`, got `array`"),
    (b"\xff", None, "expected a v2 request as JSON"),
    (b'{"inputs": ' + b"[" * 100_000, None, "expected a v2 request as JSON"),
    (b"{}", None, "missing required field `inputs`"),
    (b'{"inputs": [{"name": "x"}]}', None, "missing required field `shape` - at `$.inputs[0]`"),
    (body(inputs=[{**X, "datatype": "FLOAT"}]), None, "in inputs[0].datatype, got 'FLOAT'"),
    (body(inputs=[{**X, "shape": [1 << 70]}]), None, "sizes of 64 bits in inputs[0].shape"),
    (body(inputs=[{k: v for k, v in X.items() if k != "data"}]), None, "unable to find data for input tensor 'x'"),
    (body(parameters={"p": [1]}), None, "$.parameters"),
    (body(parameters={"p": 1 << 64}), None, "a number of 64 bits in parameters.p"),
    (body(parameters={"binary_data_output": 1}), None, "true or false in parameters.binary_data_output, got 1"),
    (body(), 3, "expected a v2 request as JSON"),
    (body(), 3000, "expected Inference-Header-Content-Length of 0 to"),
    (body(inputs=[BINARY]), None, "expected 2 bytes for inputs[0] behind the JSON, got 0"),
    (body(inputs=[BINARY]) + b"123", len(body(inputs=[BINARY])), "expected 2 bytes behind the JSON"),
    (body(inputs=[{**BINARY, "data": [1, 2]}]) + b"12", len(body(inputs=[{**BINARY, "data": [1, 2]}])), "got both"),
    (body(inputs=[{**BINARY, "parameters": {"binary_data_size": -1}}]), None, "a number of bytes in inputs[0]"),
    (body(inputs=[{**BINARY, "parameters": {"binary_data_size": True}}]), None, "a number of bytes in inputs[0]"),
]


@pytest.mark.parametrize(("data", "json_bytes", "why"), REFUSED)
def test_what_is_no_request_is_refused_with_its_place(data: bytes, json_bytes: int | None, why: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_request(data, json_bytes, "m", "")
    assert why in caught.value.message


def test_more_json_than_triton_takes_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v2_json, "MAX_JSON_BYTES", 20)
    with pytest.raises(TooLarge, match="at most 20 bytes of JSON, got"):
        read_request(body(), None, "m", "")


@settings(max_examples=300, deadline=None)
@given(
    at=st.integers(0, 400),
    put=st.binary(max_size=6),
    cut=st.integers(0, 500),
    json_bytes=st.none() | st.integers(-1, 500),
)
def test_a_changed_request_is_read_or_refused(at: int, put: bytes, cut: int, json_bytes: int | None) -> None:
    whole = bytearray(body(id="7", parameters={"a": 1}, outputs=[{"name": "y"}], inputs=[X, BINARY]) + b"12")
    whole[at % len(whole) : at % len(whole) + len(put)] = put
    with suppress(InvalidRequest, TooLarge):
        read_request(bytes(whole[:cut]), json_bytes, "m", "")


def test_an_answer_has_numbers_where_they_are_wanted_and_bytes_behind_where_those_are() -> None:
    response = ModelInferResponse(
        model_name="m",
        model_version="1",
        id="7",
        parameters={"p": InferParameter(int64_param=3)},
        outputs=[
            ModelInferResponse.InferOutputTensor(name="y", datatype="FP32", shape=[2]),
            ModelInferResponse.InferOutputTensor(name="z", datatype="BYTES", shape=[2]),
        ],
        raw_output_contents=[b"\0\0\x80?\0\0\xc0\x7f", b"\1\0\0\0a\1\0\0\0\xff"],
    )
    told, json_bytes = write_response(response, Asked(ModelInferRequest(), False, {}))
    assert json_bytes is None
    assert json.loads(told) == {
        "model_name": "m",
        "model_version": "1",
        "id": "7",
        "parameters": {"p": 3},
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [2], "data": [1.0, None]},
            {"name": "z", "datatype": "BYTES", "shape": [2], "data": ["a", {"b64": "/w=="}]},
        ],
    }
    told, json_bytes = write_response(response, Asked(ModelInferRequest(), True, {"y": False}))
    assert json_bytes is not None
    assert told[json_bytes:] == b"\1\0\0\0a\1\0\0\0\xff"
    assert json.loads(told[:json_bytes])["outputs"][1]["parameters"] == {"binary_data_size": 10}
