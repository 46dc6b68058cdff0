"""Between numpy arrays and the tensors of KServe v2, raw and typed.

Owns the byte layout: raw tensors are row-major and little-endian, BYTES elements are a 4-byte little-endian length and
that many bytes (KServe v2, "Tensor Data"), FP16 and BF16 have no typed contents. Leaves to its callers which tensors a
model wants and the words a client reads: `TensorError` carries the numbers for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mesh.api.bytes_elements import PIECE, TEXT_KINDS, TensorError, as_bytes, check, join, rest, split
from mesh.api.messages import InferTensorContents
from mesh.core.types import ITEM_BYTES, Dtype

__all__ = [
    "CONTENTS_FIELD",
    "MAX_AXES",
    "NUMPY",
    "Array",
    "TensorError",
    "check_raw",
    "decode_contents",
    "decode_raw",
    "dtype_of",
    "encode_contents",
    "encode_raw",
    "taken",
]

Array = np.ndarray[Any, np.dtype[Any]]

NUMPY: Mapping[Dtype, np.dtype[Any]] = {
    Dtype.BOOL: np.dtype(np.bool_),
    Dtype.UINT8: np.dtype("u1"),
    Dtype.UINT16: np.dtype("<u2"),
    Dtype.UINT32: np.dtype("<u4"),
    Dtype.UINT64: np.dtype("<u8"),
    Dtype.INT8: np.dtype("i1"),
    Dtype.INT16: np.dtype("<i2"),
    Dtype.INT32: np.dtype("<i4"),
    Dtype.INT64: np.dtype("<i8"),
    Dtype.FP16: np.dtype("<f2"),
    Dtype.FP32: np.dtype("<f4"),
    Dtype.FP64: np.dtype("<f8"),
    Dtype.BF16: np.dtype("<f4"),
    Dtype.BYTES: np.dtype(object),
}
"""The array element type that holds each tensor type. numpy has no bfloat16: BF16 values are held as float32."""

CONTENTS_FIELD: Mapping[Dtype, str] = {
    Dtype.BOOL: "bool_contents",
    Dtype.UINT8: "uint_contents",
    Dtype.UINT16: "uint_contents",
    Dtype.UINT32: "uint_contents",
    Dtype.UINT64: "uint64_contents",
    Dtype.INT8: "int_contents",
    Dtype.INT16: "int_contents",
    Dtype.INT32: "int_contents",
    Dtype.INT64: "int64_contents",
    Dtype.FP32: "fp32_contents",
    Dtype.FP64: "fp64_contents",
    Dtype.BYTES: "bytes_contents",
}
"""The field of InferTensorContents that carries each type; FP16 and BF16 are absent, they travel raw only."""

_BY_KIND: Mapping[tuple[str, int], Dtype] = {
    (held.kind, held.itemsize): dtype for dtype, held in NUMPY.items() if dtype not in {Dtype.BF16, Dtype.BYTES}
}
_BY_DTYPE: Mapping[np.dtype[Any], Dtype] = {
    held: dtype for dtype, held in NUMPY.items() if dtype not in {Dtype.BF16, Dtype.BYTES}
}
"""The usual ones at once: a dtype's name and kind are made anew at every look."""

MAX_AXES = 32
"""What every numpy that we run on can index (numpy 1: 32, numpy 2: 64)."""


