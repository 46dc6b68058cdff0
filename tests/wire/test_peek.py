from __future__ import annotations

from contextlib import suppress

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from mesh.api.messages import InferParameter, ModelInferRequest
from mesh.wire.peek import Peeked, PeekError, peek, peek_front

parameters = st.dictionaries(
    st.text(max_size=5),
    st.one_of(
        st.builds(InferParameter, bool_param=st.booleans()),
        st.builds(InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1)),
        st.builds(InferParameter, string_param=st.text(max_size=5)),
        st.builds(InferParameter, double_param=st.floats(allow_nan=False)),
        st.builds(InferParameter, uint64_param=st.integers(0, 2**64 - 1)),
    ),
    max_size=4,
)
PIECES = [
    *[b"\x0a\x01m", b"\x12\x011", b"\x1a\x01i", b"\x22\x03\x0a\x01p"],
    *[b"\x2a\x01x", b"\x3a\x00", b"\x02\x00", b"\x42\x00"],
]
requests = st.builds(
    ModelInferRequest,
    model_name=st.text(max_size=20),
    model_version=st.text(max_size=5),
    id=st.text(max_size=5),
    parameters=parameters,
    inputs=st.lists(st.builds(ModelInferRequest.InferInputTensor, name=st.text(max_size=5)), max_size=3),
    raw_input_contents=st.lists(st.binary(max_size=300), max_size=3),
)


@given(requests)
def test_peek_reads_what_protobuf_reads(request: ModelInferRequest) -> None:
    read = peek(request.SerializeToString())
    assert (read.model_name, read.model_version, read.id) == (request.model_name, request.model_version, request.id)
    assert dict(read.parameters) == {
        key: getattr(value, kind) if (kind := value.WhichOneof("parameter_choice")) else ""
        for key, value in request.parameters.items()
    }


@given(requests, requests)
def test_the_last_occurrence_of_a_field_wins_as_in_protobuf(
    first: ModelInferRequest, second: ModelInferRequest
) -> None:
    both = first.SerializeToString() + second.SerializeToString()
    whole = ModelInferRequest.FromString(both)
    assert (peek(both).model_name, peek(both).id) == (whole.model_name, whole.id)


@given(requests, st.data())
def test_a_request_cut_anywhere_is_refused_or_reads_as_protobuf_reads_it(
    request: ModelInferRequest, data: st.DataObject
) -> None:
    message = request.SerializeToString()
    cut = message[: data.draw(st.integers(0, len(message)))]
    try:
        expected = ModelInferRequest.FromString(cut)
    except DecodeError:
        with pytest.raises(PeekError, match="cannot parse ModelInferRequest"):
            peek(cut)
    else:
        assert peek(cut).model_name == expected.model_name


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_with_one_error(message: bytes) -> None:
    with suppress(PeekError):
        peek(message)


def fronted(data: bytes, start: int, *, whole: bool) -> Peeked | None:
    """Return what `peek_front` reads; None where it wants more or leaves it to `peek`."""
    with suppress(PeekError):
        return peek_front(data, start, whole=whole)
    return None


@given(requests, st.binary(max_size=6))
def test_the_front_of_a_whole_request_is_what_peek_reads(request: ModelInferRequest, before: bytes) -> None:
    message = request.SerializeToString()
    read = fronted(before + message, len(before), whole=True)
    assert (peek(message) if request.model_name else None) == read


@given(requests, st.data())
def test_the_front_of_a_request_that_is_arriving_is_not_known_yet_or_what_it_will_be(
    request: ModelInferRequest, data: st.DataObject
) -> None:
    message = request.SerializeToString()
    cut = message[: data.draw(st.integers(0, len(message)))]
    assert fronted(cut, 0, whole=False) in (None, peek(message))


@given(requests)
def test_the_front_is_known_once_the_first_tensor_begins(request: ModelInferRequest) -> None:
    front = ModelInferRequest()
    front.CopyFrom(request)
    del front.inputs[:]
    del front.raw_input_contents[:]
    message = front.SerializeToString()
    begun = message + b"\x2a\x80\x01" + b"x" * 9
    assert (peek(message) if request.model_name else None) == fronted(begun, 0, whole=False)


@given(st.binary(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=6).map(b"".join))
def test_any_whole_bytes_have_a_front_that_peek_reads_alike(message: bytes) -> None:
    read = fronted(message, 0, whole=True)
    if read is not None:
        assert peek(message) == read
