from __future__ import annotations

import numpy as np
import pytest

from mesh.api.messages import InferTensorContents, ModelInferRequest
from mesh.core.errors import InvalidRequest
from mesh.core.types import Dtype, TensorSpec
from mesh.node.validate import read_inputs

PAIR = (TensorSpec("a", Dtype.INT32, (-1, 2)), TensorSpec("b", Dtype.INT32, (-1, 2)))
TEXT = (TensorSpec("t", Dtype.BYTES, (-1, 2)),)

Tensor = ModelInferRequest.InferInputTensor


def int_input(name: str, rows: int = 1, datatype: str = "INT32", shape: tuple[int, ...] | None = None) -> Tensor:
    return Tensor(name=name, datatype=datatype, shape=shape or (rows, 2))


def refusal(request: ModelInferRequest, specs: tuple[TensorSpec, ...] = PAIR, max_batch_size: int = 8) -> str:
    with pytest.raises(InvalidRequest) as caught:
        read_inputs(request, specs, "m", max_batch_size)
    return caught.value.message


def test_raw_inputs_are_read_in_order_without_a_copy() -> None:
    raws = [np.array([[1, 2]], "<i4").tobytes(), np.array([[3, 4]], "<i4").tobytes()]
    request = ModelInferRequest(inputs=[int_input("b"), int_input("a")], raw_input_contents=raws)
    arrays, rows = read_inputs(request, PAIR, "m", 8)
    assert {name: array.tolist() for name, array in arrays.items()} == {"b": [[1, 2]], "a": [[3, 4]]}
    assert rows == 1
    assert not arrays["a"].flags.owndata


def test_typed_contents_are_read() -> None:
    request = ModelInferRequest(inputs=[int_input("a"), int_input("b")])
    for tensor in request.inputs:
        tensor.contents.CopyFrom(InferTensorContents(int_contents=[7, 8]))
    arrays, _ = read_inputs(request, PAIR, "m", 8)
    assert arrays["b"].tolist() == [[7, 8]]


def test_an_optional_input_may_be_left_out() -> None:
    specs = (PAIR[0], TensorSpec("b", Dtype.INT32, (-1, 2), optional=True))
    arrays, _ = read_inputs(ModelInferRequest(inputs=[int_input("a")], raw_input_contents=[b"\0" * 8]), specs, "m", 8)
    assert list(arrays) == ["a"]


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (
            ModelInferRequest(inputs=[int_input("a")], raw_input_contents=[b"\0" * 8]),
            "expected 2 inputs but got 1 inputs for model 'm'. Got input(s) ['a'], but missing required input(s) ['b']",
        ),
        (
            ModelInferRequest(inputs=[int_input("a"), int_input("z")]),
            "unexpected inference input 'z' for model 'm'",
        ),
        (
            ModelInferRequest(inputs=[int_input("a", datatype="FP32"), int_input("b")]),
            "inference input 'a' data-type is 'FP32', but model 'm' expects 'INT32'",
        ),
        (
            ModelInferRequest(inputs=[int_input("a", shape=(1, 3)), int_input("b")]),
            "unexpected shape for input 'a' for model 'm'. Expected [-1,2], got [1,3]",
        ),
        (
            ModelInferRequest(inputs=[int_input("a", shape=(2,)), int_input("b")]),
            "unexpected shape for input 'a' for model 'm'. Expected [-1,2], got [2]",
        ),
        (
            ModelInferRequest(inputs=[int_input("a", shape=(-1, 2)), int_input("b")]),
            "unexpected shape for input 'a' for model 'm'. Expected [-1,2], got [-1,2]",
        ),
        (
            ModelInferRequest(inputs=[Tensor(name="a", datatype="INT32"), int_input("b")]),
            "input 'a' has no shape but model requires batch dimension for 'm'",
        ),
        (
            ModelInferRequest(inputs=[int_input("a", 9), int_input("b", 9)]),
            "inference request batch-size must be <= 8 for 'm'",
        ),
        (
            ModelInferRequest(
                inputs=[int_input("a", 1), int_input("b", 2)], raw_input_contents=[b"\0" * 8, b"\0" * 16]
            ),
            "input 'b' batch size does not match other inputs for 'm': got 2 rows, the others have 1",
        ),
        (
            ModelInferRequest(inputs=[int_input("a"), int_input("b")], raw_input_contents=[b"\0" * 8, b"\0" * 12]),
            "input byte size mismatch for input 'b' for model 'm'. Expected 8, got 12",
        ),
        (
            ModelInferRequest(inputs=[int_input("a"), int_input("b")], raw_input_contents=[b"\0" * 8]),
            "unable to find data for input tensor 'b' for model 'm' in request",
        ),
        (
            ModelInferRequest(inputs=[int_input("a"), int_input("b")]),
            "unable to find data for input tensor 'a' for model 'm' in request",
        ),
        (
            ModelInferRequest(inputs=[int_input("a"), int_input("b")], raw_input_contents=[b"\0" * 8] * 3),
            "expected 2 raw inputs for model 'm', one per input; got 3",
        ),
        (
            ModelInferRequest(inputs=[int_input("a"), int_input("a"), int_input("b")]),
            "input 'a' already exists in request for model 'm'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_request_is_told_in_tritons_words(request_: ModelInferRequest, text: str) -> None:
    assert text in refusal(request_)


def test_a_wrong_number_of_strings_is_told() -> None:
    raw = b"\x01\0\0\0a"
    request = ModelInferRequest(inputs=[Tensor(name="t", datatype="BYTES", shape=(1, 2))], raw_input_contents=[raw])
    assert "expected 2 string elements for input 't' for model 'm', got 1" in refusal(request, TEXT)
