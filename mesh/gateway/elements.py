"""Between the elements of JSON tensors, nested or flat, and raw tensor data (KServe v2 REST, "Tensor Data").

JSON has no form for three things, so they have one here, alike in both directions: a number that is not finite is
null (read as NaN), a BYTES element that is not UTF-8 is `{"b64": "..."}` (TensorFlow Serving's form), and a 64-bit
integer is a number, whatever the reader's language makes of it.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np

from mesh.api.tensors import MAX_AXES, NUMPY, Array, decode_raw, encode_raw
from mesh.core.errors import InvalidRequest
from mesh.core.types import ITEM_BYTES, Dtype

B64: Final = "b64"
PIECE_BYTES: Final = 64 * 1024
"""JSON that is read at a time in a thread: a millisecond's work."""

BAD_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are no JSON of the type that was asked for."""

_FLAT: Final[Mapping[Dtype, msgspec.json.Decoder[Any]]] = {
    **dict.fromkeys((Dtype.FP16, Dtype.BF16, Dtype.FP32, Dtype.FP64), msgspec.json.Decoder(list[float])),
    **{dtype: msgspec.json.Decoder(list[int]) for dtype in Dtype if "INT" in dtype.value},
    Dtype.BOOL: msgspec.json.Decoder(list[bool]),
    Dtype.BYTES: msgspec.json.Decoder(list[str]),
}
"""Readers of what comes most: flat lists of elements of one kind. What they refuse is read with care, and explained."""

_FLOATS: Final = frozenset({Dtype.FP16, Dtype.BF16, Dtype.FP32, Dtype.FP64})


def read_json(data: bytes | msgspec.Raw, name: str, dtype: Dtype) -> bytes:
    """Return the elements in JSON `data` of input `name` as raw tensor data of `dtype`.

    How many there must be is the model's to say. Raises `InvalidRequest` for anything but a list, of lists of one
    length each where it is nested, of elements of `dtype` in its range.
    """
    try:
        flat = _FLAT[dtype].decode(data)
    except BAD_JSON:
        flat = [_element(each, name, dtype) for each in _flattened(_any(data, name), name)]
    return _packed(flat, name, dtype)


def read_long_json(data: bytes | msgspec.Raw, name: str, dtype: Dtype) -> bytes:
    """Return what `read_json` does, in pieces where that can be, for a thread beside an event loop.

    A decoder holds the interpreter's lock to its end: pieces of a flat list of numbers let others have it between.
    """
    view = memoryview(data)
    whole = bytes(view).strip()
    if dtype is Dtype.BYTES or not whole.startswith(b"[") or not whole.endswith(b"]") or b"[" in whole[1:]:
        return read_json(data, name, dtype)
    made, at = [], 1
    while at < len(whole):
        end = whole.find(b",", at + PIECE_BYTES)
        end = len(whole) - 1 if end < 0 else end
        made.append(read_json(b"[%b]" % whole[at:end], name, dtype))
        if end < len(whole) - 1 and not whole[end + 1 : -1].strip():
            raise InvalidRequest(f"expected an element behind the last comma in the data of input '{name}'")
        at = end + 1
    return b"".join(made)


def _any(data: bytes | msgspec.Raw, name: str) -> Any:
    try:
        return msgspec.json.decode(data)
    except RecursionError as error:
        raise _too_deep(name) from error
    except BAD_JSON as error:
        raise InvalidRequest(f"expected JSON in the data of input '{name}': {error}") from error


def _too_deep(name: str) -> InvalidRequest:
    return InvalidRequest(f"expected data of input '{name}' nested at most {MAX_AXES} deep, got deeper ones")


def _flattened(data: Any, name: str) -> list[Any]:
    """Return the elements in row-major order. Raises `InvalidRequest` where rows differ in length or depth."""
    if not isinstance(data, list):
        raise InvalidRequest(f"expected a list as the data of input '{name}', got {_kind(data)}")
    flat: list[Any] = data
    for _ in range(MAX_AXES):
        nested = sum(isinstance(each, list) for each in flat)
        if not nested:
            return flat
        if nested != len(flat):
            raise InvalidRequest(f"expected the data of input '{name}' to be nested alike everywhere")
        if len({len(each) for each in flat}) > 1:
            raise InvalidRequest(f"expected rows of one length in the data of input '{name}', got different ones")
        flat = [element for each in flat for element in each]
    raise _too_deep(name)


def _element(value: Any, name: str, dtype: Dtype) -> Any:
    """Return an element as `NUMPY[dtype]` takes it. Raises `InvalidRequest`."""
    kind = type(value)
    if kind is bool or dtype is Dtype.BOOL:
        if dtype is Dtype.BOOL and (kind is bool or value in (0, 1)):
            return bool(value)
    elif dtype is Dtype.BYTES:
        if kind is str:
            return value
        if kind is dict and list(value) == [B64] and isinstance(value[B64], str):
            return _from_base64(value[B64], name)
    elif dtype in _FLOATS:
        if value is None or kind in (int, float):
            return float("nan") if value is None else value
    elif kind is int or (kind is float and value.is_integer()):
        return int(value)
    raise InvalidRequest(f"expected {_WANTED[dtype]} as elements of input '{name}' ({dtype}), got {_kind(value)}")


def _from_base64(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InvalidRequest(f"expected base64 in a '{B64}' element of input '{name}': {error}") from error


FEW: Final = 4096
"""Elements up to which `struct` packs a list faster than numpy makes an array of it."""
_LETTER: Final[Mapping[Dtype, str]] = {
    Dtype.BOOL: "?",
    Dtype.UINT8: "B",
    Dtype.UINT16: "H",
    Dtype.UINT32: "I",
    Dtype.UINT64: "Q",
    Dtype.INT8: "b",
    Dtype.INT16: "h",
    Dtype.INT32: "i",
    Dtype.INT64: "q",
    Dtype.FP32: "f",
    Dtype.FP64: "d",
}
"""The letters of `struct`. It refuses what is out of range; FP16 and BF16 are numpy's."""

