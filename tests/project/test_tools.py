"""A missing tool skips a test, and fails it where the tool is required."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.tools import forbidden, need

ROOT = Path(__file__).resolve().parent.parent.parent
SKIPPING = """
import pytest
from tests.fixtures.tools import need

def test_that_asks():
    need("no-such-tool")

@pytest.mark.skipif(True, reason="needs a Frobnicator binary")
def test_that_is_marked():
    raise AssertionError

def test_that_is_skipped_for_another_reason():
    pytest.skip("not on this system")
"""


def run_pytest(folder: Path, *, required: str) -> str:
    path = folder / "test_tools_inside.py"
    path.write_text(SKIPPING)
    command = [sys.executable, "-m", "pytest", "-p", "tests.fixtures.tools", "-p", "no:cacheprovider", "--color=no"]
    done = subprocess.run(
        [*command, "-rA", "-c", os.devnull, f"--rootdir={folder}", str(path)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MESH_REQUIRE": required},
    )
    assert "3 items" in done.stdout, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


def test_need_returns_the_path_of_a_tool_that_is_there() -> None:
    assert Path(need("sh")).name == "sh"


def test_need_skips_with_a_reason_that_names_the_tool() -> None:
    with pytest.raises(pytest.skip.Exception, match="needs no-such-tool, which is not on the PATH"):
        need("no-such-tool")


def test_missing_tools_skip_where_nothing_is_required(tmp_path: Path) -> None:
    assert "3 skipped" in run_pytest(tmp_path, required="")


def test_skips_that_name_a_required_tool_fail_and_others_stay(tmp_path: Path) -> None:
    summary = run_pytest(tmp_path, required="frobnicator,tool")
    # pytest calls it an error, not a failure, where a test is skipped by a mark before it starts; both fail the run.
    assert "1 failed, 1 skipped, 1 error" in summary


def test_a_reason_must_name_the_tool_as_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_REQUIRE", "etcd, grpcurl")
    assert forbidden("no etcd binary on this machine") == "etcd"
    assert forbidden("needs grpcurl") == "grpcurl"
    assert forbidden("needs etcdctl") == ""
