"""The example of three frameworks, as its reader runs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fixtures.mesh import MODELS, ROOT


@pytest.mark.timeout(300)
def test_three_frameworks_are_one_pipeline() -> None:
    if not (ROOT / ".frameworks-venv" / "bin" / "mlserver").is_file():
        pytest.skip("needs mlserver, which `make frameworks` installs beside .venv")
    done = subprocess.run(
        [sys.executable, str(MODELS / "frameworks" / "run.py")],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "150 rows through scikit-learn, ONNX Runtime and MLServer" in done.stdout
