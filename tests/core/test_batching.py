from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.core.batching import Run, Waiting, WaitUntil, enough_rows, next_batch

queues = st.lists(
    st.builds(Waiting, rows=st.integers(1, 8), kind=st.sampled_from("ab"), enqueued_s=st.just(0.0)), max_size=20
)


def test_nothing_waits_for_nothing() -> None:
    assert next_batch([], max_rows=8, delay_s=1, now_s=0) == WaitUntil(None)


def test_a_lonely_request_waits_for_company_until_its_delay_is_over() -> None:
    queue = [Waiting(1, "a", 10.0)]
    assert next_batch(queue, max_rows=8, delay_s=1, now_s=10.5) == WaitUntil(11.0)
    assert next_batch(queue, max_rows=8, delay_s=1, now_s=11.0) == Run(1)


def test_a_full_batch_runs_at_once() -> None:
    assert next_batch([Waiting(4, "a", 0.0)] * 2, max_rows=8, delay_s=1, now_s=0) == Run(2)


def test_what_does_not_fit_together_runs_apart() -> None:
    assert next_batch([Waiting(1, "a", 0.0), Waiting(1, "b", 0.0)], max_rows=8, delay_s=1, now_s=0) == Run(1)


@given(queues, st.integers(1, 8))
def test_a_batch_holds_one_kind_and_at_most_the_rows_allowed(queue: list[Waiting], max_rows: int) -> None:
    step = next_batch(queue, max_rows=max_rows, delay_s=0, now_s=1)
    if isinstance(step, Run):
        batch = queue[: step.count]
        assert len({each.kind for each in batch}) == 1
        assert step.count == 1 or sum(each.rows for each in batch) <= max_rows
    else:
        assert queue == []


@given(queues, st.integers(1, 8))
def test_with_time_over_every_request_runs_in_the_order_it_came(queue: list[Waiting], max_rows: int) -> None:
    left, ran = list(queue), []
    while isinstance(step := next_batch(left, max_rows=max_rows, delay_s=0, now_s=1), Run):
        ran += left[: step.count]
        del left[: step.count]
    assert ran == queue


@given(st.integers(1, 300), st.floats(0, 1))
def test_enough_is_the_fewest_rows_of_a_share(max_rows: int, share: float) -> None:
    enough = enough_rows(max_rows, share)
    assert 1 <= enough <= max_rows
    if share:
        assert enough / max_rows >= share
        assert enough == 1 or (enough - 1) / max_rows < share
    else:
        assert enough == max_rows


@given(queues, st.integers(1, 8), st.floats(0, 1), st.floats(0, 2))
def test_only_too_few_of_one_kind_wait_and_no_longer_than_the_delay(
    queue: list[Waiting], max_rows: int, share: float, now_s: float
) -> None:
    enough = enough_rows(max_rows, share)
    step = next_batch(queue, max_rows=max_rows, delay_s=1, now_s=now_s, enough=enough)
    if isinstance(step, Run):
        # It takes no fewer than it would take without waiting.
        assert step == next_batch(queue, max_rows=max_rows, delay_s=0, now_s=now_s)
    elif queue:
        assert step.at_s == 1 > now_s
        assert len({each.kind for each in queue}) == 1
        assert sum(each.rows for each in queue) < enough
