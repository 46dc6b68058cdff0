"""The state of a sequence as bytes: what a node tells a router, a router another node, and a client keeps.

MessagePack, with arrays as an extension. Reading it runs no code and makes nothing but plain values and numeric arrays,
whatever the bytes are: a client may hand in what it likes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from mesh.core.errors import InvalidRequest, ModelFailed

FORMAT: Final = 1
_ARRAY: Final = 1
"""The extension's code: an array as [dtype, shape, bytes], row-major and little-endian."""
DTYPES: Final = {kind.str: kind for kind in (np.dtype(f"<{each}") for each in "?bhiqBHIQefdFD")}
"""numpy's numeric types by the names that it gives them, little-endian: all that an array here may hold.

Names from outside are looked up here and nowhere else: what `numpy.dtype` makes of a text is a language of its own.
"""
DIGEST_CHARS: Final = 16
"""Of the model's digest: enough to tell the files of one model from others of its own."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was told."""

    digest: str
    """The first `DIGEST_CHARS` of the digest of the model's files."""
    count: int
    """Steps of the sequence that are behind it, or responses of a generation."""
    state: Any
    done: bool
    """Whether it is that of a generation which made its last response."""


def encode_snapshot(state: Any, *, count: int, digest: str, done: bool = False) -> bytes:
    """Return a state as bytes. Raises `ModelFailed` for what cannot be carried."""
    try:
        return _ENCODER.encode((FORMAT, digest[:DIGEST_CHARS], count, state, done))
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise ModelFailed(
            f"the state of a sequence cannot be kept: expected None, numbers, text, bytes, numeric arrays, and lists "
            f"and dicts of them; {error}"
        ) from error


def decode_snapshot(data: bytes) -> Snapshot:
    """Return what `encode_snapshot` was given. Raises `InvalidRequest` for any other bytes."""
    try:
        found = _DECODER.decode(data)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError, OverflowError, MemoryError) as error:
        raise InvalidRequest(f"expected the state of a sequence, as a response gave it: {error}") from error
    if not isinstance(found, list) or [type(each) for each in found[:3]] != [int, str, int] or len(found) != 5:
        raise InvalidRequest("expected the state of a sequence, as a response gave it; got something else")
    if found[0] != FORMAT or found[2] < 0:
        raise InvalidRequest(f"expected a state of format {FORMAT}, got one of format {found[0]}")
    return Snapshot(found[1], found[2], found[3], found[4] is True)


def _to_wire(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        wanted = DTYPES.get(value.dtype.newbyteorder("<").str)
        if wanted is None:
            raise TypeError(f"got an array of {value.dtype}")
        little = value.astype(wanted, copy=False)
        return msgspec.msgpack.Ext(_ARRAY, _PLAIN.encode((little.dtype.str, little.shape, little.tobytes())))
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"got a {type(value).__name__}")


def _from_wire(code: int, data: memoryview) -> Any:
    if code != _ARRAY:
        raise ValueError(f"an extension with code {code}")
    kind, shape, raw = _PARTS.decode(data)
    dtype = DTYPES.get(kind)
    if dtype is None or any(size < 0 for size in shape):
        raise ValueError(f"an array of {kind} {shape}")
    # A copy: a state must not hold the message that it came in.
    return np.frombuffer(raw, dtype).reshape(shape).copy()


_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=_to_wire)
_PLAIN: Final = msgspec.msgpack.Encoder()
_PARTS: Final = msgspec.msgpack.Decoder(tuple[str, tuple[int, ...], bytes])
_DECODER: Final = msgspec.msgpack.Decoder(ext_hook=_from_wire)