_WANTED: Final[Mapping[Dtype, str]] = {
    **{dtype: "whole numbers" for dtype in Dtype if "INT" in dtype.value},
    **dict.fromkeys(_FLOATS, "numbers (null for NaN)"),
    Dtype.BOOL: "true and false",
    Dtype.BYTES: 'texts (or {"b64": "..."} for bytes that are no text)',
}


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {value[:40]!r}"
        case list():
            return "a list"
    return "an object"


def _packed(flat: list[Any], name: str, dtype: Dtype) -> bytes:
    if dtype is Dtype.BYTES:
        texts: Array = np.empty(len(flat), object)
        texts[:] = flat
        return encode_raw(texts, dtype)
    letter = _LETTER.get(dtype)
    if letter is not None and len(flat) <= FEW:
        try:
            return struct.pack(f"<{len(flat)}{letter}", *flat)
        except (struct.error, OverflowError):
            pass  # Out of range: below it is said which.
    if dtype is Dtype.BOOL:
        return np.array(flat, np.bool_).tobytes()
    if dtype in _FLOATS:
        return _floats(flat, name, dtype)
    held = NUMPY[dtype]
    low, high = int(np.iinfo(held).min), int(np.iinfo(held).max)
    if flat and not (low <= min(flat) and max(flat) <= high):
        worst = min(flat) if min(flat) < low else max(flat)
        raise InvalidRequest(f"expected elements from {low} to {high} in input '{name}' ({dtype}), got {worst}")
    return np.array(flat, held).tobytes()


def _floats(flat: list[Any], name: str, dtype: Dtype) -> bytes:
    try:
        wide = np.array(flat, np.float64)
    except OverflowError:
        raise InvalidRequest(f"expected numbers that {dtype} can hold in input '{name}', got a larger one") from None
    if dtype is Dtype.FP64:
        return wide.astype("<f8", copy=False).tobytes()
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = wide.astype(NUMPY[dtype])
    if np.isinf(narrow).any() and not np.isinf(wide[np.isinf(narrow)]).all():
        raise InvalidRequest(f"expected numbers that {dtype} can hold in input '{name}', got a larger one")
    return encode_raw(narrow, dtype)


def write_json(raw: bytes, dtype: Dtype, shape: list[int]) -> list[Any]:
    """Return raw tensor data as a flat list for JSON. Raises `TensorError` for data that are no such tensor."""
    letter, count = _LETTER.get(dtype), math.prod(shape)
    if letter is not None and dtype is not Dtype.BOOL and count <= FEW and len(raw) == count * ITEM_BYTES[dtype]:
        return list(struct.unpack(f"<{count}{letter}", raw))
    flat: list[Any] = decode_raw(raw, dtype, shape).reshape(-1).tolist()
    return [_text(each) for each in flat] if dtype is Dtype.BYTES else flat


def _text(element: bytes) -> str | dict[str, str]:
    try:
        return element.decode()
    except UnicodeDecodeError:
        return {B64: base64.b64encode(element).decode("ascii")}
