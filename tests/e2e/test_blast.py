"""A short run of `tests.chaos.blast`: models that do what no model should cost the good ones beside them nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.bad_models import BAD
from tests.chaos.blast import blast, running
from tests.fixtures.tools import need


@pytest.mark.timeout(240)
async def test_good_models_lose_nothing(tmp_path: Path) -> None:
    need("etcd")
    with running(tmp_path) as mesh:
        report = await blast(mesh, seconds=15, release_s=2)
    assert dict(report.wrong) == {}
    assert report.took_s.keys() == {"iris", "echo", "fold", "both"}
    assert report.bad.keys() == BAD.keys()
    assert report.recovered_s
    assert report.quarantines["load-exit"]
    seen = {name: " ".join(texts) for name, texts in report.bad.items()}
    for name, text in {
        "crash": "worker process of model 'crash' was ended by SIGSEGV",
        "exit": "worker process of model 'exit' ended itself with exit code",
        "hang": "worker process of model 'hang' was ended: a run did not end within",
        "gil": "worker process of model 'gil' was ended: a run did not end within",
        "leak": "worker process of model 'leak' was ended: it took",
        "raise": "raised ValueError: expected something else",
        "sys-exit": "raised SystemExit: over",
        "load-exit": "its worker process ended itself with exit code",
    }.items():
        assert text in seen[name]
