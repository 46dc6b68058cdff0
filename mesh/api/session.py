"""What is put beside a message, found and taken off without reading the rest of it: above all a sequence's state.

`session_state` is field 100 of ModelInferRequest and ModelInferResponse. Nodes write it before all other fields,
protobuf's own serializers behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mesh.api.messages import ModelInferRequest
from mesh.api.stream import INFER_RESPONSE_TAG, STATE_TAG, varint
from mesh.core.errors import InvalidRequest

_NUMBER: Final = 100


def state_field(state: bytes | None) -> bytes:
    """Return a state as the field that stands before a serialized request or response; None or empty: no field."""
    return b"".join((STATE_TAG, varint(len(state)), state)) if state else b""


def with_state(message: bytes, state: bytes | None) -> bytes:
    """Return a serialized request or response with a state; None or empty: as it is."""
    return state_field(state) + message if state else message


def with_parameters(request: bytes, values: Mapping[str, str]) -> bytes:
    """Return a serialized ModelInferRequest with these parameters, which win over its own of the same name."""
    if not values:
        return request
    more = ModelInferRequest()
    for name, value in values.items():
        more.parameters[name].string_param = value
    # Fields of one message may stand in any order; of two entries of a map with one key the last counts.
    return request + more.SerializeToString()


def message_with_state(response: bytes, state: bytes) -> bytes:
    """Return a serialized ModelInferResponse as a stream message, with a state before it where there is one."""
    told = state_field(state)
    return b"".join((INFER_RESPONSE_TAG, varint(len(told) + len(response)), told, response))


def tell_stream(message: bytes, state: bytes) -> bytes:
    """Return a stream message that `split_stream` took a state off, with one again."""
    size, at = _varint(message, 1)
    return message_with_state(message[at : at + size], state)


def split_response(message: bytes) -> tuple[bytes, bytes]:
    """Return a node's ModelInferResponse without the state, and the state (empty: none was told). O(1) without one."""
    if message[:2] != STATE_TAG:
        return message, b""
    size, at = _varint(message, 2)
    return message[at + size :], message[at : at + size]


def split_stream(message: bytes) -> tuple[bytes, bytes]:
    """Return a node's ModelStreamInferResponse without the state, and the state."""
    cut = cut_state(message, 0)
    if cut is None:
        return message, b""
    state, rest = cut
    return b"".join((INFER_RESPONSE_TAG, varint(len(rest)), rest)), state


def cut_state(message: bytes, at: int) -> tuple[bytes, bytes] | None:
    """Return the state, and the rest of the ModelInferResponse, of the stream message at `at`; None without a state."""
    if message[at : at + 1] != INFER_RESPONSE_TAG:
        return None
    size, inner = _varint(message, at + 1)
    if message[inner : inner + 2] != STATE_TAG:
        return None
    state_size, begin = _varint(message, inner + 2)
    end = begin + state_size
    return message[begin:end], message[end : inner + size]


def split_request(message: bytes) -> tuple[bytes, bytes]:
    """Return a client's ModelInferRequest without the state, and the state. Raises `InvalidRequest`. O(fields)."""
    kept: list[bytes] = []
    state, position = b"", 0
    try:
        while position < len(message):
            begin = position
            tag, position = _varint(message, position)
            if tag & 7 != 2:
                raise InvalidRequest("cannot parse ModelInferRequest: a field with an unusual wire type")
            size, position = _varint(message, position)
            position += size
            if position > len(message):
                raise InvalidRequest("cannot parse ModelInferRequest: a field is cut off")
            if tag >> 3 == _NUMBER:
                state = message[position - size : position]
            else:
                kept.append(message[begin:position])
    except IndexError:
        raise InvalidRequest("cannot parse ModelInferRequest: it ends inside a number") from None
    return b"".join(kept), state


def _varint(data: bytes, position: int) -> tuple[int, int]:
    first = data[position]
    if first < 0x80:
        return first, position + 1
    second = data[position + 1]
    if second < 0x80:
        return first & 0x7F | second << 7, position + 2
    result = shift = 0
    while True:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
        if shift > 63:
            raise InvalidRequest("a number is longer than 10 bytes")
