"""How far a generation came: what is passed on when one copy after another goes, by a model that is another copy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.api.messages import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from mesh.api.session import message_with_state, with_state
from mesh.api.stream import error_message
from mesh.core.errors import NotHere, RemoteError
from mesh.router.relay import _Progress
from mesh.wire.peek import peek
from mesh.wire.transport import ABSENT, NOT_RUN_TRAILER

REQUEST = ModelInferRequest(model_name="m", id="7").SerializeToString()


def made(number: int, state: bytes = b"") -> bytes:
    return message_with_state(ModelInferResponse(id=str(number)).SerializeToString(), state)


def number_of(message: bytes) -> int:
    return int(ModelStreamInferResponse.FromString(message).infer_response.id)


@given(st.integers(1, 4), st.lists(st.integers(0, 8), max_size=6), st.integers(1, 20))
def test_every_response_is_passed_on_once_whenever_copies_go(every: int, lives: list[int], total: int) -> None:
    """A copy lives for so many responses; the last one lives long enough. States come with every so-manieth."""
    progress, passed = _Progress(REQUEST, peek(REQUEST)), []
    for life in [*lives, total]:
        asked = ModelInferRequest.FromString(progress.request())
        assert (asked.model_name, asked.id) == ("m", "7")
        begin = int(asked.session_state or b"0")
        for number in range(begin + 1, min(begin + life, total) + 1):
            state = str(number).encode() if number % every == 0 else b""
            passed += [number_of(each) for each in progress.take(made(number, state))]
    assert passed == list(range(1, total + 1))


def test_a_client_that_keeps_states_gets_them_and_goes_on_from_one() -> None:
    request = ModelInferRequest(model_name="m")
    request.parameters["mesh_tokens"].bool_param = True
    request.parameters["mesh_resume"].bool_param = True
    plain = request.SerializeToString()
    message = with_state(plain, b"kept")
    progress = _Progress(message, peek(message))
    assert ModelInferRequest.FromString(progress.request()).session_state == b"kept"
    (passed,) = progress.take(made(3, b"state"))
    assert ModelStreamInferResponse.FromString(passed).infer_response.session_state == b"state"


def test_a_caller_who_does_not_keep_states_gets_none() -> None:
    progress = _Progress(REQUEST, peek(REQUEST))
    (passed,) = progress.take(made(1, b"state"))
    assert not ModelStreamInferResponse.FromString(passed).infer_response.session_state


def test_what_a_node_did_not_run_may_be_asked_elsewhere() -> None:
    progress = _Progress(REQUEST, peek(REQUEST))
    with pytest.raises(RemoteError) as caught:
        progress.take(error_message(NotHere("gone"), "7", code=14, not_run=True))
    assert (NOT_RUN_TRAILER, ABSENT) in caught.value.trailers
    assert progress.not_run
