"""The Makefile finds a Python that works and says what to do when there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.tools import need

ROOT = Path(__file__).resolve().parent.parent.parent
BROKEN = "#!/bin/sh\necho 'this version is not installed' >&2\nexit 127\n"
OLD = "#!/bin/sh\nexit 1\n"


def make(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}
    }
    if path is not None:
        environment["PATH"] = path
    return subprocess.run(
        [need("make"), *arguments], check=False, capture_output=True, text=True, cwd=ROOT, env=environment
    )


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with the tools a recipe needs and no Python."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for tool in ("sh", "rm", "mkdir", "touch"):
        (folder / tool).symlink_to(need(tool))
    return folder


@pytest.mark.parametrize(
    "target", ["setup", "demo", "test", "check", "lint", "format", "proto", "models", "bench", "clean", "help"]
)
def test_every_target_can_be_planned(target: str) -> None:
    done = make("--dry-run", target)
    assert done.returncode == 0, done.stderr


def test_without_a_suitable_python_it_says_which_are(tmp_path: Path, tools: Path) -> None:
    script(tools / "python3.13", BROKEN)
    script(tools / "python3", OLD)
    venv = tmp_path / "venv"
    done = make(f"VENV={venv}", f"{venv}/bin/python", path=str(tools))
    assert done.returncode != 0
    assert "expected Python 3.11, 3.12 or 3.13 as python3.x or python3 on the PATH, found none" in done.stderr
    assert not venv.exists()


def test_it_passes_over_a_shim_that_cannot_start(tmp_path: Path, tools: Path) -> None:
    script(tools / "python3.13", BROKEN)
    script(tools / "python3", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    venv = tmp_path / "venv"
    done = make(f"VENV={venv}", f"{venv}/bin/python", path=str(tools))
    assert done.returncode == 0, done.stderr
    assert "making" in done.stdout
    asked = [str(venv / "bin" / "python"), "-c", "import pip, sys; print(sys.version_info[:2])"]
    assert subprocess.check_output(asked, text=True).strip() == str(sys.version_info[:2])
    shutil.rmtree(venv)


def test_a_changed_pyproject_is_installed_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").touch()
    plan = ("--dry-run", f"VENV={venv}", "setup")
    assert "pip --disable-pip-version-check install" in make(*plan).stdout
    for stamp in (".stamp-run", ".stamp-dev"):
        (venv / stamp).touch()
    assert "install" not in make(*plan).stdout
    assert "install" in make(*plan, "--what-if=pyproject.toml").stdout
