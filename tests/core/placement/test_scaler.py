"""What holds of the autoscaler whatever is asked of a model: bounds, panic, one at a time, no coming and going."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.placement.autoscale import Desired, Scaler
from mesh.core.types import ScaleToZero, Scaling

NODES = 12
NEVER_PANICS = float("inf")
SCALING = Scaling(target=4, target_utilization=0.5, window_s=60, panic_window_s=6)

scalings = st.builds(
    Scaling,
    min_copies=st.integers(0, 3),
    max_copies=st.sampled_from([0, 3, 5]),
    target=st.floats(0.5, 50),
    target_utilization=st.floats(0.1, 1),
    window_s=st.floats(6, 90),
    panic_window_s=st.floats(1, 6),
    panic_threshold=st.floats(1.1, 10),
    scale_to_zero=st.sampled_from(ScaleToZero),
    idle_s=st.floats(1, 100),
)
told = st.lists(st.tuples(st.floats(0.05, 20), st.floats(0, 30), st.floats(0, 100)), max_size=30)
"""(seconds, seconds without a sample before it, requests in flight)."""


def asked(scaler: Scaler, scaling: Scaling, copies: int, now_s: float) -> Desired:
    return scaler.desired(scaling, ready=copies, now=copies, nodes=NODES, now_s=now_s)


def courses(scaling: Scaling, samples: list[tuple[float, float, float]]) -> list[tuple[float, int, Desired]]:
    """Return (when, copies before, what was desired) after each sample; what is desired is there at once."""
    scaler, now_s, copies, seen = Scaler(0.0), 0.0, scaling.min_copies, []
    for span_s, gap_s, in_flight in samples:
        now_s += gap_s + span_s
        scaler.sample(now_s - span_s, now_s, in_flight)
        desired = asked(scaler, scaling, copies, now_s)
        seen.append((now_s, copies, desired))
        if desired.copies < copies:
            scaler.lowered(now_s)
        copies = desired.copies
    return seen


@given(scalings, told)
def test_bounds_hold_and_panic_never_lowers(scaling: Scaling, samples: list[tuple[float, float, float]]) -> None:
    lowered_s = float("-inf")
    for now_s, before, desired in courses(scaling, samples):
        assert scaling.min_copies <= desired.copies <= (scaling.max_copies or NODES)
        assert desired.copies >= before - (not desired.panic)
        if desired.copies < before:
            assert now_s - lowered_s >= scaling.window_s, "one copy per window"
            lowered_s = now_s


@given(scalings, told, st.integers(0, NODES), st.floats(1, 3))
def test_more_demand_never_wants_fewer_copies(
    scaling: Scaling, samples: list[tuple[float, float, float]], copies: int, times: float
) -> None:
    less, more, now_s = Scaler(0.0), Scaler(0.0), 0.0
    for span_s, gap_s, in_flight in samples:
        now_s += gap_s + span_s
        less.sample(now_s - span_s, now_s, in_flight)
        more.sample(now_s - span_s, now_s, in_flight * times)
    assert asked(less, scaling, copies, now_s).copies <= asked(more, scaling, copies, now_s).copies


@given(st.lists(st.floats(0.9, 1.1), min_size=400, max_size=400), st.integers(1, 5))
def test_noise_around_a_boundary_takes_a_copy_once_per_window(noise: list[float], boundary: int) -> None:
    samples = [(1.0, 0.0, 2.0 * boundary * each) for each in noise]
    lowered = [now_s for now_s, before, desired in courses(SCALING, samples) if desired.copies < before]
    assert len(lowered) <= 400 / SCALING.window_s


@given(st.floats(0.01, 20), st.floats(0.1, 5))
def test_constant_demand_never_oscillates(in_flight: float, every_s: float) -> None:
    samples = [(every_s, 0.0, in_flight)] * 200
    counts = [desired.copies for _, _, desired in courses(SCALING, samples)]
    assert counts == sorted(counts), "up to what is right, and never down"


def test_panic_is_left_after_a_whole_window_without_one() -> None:
    scaler = Scaler(0.0)
    scaler.sample(0, 100, 1)
    scaler.sample(100, 106, 12)
    assert asked(scaler, SCALING, 1, 106.0) == Desired(6, "a burst: 12.00 in flight over 6 s, 2 per copy", panic=True)
    assert asked(scaler, SCALING, 6, 165.9).panic
    calm = asked(scaler, SCALING, 6, 166.0)
    assert (calm.copies, calm.panic) == (5, False)


def test_an_idle_rule_of_hours_is_remembered_for_hours() -> None:
    scaler, scaling = Scaler(), Scaling(scale_to_zero=ScaleToZero.IDLE, idle_s=7200)
    scaler.sample(0, 1, 1)
    assert asked(scaler, scaling, 1, 7100.0).copies == 1
    assert not scaler.is_idle(7100.0)
    assert asked(scaler, scaling, 1, 7202.0).copies == 0
    assert scaler.is_idle(7202.0)


def test_that_a_copy_went_is_remembered_without_a_sample() -> None:
    scaler = Scaler(0.0)
    scaler.lowered(100.0)
    assert not scaler.is_idle(101.0)
    assert asked(scaler, SCALING, 4, 159.0).copies == 4
    assert asked(scaler, SCALING, 4, 160.0).copies == 3


@pytest.mark.parametrize("sampled", [False, True])
def test_who_has_just_begun_to_watch_takes_nothing_away(sampled: bool) -> None:
    scaler = Scaler(1000.0)
    if sampled:
        scaler.sample(1000, 1001, 1)
    assert [asked(scaler, SCALING, 5, now_s).copies for now_s in (1001.0, 1059.0)] == [5, 5]
    assert asked(scaler, SCALING, 5, 1060.0).copies == 4


@pytest.mark.parametrize(
    "scaling",
    [
        Scaling(target=1e-300, target_utilization=1e-300),
        Scaling(target=float("inf"), panic_threshold=NEVER_PANICS),
        Scaling(window_s=float("inf"), panic_window_s=0.001, idle_s=float("inf")),
    ],
)
def test_no_number_of_a_model_breaks_the_leader(scaling: Scaling) -> None:
    scaler = Scaler(0.0)
    scaler.sample(0, 10, 1e6)
    assert 1 <= asked(scaler, scaling, 1, 10.0).copies <= NODES


def test_it_says_what_it_is() -> None:
    scaler = Scaler(0.0)
    scaler.sample(0, 10, 1)
    assert repr(scaler) == "<Scaler <Window 60 s until=10.0> panic=0>"
