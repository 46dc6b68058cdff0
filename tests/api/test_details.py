"""Our details are what the public messages of google.rpc say, both ways."""

from __future__ import annotations

import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from mesh.api.details import TRAILER, Details, read_details, trailers_of
from mesh.core.errors import Churn, InvalidRequest, MeshError, NoCapacity, Overloaded

texts = st.text(max_size=20)


@given(texts, st.one_of(st.none(), st.floats(0, 1e6)), st.dictionaries(texts, texts, max_size=4))
def test_a_client_of_the_public_messages_reads_them(message: str, after_s: float | None, facts: dict[str, str]) -> None:
    error = Churn(message, retry_after_s=after_s, facts=facts)
    ((key, value),) = trailers_of(error)
    assert key == TRAILER
    status = status_pb2.Status.FromString(value)
    assert (status.code, status.message) == (8, message)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == ("CHURN", "mesh", facts)
    assert len(status.details) == (1 if after_s is None else 2)
    if after_s is not None:
        assert status.details[1].Unpack(retry)
        assert retry.retry_delay.ToNanoseconds() / 1e9 == pytest.approx(after_s, abs=1e-6)


@given(texts, st.floats(0, 1e6), st.dictionaries(texts, texts, max_size=4))
def test_they_are_read_from_the_public_messages(reason: str, after_s: float, facts: dict[str, str]) -> None:
    status = status_pb2.Status(code=8)
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromNanoseconds(int(after_s * 1e9))
    for each in (
        error_details_pb2.Help(),
        error_details_pb2.ErrorInfo(reason=reason, domain="other", metadata=facts),
        retry,
    ):
        status.details.add().Pack(each)
    found = read_details([("x", "y"), (TRAILER, status.SerializeToString())])
    assert (found.reason, found.facts) == (reason, facts)
    assert found.retry_after_s == pytest.approx(after_s, abs=1e-6)


@given(st.binary(max_size=60))
def test_garbage_tells_nothing_and_raises_nothing(value: bytes) -> None:
    found = read_details([(TRAILER, value)])
    assert isinstance(found, Details)


@pytest.mark.parametrize("error", [InvalidRequest("no"), ValueError("no"), MeshError("no")])
def test_errors_without_a_reason_have_none(error: Exception) -> None:
    assert trailers_of(error) == ()


def test_every_refusal_says_its_kind() -> None:
    assert [read_details(trailers_of(each("x"))).reason for each in (NoCapacity, Churn, Overloaded)] == [
        "NO_CAPACITY",
        "CHURN",
        "OVERLOADED",
    ]
