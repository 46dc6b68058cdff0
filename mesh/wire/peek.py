"""Reading the few fields of a ModelInferRequest that routing needs, without decoding a tensor.

The scan walks the message's top-level fields and skips each tensor by its length: O(fields), not O(bytes). As in
protobuf, the last occurrence of a field wins, so the router and the node that decodes the whole message agree.
(Protocol Buffers encoding: tag = field << 3 | wire type; wire types 0 varint, 1 64-bit, 2 length-delimited, 5 32-bit.)
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from mesh.core.errors import InvalidRequest

Parameter = bool | int | str | float

MAX_PARAMETERS = 256
"""Parameters of one request. Real requests have under ten, and each costs work before any limit can be applied."""


class PeekError(InvalidRequest):
    """The bytes are no ModelInferRequest."""

    def __init__(self, why: str) -> None:
        """Say in which way."""
        super().__init__(f"cannot parse ModelInferRequest: {why}")


@dataclass(slots=True)
class Peeked:
    """What routing reads of a request."""

    model_name: str
    model_version: str
    id: str
    parameters: Mapping[str, Parameter]
    notes: object = field(default=None, compare=False, repr=False)
    """What whoever routes it made of it; of a front that comes again, before."""


def peek(message: bytes) -> Peeked:
    """Return the leading fields of `message`. Raises `PeekError` for bytes that are no protobuf message."""
    texts = {1: b"", 2: b"", 3: b""}
    entries: list[bytes] = []
    for number, value in _fields(message):
        if number > 7:
            continue
        if not isinstance(value, _Span):
            raise PeekError(f"field {number} has a wire type that it cannot have")
        if number <= 3:
            texts[number] = message[value.start : value.end]
        elif number == 4:
            entries.append(message[value.start : value.end])
            if len(entries) > MAX_PARAMETERS:
                raise PeekError(f"more than {MAX_PARAMETERS} parameters")
    return Peeked(
        _text(texts[1], "model_name"),
        _text(texts[2], "model_version"),
        _text(texts[3], "id"),
        dict(_parameter(entry) for entry in entries) if entries else _NONE,
    )


_NONE: Mapping[str, Parameter] = {}

FRONT = frozenset({0x0A, 0x12, 0x1A, 0x22})
"""The tags of model_name, model_version, id and parameters."""


def peek_front(data: bytes, start: int, *, whole: bool) -> Peeked | None:  # noqa: PLR0912 - one loop, run per call
    """Return the routing fields of the message that begins at `start` of `data`, which may still be arriving.

    Of a `whole` message it reads what `peek` reads, only faster. Of one that is not whole it returns what stands before
    the tensors, which is where serializers write it (in the order of field numbers); None when more is needed. Raises
    `PeekError` for what `peek` has to look at: an unusual beginning, bytes that are no message. O(fields).
    """
    texts = {0x0A: b"", 0x12: b"", 0x1A: b""}
    entries: list[bytes] = []
    position, size = start, len(data)
    while position < size:
        tag = data[position]
        if size - position < 12 and not whole:
            return None
        if tag & 7 != 2 or not 7 < tag < 0x80:
            raise PeekError("an unusual field")
        length, value_at = _varint(data, position + 1)
        position = value_at + length
        if tag not in FRONT:
            if not whole:
                break
        elif position > size:
            break
        elif tag == 0x22:
            entries.append(data[value_at:position])
        else:
            texts[tag] = data[value_at:position]
    else:
        if not whole:
            return None
    if whole and position > size:
        raise PeekError("a field is cut off")
    if not whole and tag in FRONT:
        return None
    if not texts[0x0A] or len(entries) > MAX_PARAMETERS:
        raise PeekError("no name before the tensors, or too many parameters")
    return Peeked(
        _text(texts[0x0A], "model_name"),
        _text(texts[0x12], "model_version"),
        _text(texts[0x1A], "id"),
        dict(_parameter(entry) for entry in entries) if entries else _NONE,
    )


class _Span(NamedTuple):
    """A length-delimited field: where its bytes are."""

    start: int
    end: int


class _Fixed(NamedTuple):
    """A 32- or 64-bit field."""

    value: bytes


_Value = int | _Span | _Fixed


def _fields(data: bytes) -> list[tuple[int, _Value]]:
    found: list[tuple[int, _Value]] = []
    position, size = 0, len(data)
    while position < size:
        tag, position = _varint(data, position)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise PeekError("a field number is 0")
        value: _Value
        if kind == 2:
            length, position = _varint(data, position)
            value = _Span(position, position + length)
            position += length
        elif kind == 0:
            value, position = _varint(data, position)
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            value = _Fixed(data[position : position + width])
            position += width
        else:
            raise PeekError(f"field {number} has wire type {kind}")
        if position > size:
            raise PeekError(f"field {number} is cut off: it needs {position - size} more bytes")
        found.append((number, value))
    return found


def _varint(data: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        try:
            byte = data[position]
        except IndexError:
            raise PeekError("the message ends inside a number") from None
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFF_FFFF_FFFF_FFFF, position
        shift += 7
        if shift > 63:
            raise PeekError("a number is longer than 10 bytes")


def _text(data: bytes, field: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise PeekError(f"{field} is not UTF-8") from None


def _parameter(entry: bytes) -> tuple[str, Parameter]:
    key, value = "", b""
    for number, span in _fields(entry):
        if number in (1, 2):
            if not isinstance(span, _Span):
                raise PeekError("a parameter has a wire type that it cannot have")
            if number == 1:
                key = _text(entry[span.start : span.end], "a parameter's name")
            else:
                value = entry[span.start : span.end]
    return key, _choice(value)


def _choice(data: bytes) -> Parameter:
    chosen: Parameter = ""
    for number, value in _fields(data):
        if number == 1 and isinstance(value, int):
            chosen = bool(value)
        elif number == 2 and isinstance(value, int):
            chosen = value - (1 << 64) if value >> 63 else value
        elif number == 3 and isinstance(value, _Span):
            chosen = _text(data[value.start : value.end], "a parameter's text")
        elif number == 4 and isinstance(value, _Fixed) and len(value.value) == 8:
            (chosen,) = struct.unpack("<d", value.value)
        elif number == 5 and isinstance(value, int):
            chosen = value
        elif number <= 5:
            raise PeekError("a parameter's value has a wire type that it cannot have")
    return chosen
