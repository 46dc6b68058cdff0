from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.errors import RemoteError
from mesh.core.traffic.retry import MOST_DEATHS, Fate, Tries, fate_of, may_retry
from mesh.core.types import NodeId

A = NodeId("a")
LOST = RemoteError(14, "socket closed", transport_failed=True)
SAID = RemoteError(13, "the model raised")


@pytest.mark.parametrize(
    ("error", "not_run", "died", "fate"),
    [
        (LOST, False, False, Fate.DIED),
        (SAID, False, True, Fate.DIED),
        (SAID, True, False, Fate.NOT_RUN),
        (RemoteError(14, "refused", transport_failed=True, unsent=True), False, False, Fate.NOT_RUN),
        (SAID, False, False, Fate.ANSWERED),
        (RemoteError(4, "too late", transport_failed=True), False, False, Fate.ANSWERED),
    ],
)
def test_an_attempt_did_not_run_or_died_or_was_answered(
    error: RemoteError, not_run: bool, died: bool, fate: Fate
) -> None:
    assert fate_of(error, not_run=not_run, died=died) is fate


@pytest.mark.parametrize(
    ("fate", "in_sequence", "suspect", "failures", "deaths", "again"),
    [
        (Fate.NOT_RUN, False, False, 1, 0, True),
        (Fate.NOT_RUN, False, False, 2, 0, True),
        (Fate.NOT_RUN, False, False, 3, 0, False),
        (Fate.NOT_RUN, False, True, 1, 0, True),
        (Fate.NOT_RUN, True, False, 1, 0, False),
        (Fate.DIED, False, False, 1, 1, True),
        (Fate.DIED, False, False, 2, 2, False),
        (Fate.DIED, False, True, 1, 1, False),
        (Fate.DIED, True, False, 1, 1, False),
        (Fate.ANSWERED, False, False, 1, 0, False),
    ],
)
def test_only_safe_calls_are_sent_again(  # noqa: PLR0917 - the table's columns
    fate: Fate, in_sequence: bool, suspect: bool, failures: int, deaths: int, again: bool
) -> None:
    said = may_retry(fate, in_sequence=in_sequence, suspect=suspect, failures=failures, deaths=deaths, max_attempts=3)
    assert said is again


@given(st.lists(st.tuples(st.sampled_from(Fate), st.booleans()), min_size=1), st.integers(1, 10))
def test_a_call_is_sent_at_most_so_often_and_ends_two_processes_at_most(
    ends: list[tuple[Fate, bool]], max_attempts: int
) -> None:
    """Whatever becomes of its attempts, on whatever paths they go."""
    whole = Tries()
    calls = [whole, Tries(whole), Tries(whole)]
    going = {0, 1, 2}
    for place, (fate, suspect) in enumerate(ends):
        at = place % len(calls)
        if at in going and not calls[at].failed(A, fate, max_attempts=max_attempts, suspect=suspect):
            going.discard(at)
        assert calls[at].failures <= max_attempts
    # A call that is on its way when another of the same request died for the second time may die as well.
    assert whole.deaths <= MOST_DEATHS + len(calls) - 1


def test_a_copy_that_is_not_there_any_more_counts_as_no_attempt() -> None:
    tries = Tries()
    assert all(tries.failed(A, Fate.NOT_RUN, max_attempts=2, free=True) for _ in range(10))
    assert tries.failed(A, Fate.NOT_RUN, max_attempts=2)
    assert not tries.failed(A, Fate.NOT_RUN, max_attempts=2)


def test_what_begins_behind_an_answer_has_its_own_tries() -> None:
    tries = Tries()
    assert tries.failed(A, Fate.DIED, max_attempts=3)
    tries.went_on()
    assert tries.failed(A, Fate.DIED, max_attempts=3)
    assert not tries.failed(A, Fate.DIED, max_attempts=3)
