"""Processes whose event loop stands: they say where, and end; those that were stopped, or only slow, live on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mesh.telemetry.watchdog import HUNG
from tests.fixtures.mesh import ROOT, until

SCRIPT = """\
import asyncio, re, sys, threading, time
from mesh.telemetry import logs
from mesh.telemetry.watchdog import watching

logs.configure()

def stand_here():
    {stand}

async def main():
    with watching({hang_s}):
        await asyncio.sleep({before_s})
        print("standing", flush=True)
        {how}
        await asyncio.sleep(0.3)
    print("over", flush=True)
    {after}

asyncio.run(main())
"""
REGEX = "re.match(r'(a+)+$', 'a' * 60 + 'b')"


@contextmanager
def running(
    tmp_path: Path, stand: str, *, hang_s: float, how: str = "stand_here()", after: str = "pass", before_s: float = 0.3
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    errors = tmp_path / "stderr"
    script = SCRIPT.format(stand=stand, hang_s=hang_s, how=how, after=after, before_s=before_s)
    with errors.open("wb") as stderr:
        command = [sys.executable, "-c", script]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"standing\n", errors.read_text()
            yield process, errors
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.mark.parametrize("stand", ["time.sleep(1000)", "while True: pass", "threading.Event().wait()"])
def test_a_process_whose_loop_stands_ends_and_says_where(tmp_path: Path, stand: str) -> None:
    with running(tmp_path, stand, hang_s=3) as (process, errors):
        assert process.wait(60) == HUNG
        said = errors.read_text()
    assert "the event loop stands" in said
    assert "in stand_here" in said
    assert said.splitlines()[-1] == "error: the event loop stood for 3 s (--hang-s), its stacks are above"


@pytest.mark.parametrize("how", ["stand_here()", "await asyncio.to_thread(stand_here)"])
@pytest.mark.parametrize("before_s", [0.0, 0.3])
def test_a_process_whose_interpreter_is_kept_ends_and_says_where(tmp_path: Path, how: str, before_s: float) -> None:
    with running(tmp_path, REGEX, hang_s=2, how=how, before_s=before_s) as (process, errors):
        assert process.wait(60) == -signal.SIGPROF
        said = errors.read_text()
    assert "in stand_here" in said


def test_a_process_that_is_stopped_lives_on(tmp_path: Path) -> None:
    with running(tmp_path, "pass", hang_s=1, how="[await asyncio.sleep(0.05) for _ in range(40)]") as (process, errors):
        process.send_signal(signal.SIGSTOP)
        end_s = time.monotonic() + 4
        until(lambda: time.monotonic() > end_s, what="it was stopped for longer than its loop may stand")
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 0, errors.read_text()
        assert "stands" not in errors.read_text()


def test_a_loop_that_goes_on_in_time_is_only_logged(tmp_path: Path) -> None:
    with running(tmp_path, "time.sleep(3.5)", hang_s=30) as (process, errors):
        assert process.wait(60) == 0
        said = errors.read_text().splitlines()
    assert [line.split(" mesh.telemetry.watchdog ")[1].split(" stood_s")[0] for line in said] == [
        "the event loop stands",
        "the event loop goes on",
    ]


def test_zero_is_for_ever(tmp_path: Path) -> None:
    with running(tmp_path, "time.sleep(4)", hang_s=0) as (process, errors):
        assert process.wait(60) == 0
        assert "the event loop stands" in errors.read_text()


def test_nothing_is_watched_when_it_is_over(tmp_path: Path) -> None:
    with running(tmp_path, "pass", hang_s=1, after="time.sleep(3); sum(range(10**8))") as (process, errors):
        assert process.wait(60) == 0, errors.read_text()
        assert errors.read_text() == ""
