"""What is remembered of versions that ended processes: the files in tests/scenarios/suspects, and what always holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import suspects
from mesh.core.suspects import Death, Suspect
from mesh.core.types import ModelName, ModelVersion, NodeId, Version

FILES = sorted((Path(__file__).parents[1] / "scenarios" / "suspects").glob("*.yaml"))
NODE = NodeId("n1")


def model(digest: str = "first") -> ModelVersion:
    return ModelVersion(ModelName("m"), Version("1"), "python", "file:///m/1", digest, 1)


def seen(suspect: Suspect | None, digest: str, now_s: float) -> dict[str, Any]:
    """Return what may stand in a step of a scenario."""
    return {
        "isolated": suspects.must_isolate(suspect, digest),
        "suspect": suspects.is_suspect(suspect, digest, now_s),
        "pause": suspects.pause_s(suspect, digest, now_s),
        "quarantined": suspects.quarantined_s(suspect, digest, now_s),
        "deaths": suspect.deaths if suspect is not None else 0,
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_scenario(file: Path) -> None:
    suspect: Suspect | None = None
    for step in yaml.safe_load(file.read_text())["steps"]:
        now_s, digest = float(step.pop("at")), step.pop("digest", "first")
        if step.pop("released", False):
            suspect = None
        if how := step.pop("dies", ""):
            suspect = suspects.died(suspect, model(digest), Death(how), "it broke", NODE, now_s)
        found = seen(suspect, digest, now_s)
        assert {name: found[name] for name in step} == step, f"at {now_s} s"


def test_there_are_scenarios() -> None:
    assert len(FILES) >= 7


@given(st.lists(st.tuples(st.sampled_from(Death), st.floats(0, 5000)), max_size=40), st.floats(0, 1e5))
def test_what_always_holds(deaths: list[tuple[Death, float]], later_s: float) -> None:
    suspect, now_s = None, 1e9
    for how, after_s in deaths:
        now_s += after_s
        before = suspect
        suspect = suspects.died(before, model(), how, "x" * 5000, NODE, now_s)
        was = suspects.quarantined_s(before, "first", now_s)
        quarantined = suspects.quarantined_s(suspect, "first", now_s)
        assert quarantined >= was, "a death never ends a quarantine"
        assert suspects.must_isolate(suspect, "first") or how is Death.SHARED
        assert not suspects.must_isolate(before, "first") or suspects.must_isolate(suspect, "first")
        assert len(suspect.recent) <= 2 * suspects.ENOUGH or was, "the record stays small"
        assert len(suspect.text) <= suspects.MOST_TEXT
    for at_s in (now_s, now_s + later_s):
        pause_s = suspects.pause_s(suspect, "first", at_s)
        quarantined_s = suspects.quarantined_s(suspect, "first", at_s)
        assert 0 <= quarantined_s <= pause_s <= suspects.LONGEST_QUARANTINE_S
        assert quarantined_s or pause_s <= suspects.LONGEST_PAUSE_S
    end_s = now_s + suspects.LONGEST_QUARANTINE_S
    assert suspects.pause_s(suspect, "first", end_s) == 0
    assert not suspects.is_suspect(suspect, "first", end_s + suspects.FORGIVEN_S)


def test_a_refusal_says_until_when_and_why() -> None:
    suspect: Suspect | None = None
    for _ in range(3):
        suspect = suspects.died(suspect, model(), Death.WORKER, "segmentation fault", NODE, 100.0)
    error = suspects.refusal(suspect, model(), 130.0)
    assert error is not None
    assert error.message == (
        "model 'm' version 1 is quarantined for 30 s more: it ended 3 processes, the last on node 'n1' "
        "(segmentation fault); 'mesh models release m' lifts it"
    )
    assert error.retry_after_s == 30
    assert error.facts == {"model": "m", "version": "1", "until": "160", "deaths": "3", "last": "segmentation fault"}
    assert suspects.refusal(suspect, model(), 160.0) is None
    assert suspects.refusal(suspect, model("mended"), 130.0) is None
    assert suspects.refusal(None, model(), 130.0) is None
