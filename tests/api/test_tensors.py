from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mesh.api.messages import InferTensorContents
from mesh.api.tensors import NUMPY, TensorError, decode_contents, decode_raw, dtype_of, encode_contents, encode_raw
from mesh.core.types import Dtype

NUMBERS = [dtype for dtype in Dtype if dtype not in (Dtype.BYTES, Dtype.BF16)]
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@st.composite
def arrays(draw: st.DrawFn, dtypes: Sequence[Dtype]) -> tuple[Dtype, Any]:
    dtype = draw(st.sampled_from(dtypes))
    return dtype, draw(hnp.arrays(NUMPY[dtype], shapes))


@given(arrays(NUMBERS))
def test_raw_numbers_come_back_as_they_went(case: tuple[Dtype, Any]) -> None:
    dtype, array = case
    back = decode_raw(encode_raw(array, dtype), dtype, array.shape)
    assert back.dtype == NUMPY[dtype]
    assert np.array_equal(back, array, equal_nan=array.dtype.kind == "f")
    assert dtype_of(array) is dtype


@given(arrays([dtype for dtype in NUMBERS if dtype is not Dtype.FP16]))
def test_typed_numbers_come_back_as_they_went(case: tuple[Dtype, Any]) -> None:
    dtype, array = case
    back = decode_contents(encode_contents(array, dtype), dtype, array.shape)
    assert np.array_equal(back, array, equal_nan=array.dtype.kind == "f")


@given(st.lists(st.binary(max_size=8), max_size=6))
def test_bytes_come_back_as_they_went(items: list[bytes]) -> None:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    assert decode_raw(encode_raw(array, Dtype.BYTES), Dtype.BYTES, array.shape).tolist() == items
    assert decode_contents(encode_contents(array, Dtype.BYTES), Dtype.BYTES, array.shape).tolist() == items


def test_text_is_written_as_utf8() -> None:
    array = np.array(["é", "b"])
    assert decode_raw(encode_raw(array, Dtype.BYTES), Dtype.BYTES, (2,)).tolist() == ["é".encode(), b"b"]


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (-2.0, 0xC000),
        (1.00390625, 0x3F80),
        (1.01171875, 0x3F82),
        (float("inf"), 0x7F80),
        (3.4e38, 0x7F80),
    ],
)
def test_bf16_rounds_to_the_nearest_even(value: float, bits: int) -> None:
    raw = encode_raw(np.array([value], dtype=np.float32), Dtype.BF16)
    assert int.from_bytes(raw, "little") == bits


def test_bf16_keeps_nan() -> None:
    raw = encode_raw(np.array([np.nan], dtype=np.float32), Dtype.BF16)
    assert np.isnan(decode_raw(raw, Dtype.BF16, (1,)))[0]


def test_memory_layout_does_not_matter() -> None:
    array = np.arange(12, dtype=">i4").reshape(3, 4).T
    assert decode_raw(encode_raw(array, Dtype.INT32), Dtype.INT32, (4, 3)).tolist() == array.tolist()


@given(st.sampled_from(list(Dtype)), st.binary(max_size=64), st.lists(st.integers(-2, 5), max_size=4))
def test_any_bytes_are_decoded_or_refused_with_one_error(dtype: Dtype, data: bytes, shape: list[int]) -> None:
    with suppress(TensorError):
        decode_raw(data, dtype, shape)


@given(st.sampled_from(list(Dtype)), st.binary(max_size=64), st.lists(st.integers(-2, 5), max_size=4))
def test_any_contents_are_decoded_or_refused_with_one_error(dtype: Dtype, data: bytes, shape: list[int]) -> None:
    contents = InferTensorContents(bytes_contents=[data], int_contents=[len(data)])
    with suppress(TensorError):
        decode_contents(contents, dtype, shape)


@pytest.mark.parametrize("array", [np.zeros(1, dtype=complex), np.array(["2020-01-01"], dtype="M8[D]")])
def test_types_that_the_protocol_lacks_are_refused(array: Any) -> None:
    with pytest.raises(TensorError):
        dtype_of(array)
