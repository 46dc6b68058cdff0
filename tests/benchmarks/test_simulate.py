"""The simulator: its numbers are what they say, and the mesh's are better than LRU's where they are meant to be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import simulate
from benchmarks.simulation import rivals
from benchmarks.simulation.workloads import WORKLOADS


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, float]:
    monkeypatch.setattr("sys.argv", ["simulate", *words, "--json"])
    assert simulate.main() == 0
    (line,) = capsys.readouterr().out.splitlines()
    found: dict[str, float] = json.loads(line)
    return found


def test_rivals_count_right() -> None:
    trace = np.array([0, 1, 2, 0, 1, 2, 0])
    assert rivals.lru(trace, 2) == 0
    assert rivals.belady(trace, 2) == 2
    assert rivals.lru(trace, 3) == rivals.belady(trace, 3) == 4
    assert rivals.hashed(trace, [3]) == 4


def test_belady_is_never_beaten(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for workload in WORKLOADS:
        words = ("--workload", workload, "--models", "300", "--requests", "3000", "--room", "30")
        found = run(capsys, monkeypatch, *words)
        assert 0 < found["lru"] <= found["belady"] <= 1
        assert 0 < found["hit_rate"] <= found["belady"]
        assert found["refused"] == 0
        assert found["cold_starts"] == round(3000 * (1 - found["hit_rate"]))


def test_steady_demand_is_served_better_than_by_lru_and_moves_less(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(capsys, monkeypatch, "--models", "1000", "--requests", "20000", "--room", "100")
    assert found["of_belady"] >= found["lru_of_belady"] + 0.05
    assert found["moved_bytes"] < found["lru_moved_bytes"]


@pytest.mark.parametrize("room", [1, 3, 10])
def test_a_trace_of_ones_own_is_served_whatever_the_room(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, room: int
) -> None:
    (tmp_path / "trace").write_text("a\nb\na\n\na\nc\n" * 20)
    found = run(capsys, monkeypatch, "--trace", str(tmp_path / "trace"), "--room", str(room))
    assert found["requests"] == 100
    assert found["models"] == 3
    assert found["refused"] == 0
    assert found["moved_bytes"] == found["cold_starts"] * simulate.MODEL_BYTES
    if room >= 3:
        assert found["hit_rate"] == found["belady"] == 0.97


def test_a_trace_that_cannot_be_read_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty").write_text("\n")
    for name, told in (("nothing", "cannot read"), ("empty", "expected one model name a line")):
        monkeypatch.setattr("sys.argv", ["simulate", "--trace", str(tmp_path / name)])
        assert simulate.main() == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("event", [("--lose", "20"), ("--roll",)], ids=["nodes are lost", "nodes are restarted"])
def test_nodes_that_go_cost_cold_starts_for_a_while_and_no_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, event: tuple[str, ...]
) -> None:
    words = ("--models", "300", "--requests", "20000", "--room", "60", "--nodes", "6", "--rate", "50")
    found = run(capsys, monkeypatch, *words, *event)
    assert found["refused"] == 0
    assert found["cold_event"] > found["cold_usual"]
    assert found["loads"] >= found["cold_starts"]
    assert (found["event_s"] > 6 * 5) is (event == ("--roll",))


def test_the_leader_loads_what_nobody_waits_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--models", "50", "--requests", "4000", "--room", "60", "--nodes", "6", "--rate", "5", "--lose", "20")
    with_it = run(capsys, monkeypatch, *words)
    without = run(capsys, monkeypatch, *words, "--no-leader")
    assert without["loads"] == without["cold_starts"]
    assert with_it["loads"] > with_it["cold_starts"]
    assert with_it["cold_starts"] < without["cold_starts"]
