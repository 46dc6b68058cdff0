"""Children of `mesh up`: real processes that start, die, start again and stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.cli.children import Child, ChildFailed, Ready, parse_ready

DEADLINE_S = 60.0
SERVE = """
import json, sys, signal, time
print('noise'); print(json.dumps({"ready": True, "grpc": "127.0.0.1:" + sys.argv[1], "http": ""}), flush=True)
print("log line", file=sys.stderr, flush=True)
while True: time.sleep(60)
"""
LEASH_HOLDER = """
import os, subprocess, sys, time
held = subprocess.Popen([sys.executable, "-m", "mesh.cli.leash", str(os.getpid()), "sleep", "600"])
print(held.pid, flush=True)
time.sleep(600)
"""


class Heard:
    """What a child and its keeper said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.relayed: list[str] = []

    def child(self, code: str, *arguments: str) -> Child:
        argv = [sys.executable, "-c", code, *arguments]
        return Child("it", lambda _: argv, say=self.said.append, relay=self.relayed.append)


@pytest.fixture
def heard() -> Heard:
    return Heard()


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until `condition` holds; fail with `what` after a generous while."""
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, what
        await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


async def test_a_child_is_ready_when_it_says_so_and_its_stderr_is_passed_on(heard: Heard) -> None:
    child = heard.child(SERVE, "7")
    assert child.pid == 0
    assert await child.start() == Ready(grpc="127.0.0.1:7")
    assert alive(child.pid)
    await until(lambda: heard.relayed == ["log line"], "stderr is relayed")
    await child.stop(DEADLINE_S)
    assert child.pid == 0
    assert repr(child) == "<Child it pid=0 restarts=0>"


async def test_a_child_that_dies_before_it_is_ready_fails_with_its_own_sentence(heard: Heard) -> None:
    child = heard.child("import sys; print('more', file=sys.stderr); sys.exit('error: the port 1 is taken')")
    with pytest.raises(ChildFailed, match=r"^it ended with code 1: the port 1 is taken$"):
        await child.start()
    assert heard.relayed == ["more"]
    await child.stop(0)


async def test_a_program_that_is_not_there_fails_with_a_sentence(heard: Heard) -> None:
    child = Child("it", lambda _: ["/no/such/program"], say=heard.said.append, relay=heard.relayed.append)
    with pytest.raises(ChildFailed, match=r"it cannot be started: .*No such file"):
        await child.start()
    await child.stop(0)


async def test_a_killed_child_is_started_again_and_that_is_said(heard: Heard) -> None:
    starts: list[Ready | None] = []

    def argv(last: Ready | None) -> list[str]:
        starts.append(last)
        return [sys.executable, "-c", SERVE, str(len(starts))]

    child = Child("it", argv, say=heard.said.append, relay=heard.relayed.append)
    await child.start()
    keeping = asyncio.create_task(child.keep())
    first = child.pid
    os.kill(first, signal.SIGKILL)
    await until(lambda: "it runs again" in heard.said, "the child runs again")
    assert heard.said[0] == "it was ended by SIGKILL; starting it again in 0.5 s"
    assert child.pid not in (0, first)
    assert child.restarts == 1
    assert starts == [None, Ready(grpc="127.0.0.1:1")]
    assert child.ready == Ready(grpc="127.0.0.1:2")
    await child.stop(DEADLINE_S)
    await keeping


async def test_waits_grow_while_a_child_keeps_dying(heard: Heard) -> None:
    codes = iter([SERVE])
    child = Child(
        "it",
        lambda _: [sys.executable, "-c", next(codes, "raise SystemExit('error: no')"), "1"],
        say=heard.said.append,
        relay=heard.relayed.append,
    )
    await child.start()
    keeping = asyncio.create_task(child.keep())
    os.kill(child.pid, signal.SIGKILL)
    await until(lambda: len(heard.said) == 3, "three ends were said")
    assert [line.rpartition(" in ")[2] for line in heard.said] == ["0.5 s", "1 s", "2 s"]
    assert heard.said[1] == "it ended with code 1: no; starting it again in 1 s"
    keeping.cancel()
    await child.stop(DEADLINE_S)


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(heard: Heard) -> None:
    child = heard.child("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVE, "1")
    await child.start()
    pid = child.pid
    await child.stop(0.2)
    assert not alive(pid)


async def test_cancelled_while_starting_a_child_can_still_be_stopped(heard: Heard) -> None:
    child = heard.child("import time; time.sleep(600)")
    starting = asyncio.create_task(child.start())
    await until(lambda: child.pid != 0, "the process runs")
    pid = child.pid
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await child.stop(DEADLINE_S)
    assert not alive(pid)


async def test_long_lines_and_bytes_that_are_no_text_come_through(heard: Heard) -> None:
    child = heard.child(
        "import sys; sys.stderr.buffer.write(b'x' * 200_000 + b'\\n\\xff\\nlast'); sys.exit(3)",
    )
    with pytest.raises(ChildFailed, match="it ended with code 3: last"):
        await child.start()
    assert sum(len(line) for line in heard.relayed if set(line) == {"x"}) == 200_000
    assert heard.relayed[-2:] == ["\ufffd", "last"]
    await child.stop(0)


@pytest.mark.parametrize("line", ["", "ready", "{}", "[]", '{"ready": false}', '{"ready": 1}'])
def test_other_lines_are_not_ready_lines(line: str) -> None:
    assert parse_ready(line) is None


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
async def test_a_program_on_a_leash_dies_with_its_killed_parent() -> None:
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", LEASH_HOLDER, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    command = Path(f"/proc/{pid}/cmdline")
    await until(lambda: command.read_bytes().startswith(b"sleep\0"), "the leash became the program")
    parent.kill()
    await parent.wait()
    await until(lambda: not Path(f"/proc/{pid}").exists() or not alive(pid), "the program died with its parent")
