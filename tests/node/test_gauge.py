"""Which runs may go on the event loop, by what they were measured to take."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from mesh.node import gauge as module
from mesh.node.gauge import DOUBT_S, DOUBTED, LONG_S, ON_LOOP_S, Gauge


def short(*, runs: int = 20) -> Gauge:
    gauge = Gauge(steady=True)
    for _ in range(runs):
        gauge.measured(ON_LOOP_S / 10, 100)
    assert gauge.predicted_s(100) < ON_LOOP_S
    return gauge


def test_runs_of_what_may_sleep_are_never_short() -> None:
    gauge = Gauge(steady=False)
    gauge.measured(1e-6, 100)
    assert gauge.predicted_s(100) == float("inf")
    assert not gauge.is_short(1.0)


def test_one_run_that_worked_long_although_it_was_predicted_to_be_short_is_the_last() -> None:
    gauge = short()
    gauge.measured(LONG_S * 2, 100)
    for _ in range(10_000):
        gauge.measured(ON_LOOP_S / 10, 100)
    assert gauge.predicted_s(100) == float("inf")
    assert not gauge.is_short(1.0)


def test_a_run_that_was_predicted_to_be_long_says_nothing_about_the_short_ones() -> None:
    gauge = short()
    large = int(100 * LONG_S / ON_LOOP_S * 100)
    assert gauge.predicted_s(large) > ON_LOOP_S
    gauge.measured(LONG_S * 2, large)
    for _ in range(100):
        gauge.measured(ON_LOOP_S / 10, 100)
    assert gauge.predicted_s(100) < ON_LOOP_S


class Clock:
    """The two clocks that a gauge reads, moved by the runs themselves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall_s = self.cpu_s = 0.0
        both = SimpleNamespace(perf_counter=lambda: self.wall_s, thread_time=lambda: self.cpu_s)
        monkeypatch.setattr(module, "time", both)

    def take(self, wall_s: float, cpu_s: float) -> None:
        self.wall_s += wall_s
        self.cpu_s += cpu_s


def test_a_run_that_lasted_on_the_loop_sends_the_next_to_threads_until_those_were_weighed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, gauge = Clock(monkeypatch), short()
    gauge.run_here(lambda: clock.take(DOUBT_S * 2, DOUBT_S * 2))
    for _ in range(DOUBTED):
        assert gauge.predicted_s(100) == float("inf")
        _, _, work_s = gauge.run(lambda: clock.take(1e-4, 1e-5))
        assert work_s == pytest.approx(1e-5), "every run is weighed now"
        gauge.measured(work_s, 100)
    assert gauge.predicted_s(100) < ON_LOOP_S, "what ran before it on the loop may have worked, not the run"
    gauge.run_here(lambda: clock.take(DOUBT_S * 2, DOUBT_S * 2))
    for _ in range(DOUBTED * 4):
        assert gauge.predicted_s(100) == float("inf")
        gauge.measured(1e-5, 100)
    assert gauge.predicted_s(100) < ON_LOOP_S


def test_a_run_that_waited_for_a_busy_machine_is_not_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, gauge = Clock(monkeypatch), short()
    gauge.run_here(lambda: clock.take(DOUBT_S * 2, DOUBT_S / 2))
    assert gauge.predicted_s(100) < ON_LOOP_S


def test_a_long_run_among_those_that_are_weighed_in_threads_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, gauge = Clock(monkeypatch), short()
    gauge.run_here(lambda: clock.take(DOUBT_S * 2, DOUBT_S * 2))
    gauge.measured(gauge.run(lambda: clock.take(LONG_S * 2, LONG_S * 2))[2], 100)
    for _ in range(10_000):
        gauge.measured(1e-5, 100)
    assert gauge.predicted_s(100) == float("inf")


def test_a_run_that_lasted_and_then_raised_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, gauge = Clock(monkeypatch), short()

    def fail() -> None:
        clock.take(DOUBT_S * 2, DOUBT_S * 2)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        gauge.run_here(fail)
    assert gauge.predicted_s(100) == float("inf")


def test_seconds_are_of_the_real_clocks() -> None:
    gauge = Gauge(steady=True)
    _, run_s, work_s = gauge.run(lambda: time.sleep(0.02))
    assert run_s >= 0.02
    assert 0 <= work_s < run_s
