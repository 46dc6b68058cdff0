from __future__ import annotations

from contextlib import suppress

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from mesh.api.messages import InferParameter, ModelInferRequest
from mesh.wire.peek import PeekError, peek

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
