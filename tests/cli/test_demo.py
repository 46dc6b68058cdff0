"""`mesh demo` as a newcomer runs it, and its verdict."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from mesh.cli.demo_run import Tally, read_data
from mesh.core.errors import InvalidRequest
from tests.cli.running import DEADLINE_S, marked

MODELS = Path(__file__).parents[2] / "models"


@pytest.mark.timeout(600)
def test_the_demo_is_right_loses_nothing_and_leaves_nothing() -> None:
    mark = uuid.uuid4().hex
    done = subprocess.run(
        [sys.executable, "-m", "mesh.cli.main", "demo"],
        capture_output=True,
        text=True,
        check=False,
        timeout=4 * DEADLINE_S,
        env={**os.environ, "MESH_TEST_MARK": mark},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert ", lost 0\n" in done.stdout
    assert "was ended by SIGKILL; starting it again" in done.stdout
    rows = {line[:35].strip(): line.split() for line in done.stdout.splitlines()}
    for name in ("iris", "digits", "titles: product-matching", "the same over one stream"):
        assert name in rows
    assert "everything was right" in done.stdout
    assert "└▶ features" in done.stdout
    assert "product-matching, revision 1: " in done.stdout
    assert not marked(mark)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_demo_that_is_stopped_or_killed_leaves_nothing(number: signal.Signals, code: int) -> None:
    mark = uuid.uuid4().hex
    with subprocess.Popen(
        [sys.executable, "-m", "mesh.cli.main", "demo"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "MESH_TEST_MARK": mark},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("starting")
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(DEADLINE_S) == code
    end_s = time.monotonic() + DEADLINE_S
    while marked(mark):
        assert time.monotonic() < end_s, marked(mark)
        time.sleep(0.05)


def test_the_rows_are_those_of_the_checkout() -> None:
    data = read_data(MODELS / "data")
    assert data.iris.shape == (150, 4)
    assert data.digits.shape == (200, 8, 8)
    assert (len(data.iris_labels), len(data.digits_labels)) == (150, 200)
    assert len(data.titles) == len(data.titles_labels) == 216
    assert {*data.titles_labels} == {0, 1}


def test_missing_rows_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"expected the demo's rows at .*iris\.csv, found none"):
        read_data(tmp_path)


def test_a_tally_knows_its_accuracy_and_percentiles() -> None:
    tally = Tally("x", ("x",), least=0.9)
    assert (tally.accuracy, tally.percentile(0.5)) == (0.0, 0.0)
    for right in (True, True, False, True):
        tally.judge(right=right)
    tally.seconds.extend([0.4, 0.1, 0.3, 0.2])
    assert tally.accuracy == 0.75
    assert [tally.percentile(share) for share in (0.0, 0.5, 0.99)] == [0.1, 0.3, 0.4]
