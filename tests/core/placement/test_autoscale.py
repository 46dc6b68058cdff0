from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.placement.autoscale import Scaler
from mesh.core.types import ScaleToZero, Scaling

SCALING = Scaling(target=4, target_utilization=0.5, window_s=60, panic_window_s=6)
FILES = sorted((Path(__file__).parents[2] / "scenarios" / "autoscale").glob("*.yaml"))
NODES = 10


class Model:
    """A model whose copies are as many as was decided, at once; time goes on second by second."""

    def __init__(self, scaling: Scaling, copies: int = 1) -> None:
        self.scaling = scaling
        self.scaler = Scaler(0.0)
        self.copies = copies
        self.now_s = 0.0

    def step(self, in_flight: float) -> int:
        self.now_s += 1
        if in_flight:
            self.scaler.sample(self.now_s - 1, self.now_s, in_flight)
        wanted = self.scaler.desired(
            self.scaling, ready=self.copies, now=self.copies, nodes=NODES, now_s=self.now_s
        ).copies
        if wanted < self.copies:
            self.scaler.lowered(self.now_s)
        self.copies = wanted
        return wanted


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    scenario: dict[str, Any] = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("# "), "a scenario says in words what it is about"
    given = scenario.get("scaling", {})
    if "scale_to_zero" in given:
        given["scale_to_zero"] = ScaleToZero(given["scale_to_zero"])
    model = Model(replace(SCALING, **given), scenario.get("copies", 1))
    for step in scenario["steps"]:
        seen = [model.step(step["in_flight"]) for _ in range(step["seconds"])]
        assert seen[-1] == step["copies"], f"after {model.now_s:.0f} s: {seen}"
        if "never_below" in step:
            assert min(seen) >= step["never_below"]
        assert all(before - after <= 1 for before, after in pairwise(seen)), "one at a time"


def test_there_are_scenarios() -> None:
    assert len(FILES) >= 6


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
demands = st.lists(st.tuples(st.integers(1, 30), st.floats(0, 100)), max_size=12)


@given(scalings, demands)
def test_bounds_always_hold_and_copies_go_one_at_a_time(scaling: Scaling, demand: list[tuple[int, float]]) -> None:
    model = Model(scaling, scaling.min_copies)
    for seconds, in_flight in demand:
        for _ in range(seconds):
            before = model.copies
            copies = model.step(in_flight)
            assert scaling.min_copies <= copies <= (scaling.max_copies or NODES)
            assert copies >= before - 1


@given(scalings, st.floats(0.01, 100))
def test_constant_demand_settles(scaling: Scaling, in_flight: float) -> None:
    model = Model(scaling)
    for _ in range(int(scaling.window_s) * (NODES + 3)):
        model.step(in_flight)
    settled = model.copies
    assert {model.step(in_flight) for _ in range(200)} == {settled}


@given(scalings, demands, st.integers(0, 12), st.integers(0, 12))
def test_asking_twice_changes_nothing(scaling: Scaling, demand: list[tuple[int, float]], ready: int, now: int) -> None:
    scaler, now_s = Scaler(0.0), 0.0
    for seconds, in_flight in demand:
        scaler.sample(now_s, now_s + seconds, in_flight)
        now_s += seconds
    first = scaler.desired(scaling, ready=ready, now=now, nodes=NODES, now_s=now_s)
    assert scaler.desired(scaling, ready=ready, now=now, nodes=NODES, now_s=now_s) == first


@given(st.lists(st.tuples(st.floats(0.01, 50), st.floats(0, 20), st.floats(0, 100)), max_size=30), st.floats(1, 100))
def test_an_average_is_between_none_and_the_most(samples: list[tuple[float, float, float]], window_s: float) -> None:
    scaler, now_s = Scaler(), 0.0
    for span_s, gap_s, in_flight in samples:
        now_s += gap_s
        scaler.sample(now_s, now_s + span_s, in_flight)
        now_s += span_s
    most = max((in_flight for _, _, in_flight in samples), default=0.0)
    assert 0 <= scaler.average(window_s, now_s) <= most + 1e-6
    assert scaler.average(window_s, now_s + window_s + 1) == 0.0
