"""JSON elements and raw tensor data, there and back."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.api.tensors import NUMPY, decode_raw, encode_raw
from mesh.core.errors import InvalidRequest
from mesh.core.types import Dtype
from mesh.gateway import elements
from mesh.gateway.elements import FEW, read_json, read_long_json, write_json

WHOLE = [dtype for dtype in Dtype if "INT" in dtype.value]
FLOATS = [Dtype.FP16, Dtype.BF16, Dtype.FP32, Dtype.FP64]


def element(dtype: Dtype) -> st.SearchStrategy[Any]:
    """Return JSON values that are elements of a type."""
    if dtype is Dtype.BOOL:
        return st.booleans()
    if dtype is Dtype.BYTES:
        return st.text() | st.binary().map(lambda data: {"b64": base64.b64encode(data).decode()})
    if dtype in WHOLE:
        held = np.iinfo(NUMPY[dtype])
        return st.integers(int(held.min), int(held.max))
    return st.floats(width=16, allow_nan=False, allow_infinity=False) | st.none()


def held(values: list[Any], dtype: Dtype) -> bytes:
    """Return what the values mean as raw data, made another way."""
    if dtype is Dtype.BYTES:
        each = [base64.b64decode(one["b64"]) if isinstance(one, dict) else one.encode() for one in values]
        array = np.empty(len(each), object)
        array[:] = each
        return encode_raw(array, dtype)
    plain = [float("nan") if one is None else one for one in values]
    return encode_raw(np.array(plain, NUMPY[dtype]), dtype)


@pytest.mark.parametrize("dtype", Dtype)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_elements_are_what_they_mean_flat_or_nested_at_once_or_in_pieces(dtype: Dtype, data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 4))
    values = data.draw(st.lists(element(dtype), min_size=rows * columns, max_size=rows * columns))
    nested = [values[at : at + columns] for at in range(0, len(values), columns)]
    expected = held(values, dtype)
    for each in (values, nested, [nested]):
        assert read_json(json.dumps(each).encode(), "x", dtype) == expected
        assert read_long_json(b" \n" + json.dumps(each).encode(), "x", dtype) == expected


@pytest.mark.parametrize("dtype", Dtype)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_what_is_written_is_read_as_the_same(dtype: Dtype, data: st.DataObject) -> None:
    values = data.draw(st.lists(element(dtype), max_size=8))
    raw = held(values, dtype)
    told = msgspec.json.encode(write_json(raw, dtype, [len(values)]))
    again = decode_raw(read_json(told, "x", dtype), dtype, [len(values)])
    assert repr(again.tolist()) == repr(decode_raw(raw, dtype, [len(values)]).tolist())


@pytest.mark.parametrize("dtype", [Dtype.FP32, Dtype.INT64, Dtype.UINT8, Dtype.BOOL])
def test_many_elements_are_as_few(dtype: Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [at % 2 == 0 if dtype is Dtype.BOOL else at % 100 for at in range(3 * FEW)]
    text = json.dumps(values).encode()
    monkeypatch.setattr(elements, "PIECE_BYTES", 1000)
    expected = np.array(values, NUMPY[dtype]).tobytes()
    assert read_json(text, "x", dtype) == read_long_json(text, "x", dtype) == expected
    assert write_json(expected, dtype, [len(values)]) == values


REFUSED = [
    ("FP32", "5", "a list as the data of input 'x', got the number 5"),
    ("FP32", '["5"]', "expected numbers (null for NaN) as elements of input 'x' (FP32), got the text '5'"),
    ("FP32", "[true]", "got true"),
    ("FP32", "[NaN]", "expected JSON in the data of input 'x'"),
    ("FP32", "[1e300]", "numbers that FP32 can hold in input 'x', got a larger one"),
    ("FP16", "[70000]", "numbers that FP16 can hold"),
    ("FP64", "[1e999]", "expected JSON"),
    ("FP64", f"[1{'0' * 400}]", "got"),
    ("INT8", "[128]", "elements from -128 to 127 in input 'x' (INT8), got 128"),
    ("UINT64", "[-1]", "elements from 0 to 18446744073709551615 in input 'x' (UINT64), got -1"),
    ("INT64", "[9223372036854775808]", "got 9223372036854775808"),
    ("INT32", "[1.5]", "whole numbers as elements of input 'x' (INT32), got the number 1.5"),
    ("INT32", "[null]", "got null"),
    ("BOOL", "[2]", "true and false as elements of input 'x' (BOOL), got the number 2"),
    ("BYTES", "[1]", "texts"),
    ("BYTES", '[{"b64": "?"}]', "expected base64 in a 'b64' element of input 'x'"),
    ("BYTES", '[{"b64": "", "c": 1}]', "got an object"),
    ("INT32", "[[1], 2]", "nested alike everywhere"),
    ("INT32", "[[1], [2, 3]]", "rows of one length"),
    ("INT32", "[" * 40 + "1" + "]" * 40, "nested at most 32 deep"),
    ("INT32", "[" * 100_000, "nested at most 32 deep"),
    ("INT32", "[1,]", "expected JSON"),
]


@pytest.mark.parametrize(("dtype", "text", "why"), REFUSED)
def test_what_is_no_tensor_is_refused_with_a_sentence(dtype: str, text: str, why: str) -> None:
    for read in (read_json, read_long_json):
        with pytest.raises(InvalidRequest) as caught:
            read(text.encode(), "x", Dtype(dtype))
        assert why in caught.value.message


@pytest.mark.parametrize("dtype", [Dtype.INT32, Dtype.BOOL])
def test_a_whole_number_may_be_written_as_another_language_does(dtype: Dtype) -> None:
    assert read_json(b"[1.0, 0]", "x", dtype) == held([1, 0], dtype)


@pytest.mark.parametrize("dtype", Dtype)
@settings(max_examples=40, deadline=None)
@given(
    data=st.binary(max_size=60)
    | st.text('[]{},:0123456789.eE-+truefalsn" \\ub64', max_size=60).map(str.encode)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_bytes_are_elements_or_refused(dtype: Dtype, data: bytes) -> None:
    results = []
    for read in (read_json, read_long_json):
        try:
            results.append(read(data, "x", dtype))
        except InvalidRequest:
            results.append(b"refused")
    assert results[0] == results[1]
