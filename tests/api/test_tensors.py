"""Tensors come back as they went, raw and typed; what does not fit is one error, whatever the bytes."""

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


def bf16_value(bits: int) -> float:
    """Return the value of bfloat16 bits; one step past the largest stands where the next power of two would be."""
    if bits & 0x7FFF == 0x7F80:
        return 2.0**128 if bits < 0x8000 else -(2.0**128)
    return float(np.array([bits << 16], dtype=np.uint32).view(np.float32)[0])


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_bf16_is_the_nearest_of_its_two_neighbours(value: float) -> None:
    below = int(np.array([value], dtype=np.float32).view(np.uint32)[0]) >> 16
    # IEEE 754-2008 4.3.1: the nearer one, of two as near the even one. A float64 holds both distances exactly.
    nearest = min((below, below + 1), key=lambda bits: (abs(bf16_value(bits) - value), bits & 1))
    raw = encode_raw(np.array([value], dtype=np.float32), Dtype.BF16)
    assert int.from_bytes(raw, "little") == nearest


@given(st.integers(0, 0xFFFF))
def test_every_bf16_value_comes_back_as_it_went(bits: int) -> None:
    raw = bits.to_bytes(2, "little")
    array = decode_raw(raw, Dtype.BF16, (1,))
    back = encode_raw(array, Dtype.BF16)
    if np.isnan(array[0]):
        assert np.isnan(decode_raw(back, Dtype.BF16, (1,)))[0]
    else:
        assert back == raw


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0xFF800001])
def test_bf16_keeps_nan(bits: int) -> None:
    raw = encode_raw(np.array([bits], dtype=np.uint32).view(np.float32), Dtype.BF16)
    assert np.isnan(decode_raw(raw, Dtype.BF16, (1,)))[0]


def test_memory_layout_does_not_matter() -> None:
    array = np.arange(12, dtype=">i4").reshape(3, 4).T
    assert decode_raw(encode_raw(array, Dtype.INT32), Dtype.INT32, (4, 3)).tolist() == array.tolist()


@given(st.sampled_from(list(Dtype)), st.binary(max_size=64), st.lists(st.integers(-2, 5), max_size=4))
def test_any_bytes_are_decoded_or_refused_with_one_error(dtype: Dtype, data: bytes, shape: list[int]) -> None:
    with suppress(TensorError):
        decode_raw(data, dtype, shape)


CONTENTS = st.builds(
    InferTensorContents,
    bool_contents=st.lists(st.booleans(), max_size=4),
    int_contents=st.lists(st.integers(-(1 << 31), (1 << 31) - 1), max_size=4),
    int64_contents=st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=4),
    uint_contents=st.lists(st.integers(0, (1 << 32) - 1), max_size=4),
    uint64_contents=st.lists(st.integers(0, (1 << 64) - 1), max_size=4),
    fp32_contents=st.lists(st.floats(width=32), max_size=4),
    fp64_contents=st.lists(st.floats(), max_size=4),
    bytes_contents=st.lists(st.binary(max_size=4), max_size=4),
)


@given(st.sampled_from(list(Dtype)), CONTENTS, st.lists(st.integers(-2, 1 << 63), max_size=3) | st.tuples(st.just(4)))
def test_any_contents_are_decoded_or_refused_with_one_error(dtype: Dtype, contents: Any, shape: Sequence[int]) -> None:
    with suppress(TensorError):
        array = decode_contents(contents, dtype, shape)
        assert array.shape == tuple(shape)
        assert array.dtype == NUMPY[dtype]


@pytest.mark.parametrize("array", [np.zeros(1, dtype=complex), np.array(["2020-01-01"], dtype="M8[D]")])
def test_types_that_the_protocol_lacks_are_refused(array: Any) -> None:
    with pytest.raises(TensorError):
        dtype_of(array)
