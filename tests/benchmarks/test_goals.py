"""Goals beside what was measured."""

from __future__ import annotations

import pytest

from benchmarks import goals
from benchmarks.__main__ import chosen
from benchmarks.figures import Figures, Results
from benchmarks.goals import ADDED, CPU, GOALS, RATE, Goal
from benchmarks.shapes import shapes

OURS, THEIRS = ("s", "router"), ("s", "envoy")


def figures(cpu_us: float, latency_us: float = 0.0) -> Figures:
    made = Figures("x", latencies_us=[latency_us])
    made.add(count=1000, seconds=1000 / 1e6 * cpu_us, cpu_s={"x": 1000 / 1e6 * cpu_us})
    return made


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (Goal("g", CPU, OURS, THEIRS, at_most=2), ("200 µs", "100 µs", "2.00x", "≤ 2x", "met")),
        (Goal("g", CPU, OURS, THEIRS, at_most=1.9), ("200 µs", "100 µs", "2.00x", "≤ 1.9x", "missed")),
        (Goal("g", CPU, OURS, THEIRS, times_less=2), ("200 µs", "100 µs", "0.50x", "≥ 2x less", "missed")),
        (Goal("g", CPU, THEIRS, OURS, times_less=2), ("100 µs", "200 µs", "2.00x", "≥ 2x less", "met")),
        (Goal("g", RATE, THEIRS, OURS, times_more=2), ("10,000/s", "5,000/s", "2.00x", "≥ 2x", "met")),
        (Goal("g", RATE, OURS, THEIRS, times_more=2), ("5,000/s", "10,000/s", "0.50x", "≥ 2x", "missed")),
        (Goal("g", CPU, OURS, None, at_most=200.5), ("200 µs", "", "", "≤ 200.5 µs", "met")),
        (Goal("g", CPU, OURS, None, at_most=199), ("200 µs", "", "", "≤ 199 µs", "missed")),
        (Goal("g", ADDED, OURS, THEIRS, at_most=1), ("60 µs", "40 µs", "1.50x", "≤ 1x", "missed")),
        (Goal("g", CPU, OURS, ("s", "absent"), at_most=1), ("200 µs", "-", "-", "≤ 1x", "not measured")),
    ],
)
def test_a_row_holds_both_readings_their_ratio_and_the_verdict(goal: Goal, expected: tuple[str, ...]) -> None:
    results: Results = {OURS: figures(200, 100), THEIRS: figures(100, 80), ("s", goals.DIRECT): figures(1, 40)}
    assert goals.row(goal, results) == ("g", *expected)


def test_latency_is_added_to_nothing_when_the_direct_way_was_not_measured() -> None:
    assert goals.reading(ADDED, OURS, {OURS: figures(1, 100)}) is None


def test_only_goals_that_were_measured_are_shown() -> None:
    assert goals.rows({}) == []
    assert [row[0] for row in goals.rows({("server-small", "mlserver"): figures(1)})] == []
    assert len(goals.rows({("proxy-fair", "router"): figures(1)})) == 1


def test_every_goal_is_about_something_that_is_measured() -> None:
    measured = {(shape.key, peer) for shape in shapes() for peer in shape.peers}
    assert {goal.ours for goal in GOALS} | {goal.theirs for goal in GOALS if goal.theirs} <= measured
    assert all((goal.ours[0], goals.DIRECT) in measured for goal in GOALS if goal.quantity.added)


def test_a_pattern_chooses_shapes_and_peers() -> None:
    (shape,) = chosen("^proxy-fair/(router|envoy)$")
    assert (shape.key, shape.peers) == ("proxy-fair", ("router", "envoy"))
    assert len(chosen("")) == len(shapes())
