"""The elements of BYTES tensors: taken apart and put together fast, in pieces between which others get their turn.

An element is a 4-byte little-endian length and that many bytes (KServe v2, "Tensor Data"). A million short strings take
some 0.2 s of one core to take apart and 0.1 s to put together.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, Literal

import numpy as np

from mesh.core.errors import InvalidRequest

Array = np.ndarray[Any, np.dtype[Any]]

PIECE: Final = 8192
"""Elements that are handled at a time: one to two milliseconds."""

TEXT_KINDS: Final = frozenset("OSUT")
"""numpy's kinds of arrays that can hold BYTES: objects, fixed bytes, fixed str and (numpy 2) variable str."""

_LENGTH: Final = struct.Struct("<I")
_HEADS: Final = tuple(_LENGTH.pack(length) for length in range(1024))
"""The lengths of short elements, ready."""
EQUAL_FROM: Final = 64
"""Elements from which it pays to look whether all are equally long."""


class TensorError(InvalidRequest):
    """A tensor's data do not fit its type and shape.

    `expected` and `got` are counts of `unit`; all three are None when the fault is no count.
    """

    def __init__(
        self,
        message: str,
        *,
        expected: int | None = None,
        got: int | None = None,
        unit: Literal["bytes", "elements"] | None = None,
    ) -> None:
        super().__init__(message)
        self.expected = expected
        self.got = got
        self.unit = unit


def rest() -> None:
    """Do nothing between two pieces."""


def split(view: memoryview, count: int, between: Callable[[], None] = rest) -> Array:
    """Return the `count` elements as an object array of `bytes`. Raises `TensorError` for any other bytes."""
    if view.nbytes < count * _LENGTH.size:
        # No more elements than lengths fit: refuse before a claimed shape costs time.
        raise _too_few(count, _octets(view))
    if count == 1 and view.nbytes == 4 + _LENGTH.unpack_from(view)[0]:
        one: Array = np.empty(1, object)
        one[0] = view[4:].tobytes()
        return one
    octets = _octets(view)
    equal = _split_equal(octets, count, between) if count >= EQUAL_FROM else None
    return _split_any(octets, count, between) if equal is None else equal


def check(view: memoryview, count: int) -> None:
    """Raise `TensorError` as `split` does, without taking the elements."""
    octets = _octets(view)
    if not _lengths_are_equal(octets, count):
        _check(octets, count)


def join(array: Array, between: Callable[[], None] = rest) -> bytes:
    """Return the elements of an array of str (as UTF-8), bytes or objects of either. Raises `TensorError`."""
    if array.dtype.kind not in TEXT_KINDS:
        raise TensorError(f"expected an array of str, bytes or objects of either for BYTES, got {array.dtype}")
    flat = array.reshape(-1)
    if flat.size == 1:
        (item,) = as_bytes(flat)
        return _head(len(item)) + item
    made: list[bytes] = []
    for start in range(0, flat.size, PIECE):
        if start:
            between()
        items = as_bytes(flat[start : start + PIECE])
        lengths = list(map(len, items))
        parts: list[bytes] = [b""] * (2 * len(items))
        parts[1::2] = items
        parts[::2] = map(_HEADS.__getitem__ if max(lengths) < len(_HEADS) else _head, lengths)
        made.append(b"".join(parts))
    return made[0] if len(made) == 1 else b"".join(made)


def _head(length: int) -> bytes:
    if length > 0xFFFFFFFF:
        raise TensorError(f"expected BYTES elements under 4 GiB, got one of {length} bytes")
    return _LENGTH.pack(length)


def as_bytes(flat: Array) -> list[bytes]:
    """Return the elements of an array with one axis as `bytes`. Raises `TensorError`."""
    items: list[Any] = flat.tolist()
    kinds = set(map(type, items))
    if kinds <= {bytes}:
        return items
    if kinds == {str}:
        try:
            return list(map(str.encode, items))
        except UnicodeEncodeError:
            pass  # One by one, to say which.
    return [_bytes_of(item) for item in items]


def _bytes_of(item: object) -> bytes:
    if isinstance(item, str):
        try:
            return item.encode()
        except UnicodeEncodeError as error:
            said = f"expected str elements that UTF-8 can carry, got {item[:100]!r}: pass bytes instead"
            raise TensorError(said) from error
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    raise TensorError(f"expected str or bytes elements for BYTES, got {type(item).__name__}: convert them first")


def _octets(view: memoryview) -> bytes:
    whole = view.obj
    return whole if type(whole) is bytes and len(whole) == view.nbytes else view.tobytes()


def _lengths_are_equal(octets: bytes, count: int) -> bool:
    if count < EQUAL_FROM or len(octets) % count:
        return False
    size = len(octets) // count
    if size < _LENGTH.size or octets[: _LENGTH.size] != (size - _LENGTH.size).to_bytes(_LENGTH.size, "little"):
        return False
    heads = np.ndarray((count,), "<u4", octets, 0, (size,))
    return bool((heads == size - _LENGTH.size).all())


def _split_equal(octets: bytes, count: int, between: Callable[[], None]) -> Array | None:
    """Return the elements when all are equally long, else None."""
    if not _lengths_are_equal(octets, count):
        return None
    size = len(octets) // count
    found: Array = np.empty(count, object)
    if size == _LENGTH.size:
        found.fill(b"")
        return found
    rows = np.frombuffer(octets, np.uint8).reshape(count, size)
    for start in range(0, count, PIECE):
        if start:
            between()
        piece = np.ascontiguousarray(rows[start : start + PIECE, _LENGTH.size :])
        found[start : start + PIECE] = piece.view(f"V{size - _LENGTH.size}").reshape(-1).tolist()
    return found


def _split_any(octets: bytes, count: int, between: Callable[[], None]) -> Array:
    found: Array = np.empty(count, object)
    unpack, at = _LENGTH.unpack_from, 0
    for start in range(0, count, PIECE):
        if start:
            between()
        items: list[bytes] = []
        append = items.append
        try:
            for _ in range(min(PIECE, count - start)):
                (length,) = unpack(octets, at)
                at += 4
                end = at + length
                append(octets[at:end])
                at = end
        except struct.error:
            # The last one was cut short, or there are fewer: the words for it take another look.
            _check(octets, count)
            raise
        found[start : start + PIECE] = items
    if at != len(octets):
        _check(octets, count)
    return found


def _check(octets: bytes, count: int) -> None:
    size = len(octets)
    if size < count * _LENGTH.size:
        raise _too_few(count, octets)
    unpack, at, seen = _LENGTH.unpack_from, 0, 0
    while at < size:
        if size - at < _LENGTH.size:
            left = size - at
            said = f"expected 4 bytes of length before BYTES element {seen}, got {left}"
            raise TensorError(said, expected=_LENGTH.size, got=left, unit="bytes")
        (length,) = unpack(octets, at)
        at += 4
        if length > size - at:
            said = f"expected {length} bytes for BYTES element {seen}, got {size - at}"
            raise TensorError(said, expected=length, got=size - at, unit="bytes")
        at += length
        seen += 1
    if seen != count:
        said = f"expected {count} BYTES elements, got {seen}"
        raise TensorError(said, expected=count, got=seen, unit="elements")


def _too_few(count: int, octets: bytes) -> TensorError:
    at = got = 0
    while at + _LENGTH.size <= len(octets):
        at += _LENGTH.size + _LENGTH.unpack_from(octets, at)[0]
        got += at <= len(octets)
    said = f"expected {count} BYTES elements, got {got} in {len(octets)} bytes"
    return TensorError(said, expected=count, got=got, unit="elements")
