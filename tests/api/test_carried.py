"""Tensors are carried as they came, taken apart and put together without a loss, and refused when they do not fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mesh.api.carried import Carried, read_tensors, request_message, response_message, stacked
from mesh.api.messages import ModelInferRequest, ModelInferResponse
from mesh.api.tensors import NUMPY, decode_raw, encode_contents, encode_raw
from mesh.core.errors import InvalidRequest
from mesh.core.types import Dtype

FIXED = [dtype for dtype in Dtype if dtype not in {Dtype.BYTES, Dtype.BF16, Dtype.FP16}]
shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> Carried:
    shape = draw(shapes)
    count = int(np.prod(shape, dtype=int))
    dtype = draw(st.sampled_from([*FIXED, Dtype.BYTES]))
    if dtype is Dtype.BYTES:
        items = np.empty(count, object)
        items[:] = [draw(st.binary(max_size=5)) for _ in range(count)]
        return Carried(dtype, shape, encode_raw(items.reshape(shape), dtype))
    values = draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
    return Carried(dtype, shape, encode_raw(np.array(values).reshape(shape).astype(NUMPY[dtype]), dtype))


@given(st.dictionaries(st.text(min_size=1, max_size=3), tensors(), max_size=3))
def test_what_is_written_is_read_again(given_: dict[str, Carried]) -> None:
    request = request_message("m", "1", given_, {"flag": True, "count": 2, "share": 0.5, "text": "a"})
    assert read_tensors(ModelInferRequest.FromString(request.SerializeToString())) == given_
    assert request.parameters["flag"].bool_param
    assert request.parameters["count"].int64_param == 2
    for typed in (False, True):
        response = response_message("m", "1", "id", given_, typed=typed)
        assert read_tensors(ModelInferResponse.FromString(response.SerializeToString())) == given_


@given(tensors())
def test_typed_contents_are_carried_like_raw_ones(tensor: Carried) -> None:
    request = ModelInferRequest()
    array = decode_raw(tensor.raw, tensor.dtype, tensor.shape)
    request.inputs.add(
        name="x", datatype=tensor.dtype.value, shape=tensor.shape, contents=encode_contents(array, tensor.dtype)
    )
    assert read_tensors(request) == {"x": tensor}


@given(tensors().filter(lambda tensor: bool(tensor.shape)))
def test_elements_stack_to_what_they_were_taken_from(tensor: Carried) -> None:
    elements = tensor.elements()
    assert len(elements) == tensor.shape[0]
    assert all(each.shape == tensor.shape[1:] for each in elements)
    assert stacked(elements) == tensor


def test_what_has_no_first_axis_and_what_differs_is_refused() -> None:
    one = Carried(Dtype.INT8, (), b"\1")
    with pytest.raises(InvalidRequest, match="expected a tensor with an axis"):
        one.elements()
    with pytest.raises(InvalidRequest, match=r"of one type and shape to stack, got INT8 \[1\], INT8 \[\]"):
        stacked([one, Carried(Dtype.INT8, (1,), b"\1")])
    with pytest.raises(InvalidRequest, match="got none"):
        stacked([])


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        (Carried(Dtype.INT64, (1, 1), (7).to_bytes(8, "little")), 7),
        (Carried(Dtype.BOOL, (), b"\1"), True),
        (Carried(Dtype.BYTES, (1,), b"\2\0\0\0ab"), "ab"),
    ],
)
def test_the_only_element_is_compared(tensor: Carried, value: object) -> None:
    assert tensor.item() == value


def test_more_than_one_element_cannot_be_compared() -> None:
    with pytest.raises(InvalidRequest, match="one element to compare, got 2"):
        Carried(Dtype.INT8, (2,), b"\1\2").item()


@given(st.binary(max_size=200))
def test_any_bytes_are_tensors_or_refused(data: bytes) -> None:
    try:
        message = ModelInferRequest.FromString(data)
    except Exception:  # noqa: BLE001 - protobuf's own error: nothing came to be read
        return
    _read_or_refuse(message)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["FP32", "BYTES", "BOOL", "nonsense", ""]),
            st.lists(st.integers(-2, 2**40), max_size=4),
            st.binary(max_size=16),
        ),
        max_size=3,
    )
)
@example([("FP32", [0, 22757, 22757, 4_452_456_822], b"")])
def test_tensors_that_do_not_fit_are_refused(parts: list[tuple[str, list[int], bytes]]) -> None:
    request = ModelInferRequest()
    for index, (datatype, shape, raw) in enumerate(parts):
        request.inputs.add(name=f"x{index}", datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    _read_or_refuse(request)


def _read_or_refuse(request: ModelInferRequest) -> None:
    try:
        found = read_tensors(request)
    except InvalidRequest:
        return
    for tensor in found.values():
        decode_raw(tensor.raw, tensor.dtype, tensor.shape)
