"""Raw tensors of large requests, read where they came: what protobuf would read, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.api import raw_places
from mesh.api.messages import ModelInferRequest
from mesh.api.question import decode
from mesh.api.raw_places import apart, decode_front, front_bytes, raws_of
from mesh.core.errors import InvalidRequest


@pytest.fixture(autouse=True)
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_places, "LARGE_BYTES", 0)


def request(raws: list[bytes], id_: str) -> ModelInferRequest:
    message = ModelInferRequest(model_name="m", raw_input_contents=raws, id=id_)
    for index in range(len(raws)):
        message.inputs.add(name=f"x{index}", datatype="FP32", shape=[1])
    return message


@given(st.lists(st.binary(max_size=300), max_size=4), st.text(max_size=20))
def test_front_and_tensors_are_the_whole_request(raws: list[bytes], id_: str) -> None:
    message = request(raws, id_).SerializeToString()
    front = decode_front(message)
    assert [bytes(each) for each in raws_of(message, front)] == raws
    assert not front.raw_input_contents
    front.raw_input_contents.extend(raws)
    assert front == decode(message)
    assert message[: front_bytes(message, raws)] == request(raws, id_).SerializeToString()[: -_raw_size(raws) or None]


def _raw_size(raws: list[bytes]) -> int:
    return sum(1 + (1 if len(raw) < 128 else 2) + len(raw) for raw in raws)


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=50)), max_size=8))
def test_tensors_between_other_fields_are_found_and_have_no_front(parts: list[tuple[bool, bytes]]) -> None:
    """Serializers write them last, but a message is valid in any order."""
    message, raws = b"", []
    for is_raw, data in parts:
        field = ModelInferRequest(raw_input_contents=[data]) if is_raw else ModelInferRequest(id=data.hex())
        message += field.SerializeToString()
        raws += [data] if is_raw else []
    front = decode_front(message)
    assert [bytes(each) for each in raws_of(message, front)] == raws
    assert front.id == decode(message).id
    kept = [data for is_raw, data in parts if not is_raw and data]
    first_raw = next((at for at, each in enumerate(parts) if each[0]), len(parts))
    if any(not is_raw and data for is_raw, data in parts[first_raw:]) and kept:
        assert front_bytes(message, raws) == -1


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_as_protobuf_does(data: bytes) -> None:
    try:
        whole = decode(data)
    except InvalidRequest:
        whole = None
    found = apart(data)
    try:
        front = decode_front(data)
    except InvalidRequest:
        assert whole is None
        return
    if found is not None and whole is not None:
        assert [bytes(each) for each in found[1]] == list(whole.raw_input_contents)
        assert front.model_name == whole.model_name
