"""The state of a sequence beside a message, and as bytes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.api.messages import InferParameter, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from mesh.api.session import message_with_state, split_request, split_response, split_stream, tell_stream, with_state
from mesh.api.snapshot import decode_snapshot, encode_snapshot
from mesh.api.stream import final_message
from mesh.core.errors import InvalidRequest, ModelFailed

states = st.binary(max_size=300)
names = st.text(max_size=20)


@given(names, names, states)
def test_a_state_before_a_response_is_the_field_and_comes_off_again(name: str, id_: str, state: bytes) -> None:
    response = ModelInferResponse(model_name=name, id=id_, raw_output_contents=[b"x" * 10])
    plain = response.SerializeToString()
    told = with_state(plain, state)
    assert ModelInferResponse.FromString(told).session_state == state
    assert split_response(told) == (plain, state)


@given(names, states)
def test_a_state_inside_a_stream_message_comes_off_and_leaves_the_message(name: str, state: bytes) -> None:
    plain = ModelInferResponse(model_name=name).SerializeToString()
    message = message_with_state(plain, state)
    assert ModelStreamInferResponse.FromString(message).infer_response.session_state == state
    rest, found = split_stream(message)
    assert found == state
    assert ModelStreamInferResponse.FromString(rest).infer_response.SerializeToString() == plain
    assert not state or tell_stream(rest, state) == message
    assert split_stream(final_message(plain)) == (final_message(plain), b"")
    error = ModelStreamInferResponse(error_message="no").SerializeToString()
    assert split_stream(error) == (error, b"")


@given(names, states, st.integers(-(1 << 63), (1 << 63) - 1))
def test_a_clients_state_comes_off_wherever_it_stands(name: str, state: bytes, number: int) -> None:
    request = ModelInferRequest(model_name=name, raw_input_contents=[b"y"])
    request.parameters["sequence_id"].CopyFrom(InferParameter(int64_param=number))
    plain = request.SerializeToString(deterministic=True)
    request.session_state = state
    for message in (request.SerializeToString(deterministic=True), with_state(plain, state)):
        assert split_request(message) == (plain, state)


@pytest.mark.parametrize(
    "message", [b"\x0a", b"\x0a\x05ab", b"\x08\x01", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"]
)
def test_bytes_that_are_no_request_are_refused(message: bytes) -> None:
    with pytest.raises(InvalidRequest):
        split_request(message)


arrays = st.tuples(
    st.sampled_from(["<f4", "<f8", "<i8", "|i1", "<u2", "|b1", "<c8"]), st.lists(st.integers(0, 3), max_size=3)
).map(lambda kind: np.ones(kind[1], kind[0]))
plain = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.floats(), st.text(), st.binary(), arrays
)
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and one.tolist() == other.tolist()
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return type(one) is type(other) and one == other


@given(values, st.integers(0, 1 << 40), st.booleans())
def test_a_state_is_the_same_after_its_journey(value: Any, count: int, done: bool) -> None:
    found = decode_snapshot(encode_snapshot(value, count=count, digest="0123456789abcdef" * 4, done=done))
    assert same(value, found.state)
    assert (found.count, found.digest, found.done) == (count, "0123456789abcdef", done)


def test_numpys_numbers_travel_as_numbers() -> None:
    found = decode_snapshot(encode_snapshot({"a": np.float32(1.5), "b": np.int64(3)}, count=0, digest=""))
    assert found.state == {"a": 1.5, "b": 3}


@pytest.mark.parametrize("value", [object(), {"x": {1, 2} and object()}, np.array(["text"]), np.array([object()])])
def test_what_cannot_travel_is_the_models_fault(value: Any) -> None:
    with pytest.raises(ModelFailed, match="the state of a sequence cannot be kept"):
        encode_snapshot(value, count=0, digest="")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_state_or_refused(data: bytes) -> None:
    try:
        decode_snapshot(data)
    except InvalidRequest:
        return