def decode_raw(
    buffer: bytes | memoryview, dtype: Dtype, shape: Sequence[int], between: Callable[[], None] = rest
) -> Array:
    """Return raw tensor data as a read-only array of `NUMPY[dtype]` with `shape`.

    A view of `buffer`, which the array keeps alive; BF16 and BYTES (an object array of `bytes`) are copies, and so is a
    BOOL tensor with bytes other than 0 and 1, which all count as true. Raises `TensorError` for any bytes that do not
    fit, and nothing else. `between` is called between pieces of a long BYTES tensor.
    """
    view = memoryview(buffer)
    count = _count(shape)
    if dtype is Dtype.BYTES:
        return _shaped(split(view, count, between), shape)
    expected = count * ITEM_BYTES[dtype]
    if view.nbytes != expected:
        msg = f"expected {expected} bytes for {dtype} {_show(shape)}, got {view.nbytes}"
        raise TensorError(msg, expected=expected, got=view.nbytes, unit="bytes")
    if dtype is Dtype.BF16:
        flat: Array = (np.frombuffer(view, "<u2").astype("<u4") << 16).view("<f4")
    elif dtype is Dtype.BOOL:
        octets = np.frombuffer(view, np.uint8)
        flat = octets != 0 if octets.size and octets.max() > 1 else octets.view(np.bool_)
    else:
        flat = np.frombuffer(view, NUMPY[dtype])
    return _shaped(flat, shape)


def check_raw(buffer: bytes | memoryview, dtype: Dtype, shape: Sequence[int]) -> None:
    """Raise `TensorError` for raw tensor data that `decode_raw` refuses, without taking BYTES apart."""
    if dtype is not Dtype.BYTES:
        decode_raw(buffer, dtype, shape)
        return
    count = _count(shape)
    check(memoryview(buffer), count)
    if not count:
        _shaped(np.empty(0, object), shape)


def encode_raw(array: Array, dtype: Dtype, between: Callable[[], None] = rest) -> bytes:
    """Return `array` as raw tensor data of `dtype`: row-major and little-endian whatever the array's own layout.

    The array must hold `dtype` already (`dtype_of`): nothing is converted silently. BF16 takes float32, float16 or
    bfloat16 values and rounds to nearest even; BYTES takes str (as UTF-8), bytes or objects of either. Raises
    `TensorError`.
    """
    if dtype is Dtype.BYTES:
        return join(array, between)
    if dtype is Dtype.BF16:
        return _bf16_bits(array).tobytes()
    _check_holds(array, dtype)
    return array.astype(NUMPY[dtype], copy=False).tobytes()


def taken(array: Array, between: Callable[[], None] = rest) -> Array:
    """Return an array of texts as `decode_raw` gives one: read-only, of `bytes`. Raises `TensorError`."""
    if array.dtype.kind not in TEXT_KINDS:
        raise TensorError(f"expected an array of str, bytes or objects of either for BYTES, got {array.dtype}")
    flat = array.reshape(-1)
    found: Array = np.empty(flat.size, object)
    for start in range(0, flat.size, PIECE):
        found[start : start + PIECE] = as_bytes(flat[start : start + PIECE])
        between()
    return _shaped(found, array.shape)


def decode_contents(
    contents: InferTensorContents, dtype: Dtype, shape: Sequence[int], between: Callable[[], None] = rest
) -> Array:
    """Return typed contents as a read-only array of `NUMPY[dtype]` with `shape`; only the field of `dtype` is read.

    Raises `TensorError` for a wrong number of elements, a value out of `dtype`'s range, FP16 and BF16.
    """
    values = getattr(contents, _contents_field(dtype))
    count = _count(shape)
    if len(values) != count:
        msg = f"expected {count} elements for {dtype} {_show(shape)} in {CONTENTS_FIELD[dtype]}, got {len(values)}"
        raise TensorError(msg, expected=count, got=len(values), unit="elements")
    if dtype is Dtype.BYTES:
        return _shaped(_taken(values, count, between), shape)
    held = NUMPY[dtype]
    if dtype not in {Dtype.INT8, Dtype.INT16, Dtype.UINT8, Dtype.UINT16}:
        return _shaped(np.fromiter(values, held, count), shape)
    wide = np.fromiter(values, np.int64, count)
    low, high = np.iinfo(held).min, np.iinfo(held).max
    if count and (wide.min() < low or wide.max() > high):
        worst = int(wide.min()) if wide.min() < low else int(wide.max())
        msg = f"expected {dtype} elements from {low} to {high}, got {worst}"
        raise TensorError(msg)
    return _shaped(wide.astype(held), shape)


