"""A whole mesh while nodes, routers and etcd members are killed, frozen and cut off, and their clocks are set."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos.faults import chaos, running
from tests.fixtures.tools import need

SECONDS = 20
WRONG = ("a wrong answer", "a session was lost")


@pytest.mark.timeout(300)
def test_no_answer_is_wrong_and_no_session_is_lost(tmp_path: Path) -> None:
    """How long calls take, and which fail, `python -m tests.chaos.faults` judges, on a machine that is quiet."""
    need("etcd")
    with running(tmp_path) as mesh:
        report = asyncio.run(chaos(mesh, seconds=SECONDS, seed=1))
    assert not [text for text in report.wrong if any(each in text for each in WRONG)], "\n".join(report.lines())
    assert report.sessions["whole"]
    assert len(report.faults) >= 3
