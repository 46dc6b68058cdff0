"""The raw tensors of a large request, read where they came: protobuf would copy them, and again for each look.

Top-level fields are walked by tag and length; the tensors of field 7 become views, and the rest is parsed as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mesh.api.messages import ModelInferRequest
from mesh.api.question import decode
from mesh.api.stream import varint

RAW_INPUT_TAG: Final = b"\x3a"
"""Of ModelInferRequest.raw_input_contents (7, length-delimited)."""

LARGE_BYTES: Final = 64 * 1024
"""Of a message of which a copy costs more than a walk over its fields in Python."""

Raws = Sequence[bytes | memoryview]

_RAW: Final = RAW_INPUT_TAG[0]
_FIXED: Final = {1: 8, 5: 4}
"""Wire types of fixed length, and that length."""


def apart(message: bytes) -> tuple[bytes, list[memoryview]] | None:
    """Return a message without its raw tensors, and these as views of it; None for what is no message.

    O(fields), whatever is in them.
    """
    whole, kept, raws = memoryview(message), [], []
    at, begin, size = 0, 0, len(message)
    while at < size:
        start = at
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 2:
            length, at = _varint(message, at)
            at += length
        elif kind == 0:
            at = _varint(message, at)[1]
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            return None
        if at > size:
            return None
        if tag == _RAW:
            kept.append(whole[begin:start])
            raws.append(whole[at - length : at])
            begin = at
    kept.append(whole[begin:])
    return b"".join(kept), raws


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return a number and where it ends: behind the message when it is cut off, or no number."""
    number = shift = 0
    for place in range(at, min(at + 10, len(message))):
        byte = message[place]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place + 1
        shift += 7
    return 0, len(message) + 1


def decode_front(message: bytes) -> ModelInferRequest:
    """Return a request; a large one without its raw tensors, which `raws_of` has. Raises `InvalidRequest`."""
    found = apart(message) if len(message) >= LARGE_BYTES else None
    return decode(message if found is None else found[0])


def raws_of(message: bytes, request: ModelInferRequest) -> Raws:
    """Return the raw tensors of a request that `decode_front` returned for `message`."""
    found = apart(message) if len(message) >= LARGE_BYTES and not request.raw_input_contents else None
    return request.raw_input_contents if found is None else found[1]


def front_bytes(message: bytes, raws: Raws) -> int:
    """Return how many bytes stand before the raw tensors, if these are what the message ends with; else -1."""
    if len(message) >= LARGE_BYTES:
        found = apart(message)
        # Field by field: where the rest stands at the beginning, in one piece, the tensors are all that follows.
        return len(found[0]) if found is not None and message.startswith(found[0]) else -1
    behind = b"".join([RAW_INPUT_TAG + varint(len(raw)) + raw for raw in raws])
    return len(message) - len(behind) if message.endswith(behind) else -1