def encode_contents(array: Array, dtype: Dtype, between: Callable[[], None] = rest) -> InferTensorContents:
    """Return `array` as typed contents of `dtype`. Raises `TensorError` as `encode_raw` does, and for FP16 and BF16."""
    field = _contents_field(dtype)
    contents = InferTensorContents()
    if dtype is Dtype.BYTES:
        flat = taken(array, between).reshape(-1)
        for start in range(0, flat.size, PIECE):
            contents.bytes_contents.extend(flat[start : start + PIECE].tolist())
        return contents
    _check_holds(array, dtype)
    getattr(contents, field).extend(array.ravel().tolist())
    return contents


def dtype_of(array: Array) -> Dtype:
    """Return the tensor type that `array` holds; str, bytes and object arrays are BYTES. Raises `TensorError`."""
    held = array.dtype
    known = _BY_DTYPE.get(held)
    if known is not None:
        return known
    if held.kind in TEXT_KINDS:
        return Dtype.BYTES
    if held.name == "bfloat16":
        return Dtype.BF16
    dtype = _BY_KIND.get((held.kind, held.itemsize))
    if dtype is None:
        msg = (
            f"expected an array of bool, integers up to 64 bits, float16, float32, float64, str or bytes, got "
            f"{held}: KServe v2 has no tensor type for it, convert it first"
        )
        raise TensorError(msg)
    return dtype


def _check_holds(array: Array, dtype: Dtype) -> None:
    if dtype_of(array) is not dtype:
        msg = (
            f"expected an array of {NUMPY[dtype]} for {dtype}, got {array.dtype}: "
            f"convert it with .astype({NUMPY[dtype].name!r})"
        )
        raise TensorError(msg)


def _bf16_bits(array: Array) -> Array:
    if array.dtype.name not in {"float32", "float16", "bfloat16"}:
        msg = f"expected an array of float32 for BF16, got {array.dtype}: convert it with .astype('float32')"
        raise TensorError(msg)
    bits = np.ascontiguousarray(array, "<f4").view("<u4")
    # Add just under half of the dropped part, and one more when the kept part is odd: nearest, ties to even.
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    # Rounding would carry a NaN's payload into infinity or zero: keep its top bits and make it quiet instead.
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, (bits >> 16) | 0x40, rounded).astype("<u2")


def _taken(values: Sequence[bytes], count: int, between: Callable[[], None]) -> Array:
    found: Array = np.empty(count, object)
    for start in range(0, count, PIECE):
        # Filled, not built from the list: numpy would read a list of equally long bytes as text.
        found[start : start + PIECE] = list(values[start : start + PIECE])
        between()
    return found


def _contents_field(dtype: Dtype) -> str:
    field = CONTENTS_FIELD.get(dtype)
    if field is None:
        msg = f"{dtype} has no typed contents: send it in raw_input_contents"
        raise TensorError(msg)
    return field


def _count(shape: Sequence[int]) -> int:
    if len(shape) > MAX_AXES:
        msg = f"expected a shape of at most {MAX_AXES} axes, got {len(shape)}"
        raise TensorError(msg)
    if any(size < 0 for size in shape):
        msg = f"expected a shape of sizes from 0 up, got {_show(shape)}"
        raise TensorError(msg)
    return math.prod(shape)


def _shaped(flat: Array, shape: Sequence[int]) -> Array:
    try:
        array = flat.reshape(tuple(shape))
    except (ValueError, OverflowError) as error:
        # The counts agree by now: an axis beyond an index's range beside an empty one.
        msg = f"expected a shape that an array can have, got {_show(shape)}: {error}"
        raise TensorError(msg) from error
    array.flags.writeable = False
    return array


def _show(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"
