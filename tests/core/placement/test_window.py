"""The sliding average agrees with one that keeps every sample, in memory that does not grow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.placement.window import MAX_SPAN_S, Window

Samples = list[tuple[float, float, float]]
spans = st.floats(1, 200)
samples_of = st.lists(st.tuples(st.floats(0.01, 40), st.floats(0, 90), st.floats(0, 100)), max_size=25)
"""(seconds, seconds of a gap before it, requests in flight)."""
starts = st.sampled_from([0.0, 0.37, 1.7e9 + 0.25])


def fed(window: Window, told: Samples, start_s: float) -> tuple[Samples, float]:
    """Add the samples, the gaps in between; return them as (from, until, in flight), and when the last ended."""
    added, now_s = [], start_s
    for span_s, gap_s, in_flight in told:
        since_s, now_s = now_s + gap_s, now_s + gap_s + span_s
        window.add(since_s, now_s, in_flight)
        added.append((since_s, now_s, in_flight))
    return added, now_s


def exact(added: Samples, span_s: float, now_s: float) -> float:
    begin_s = now_s - span_s
    known_s = now_s - max(begin_s, added[0][0])
    area = sum(max(0.0, until - max(since, begin_s)) * value for since, until, value in added)
    return area / known_s if known_s > 0 else 0.0


@given(samples_of.filter(bool), spans, starts, st.floats(0, 100))
def test_it_is_the_average_but_for_one_bucket(told: Samples, span_s: float, start_s: float, later_s: float) -> None:
    window = Window(200)
    added, until_s = fed(window, told, start_s)
    now_s = until_s + later_s
    most = max(value for _, _, value in added)
    known_s = min(span_s, now_s - added[0][0])
    assert abs(window.average(span_s, now_s) - exact(added, span_s, now_s)) <= most * min(1.0, 1 / known_s) + 1e-4


@given(samples_of, spans, starts)
def test_it_is_between_none_and_the_most_and_falls_to_none(told: Samples, span_s: float, start_s: float) -> None:
    window = Window(span_s)
    _, now_s = fed(window, told, start_s)
    most = max((value for _, _, value in told), default=0.0)
    assert 0 <= window.average(span_s, now_s) <= most + 1e-4
    assert window.average(span_s, now_s + window.span_s + 1) == 0.0


@given(st.floats(0.01, 5), st.floats(0.5, 100))
def test_what_is_constant_is_its_own_average_however_often_it_is_told(every_s: float, in_flight: float) -> None:
    window, now_s = Window(60), 1000.0
    for _ in range(200):
        window.add(now_s, now_s + every_s, in_flight)
        now_s += every_s
        assert window.average(60, now_s) == pytest.approx(in_flight, rel=0.05 if now_s - 1000 > 20 else 1)


@given(samples_of, starts)
def test_widening_changes_nothing_that_was_known(told: Samples, start_s: float) -> None:
    window = Window(60)
    _, now_s = fed(window, told, start_s)
    before = [window.average(span_s, now_s) for span_s in (1, 6, 30, 60)]
    window.widen(600)
    assert [window.average(span_s, now_s) for span_s in (1, 6, 30, 60)] == pytest.approx(before)


def test_the_time_that_was_forgotten_before_widening_counts_as_not_known() -> None:
    window = Window(60)
    window.add(0, 100, 4)
    window.widen(600)
    assert window.average(600, 100) == pytest.approx(4)


def test_an_hour_is_averaged_over_the_whole_of_it() -> None:
    window = Window(3600)
    for second in range(3600):
        window.add(second, second + 1, 9 if second < 2400 else 0)
    assert window.average(3600, 3600) == pytest.approx(6)


def test_overlapping_samples_count_once() -> None:
    window = Window(60)
    window.add(0, 10, 2)
    window.add(5, 12, 2)
    window.add(3, 8, 50)
    assert window.average(60, 12) == pytest.approx(2)


def test_a_clock_that_is_set_back_begins_anew() -> None:
    window = Window(60)
    window.add(5000, 5010, 2)
    window.add(100, 110, 6)
    assert window.average(60, 110) == pytest.approx(6)


def test_it_is_bounded_whatever_is_asked_for() -> None:
    window = Window(float("inf"))
    assert window.span_s == MAX_SPAN_S
    assert repr(window) == "<Window 3600 s until=-inf>"
