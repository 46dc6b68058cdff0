"""MessagePack for interpreters without msgspec: the part of it that messages to and from a worker use.

A worker's own bytes alone are read with this, in the worker: the node reads with msgspec.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

Hook = Callable[[Any], "tuple[int, bytes] | Any"]
"""Given what MessagePack has no type for, returns an extension's code and bytes, or another value."""


def pack(value: Any, hook: Hook) -> bytes:
    """Return `value` as MessagePack. Raises TypeError for what neither it nor `hook` knows."""
    out = bytearray()
    _pack(value, hook, out)
    return bytes(out)


def _pack(value: Any, hook: Hook, out: bytearray) -> None:  # noqa: PLR0912 - one branch a type
    if value is None:
        out.append(0xC0)
    elif value is True or value is False:
        out.append(0xC3 if value else 0xC2)
    elif isinstance(value, int):
        _pack_int(value, out)
    elif isinstance(value, float):
        out += struct.pack(">Bd", 0xCB, value)
    elif isinstance(value, str):
        text = value.encode()
        out += struct.pack(">BI", 0xDB, len(text)) + text
    elif isinstance(value, (bytes, bytearray, memoryview)):
        out += struct.pack(">BI", 0xC6, len(value))
        out += value
    elif isinstance(value, (list, tuple)):
        out += struct.pack(">BI", 0xDD, len(value))
        for each in value:
            _pack(each, hook, out)
    elif isinstance(value, dict):
        out += struct.pack(">BI", 0xDF, len(value))
        for key, each in value.items():
            _pack(key, hook, out)
            _pack(each, hook, out)
    else:
        found = hook(value)
        if isinstance(found, tuple):
            out += struct.pack(">BIb", 0xC9, len(found[1]), found[0]) + found[1]
        else:
            _pack(found, hook, out)


def _pack_int(value: int, out: bytearray) -> None:
    if 0 <= value < 0x80:
        out.append(value)
    elif value < 0:
        out += struct.pack(">Bq", 0xD3, value)
    else:
        out += struct.pack(">BQ", 0xCF, value)


def unpack(data: bytes, hook: Callable[[int, bytes], Any]) -> Any:
    """Return the value in `data`; `hook` makes values of extensions. Raises ValueError for other bytes."""
    try:
        value, at = _unpack(memoryview(data), 0, hook)
    except (struct.error, IndexError, RecursionError) as error:
        raise ValueError(f"truncated MessagePack: {error}") from error
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes behind a MessagePack value")
    return value


_FIXED = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i",
    0xD3: ">q",
}  # fmt: skip
_LENGTHS = {
    0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xC7: ">B", 0xC8: ">H", 0xC9: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I",
    0xDC: ">H", 0xDD: ">I", 0xDE: ">H", 0xDF: ">I",
}  # fmt: skip


def _unpack(data: memoryview, at: int, hook: Callable[[int, bytes], Any]) -> tuple[Any, int]:
    kind = data[at]
    at += 1
    if kind < 0x80 or kind >= 0xE0:
        return kind if kind < 0x80 else kind - 0x100, at
    if kind in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[kind], at
    if kind in _FIXED:
        form = _FIXED[kind]
        return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)
    if kind < 0xC0:
        kind, length = (0xDF, kind & 15) if kind < 0x90 else (0xDD, kind & 15) if kind < 0xA0 else (0xDB, kind & 31)
    elif 0xD4 <= kind <= 0xD8:
        kind, length = 0xC9, 1 << (kind - 0xD4)
    elif kind in _LENGTHS:
        form = _LENGTHS[kind]
        length = struct.unpack_from(form, data, at)[0]
        at += struct.calcsize(form)
    else:
        raise ValueError(f"no MessagePack: {kind:#x}")
    return _sized(kind, length, data, at, hook)


def _sized(kind: int, length: int, data: memoryview, at: int, hook: Callable[[int, bytes], Any]) -> tuple[Any, int]:
    if kind in (0xDE, 0xDF):
        pairs = {}
        for _ in range(length):
            key, at = _unpack(data, at, hook)
            pairs[key], at = _unpack(data, at, hook)
        return pairs, at
    if kind in (0xDC, 0xDD):
        items = []
        for _ in range(length):
            item, at = _unpack(data, at, hook)
            items.append(item)
        return items, at
    code = 0
    if kind in (0xC7, 0xC8, 0xC9):
        code = struct.unpack_from(">b", data, at)[0]
        at += 1
    if at + length > len(data):
        raise ValueError(f"expected {length} bytes, got {len(data) - at}")
    raw = bytes(data[at : at + length])
    at += length
    if kind in (0xC7, 0xC8, 0xC9):
        return hook(code, raw), at
    return (raw if kind in (0xC4, 0xC5, 0xC6) else raw.decode()), at
