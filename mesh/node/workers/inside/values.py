"""Plain values as bytes, in MessagePack: what a message between node and worker says, and the state of a sequence.

Reading runs no code and makes nothing but plain values and what the hook makes of extensions, whatever the bytes are:
the node reads what a model's process wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import msgpack

msgspec: Any
try:
    import msgspec
except ImportError:
    msgspec = None

ARRAY = 1
"""The extension's code of an array in a state: [dtype, shape, bytes], row-major and little-endian."""
DTYPES = {kind.str: kind for kind in (np.dtype(f"<{each}") for each in "?bhiqBHIQefdFD")}
"""The numeric types by the names that numpy gives them, as in `mesh.api.snapshot`: others are not looked at."""

Pack = Callable[[Any], "tuple[int, bytes] | Any"]


class BadValue(ValueError):
    """What cannot be carried, or bytes that say nothing."""


def codec(pack: Pack, unpack: Callable[[int, bytes], Any]) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    """Return an encoder and a decoder; `pack` and `unpack` are for what MessagePack has no type for.

    Both raise `BadValue` and nothing else.
    """
    if msgspec is None:
        return _guarded(lambda value: msgpack.pack(value, pack)), _guarded(lambda data: msgpack.unpack(data, unpack))

    def hook(value: Any) -> Any:
        found = pack(value)
        return msgspec.msgpack.Ext(*found) if isinstance(found, tuple) else found

    encoder = msgspec.msgpack.Encoder(enc_hook=hook)
    decoder = msgspec.msgpack.Decoder(ext_hook=lambda code, data: unpack(code, bytes(data)))
    return _guarded(encoder.encode), _guarded(decoder.decode)


def _guarded(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def guarded(given: Any) -> Any:
        try:
            return call(given)
        except BadValue:
            raise
        except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
            raise BadValue(str(error)) from error
        except Exception as error:
            # msgspec's own errors, which cannot be named where it is absent.
            raise BadValue(f"{type(error).__name__}: {error}") from error

    return guarded


def _pack_state(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        raise BadValue(f"got a {type(value).__name__}")
    wanted = DTYPES.get(value.dtype.newbyteorder("<").str)
    if wanted is None:
        raise BadValue(f"got an array of {value.dtype}")
    little = value.astype(wanted, copy=False)
    return ARRAY, _encode_parts((little.dtype.str, list(little.shape), little.tobytes()))


def _unpack_state(code: int, data: bytes) -> Any:
    if code != ARRAY:
        raise BadValue(f"an extension with code {code}")
    parts = _decode_parts(data)
    if not isinstance(parts, list) or [type(each) for each in parts] != [str, list, bytes]:
        raise BadValue("an array of another form")
    kind, shape, raw = parts
    dtype = DTYPES.get(kind)
    if dtype is None or any(type(size) is not int or size < 0 for size in shape):
        raise BadValue(f"an array of {kind} {shape}")
    # A copy: a model may write to it, and a state must not hold the message that it came in.
    return np.frombuffer(raw, dtype).reshape(shape).copy()


def _nothing(value: Any) -> Any:
    raise BadValue(f"got a {type(value).__name__}")


def _no_extension(code: int, data: bytes) -> Any:
    raise BadValue(f"an extension with code {code} and {len(data)} bytes")


_encode_parts, _decode_parts = codec(_nothing, _no_extension)

encode_state, decode_state = codec(_pack_state, _unpack_state)
"""The state of a sequence: None, numbers, text, bytes, numeric arrays, and lists and dicts of them."""
