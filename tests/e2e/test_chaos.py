"""A short run of `tests.chaos.run`: nodes and routers are killed and drained, and every stream is as if nothing was."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import chaos, running
from tests.fixtures.tools import need


@pytest.mark.timeout(240)
async def test_every_session_is_as_in_an_undisturbed_run(tmp_path: Path) -> None:
    need("etcd")
    # The routers have room for five large states each: the others are kept by nodes, which are killed too.
    with running(tmp_path, session_bytes=1_000_000) as mesh:
        report = await chaos(mesh, seconds=8, sessions=40, seed=6)
    assert report.wrong == []
    assert min(report.sessions.values()) > 5
    assert sum(report.events.values()) >= 3
