"""A running `mesh up` for tests: started on free ports, ended with everything it started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psutil

from mesh.api.service import unary

DEADLINE_S = 100.0
"""Generous: four processes start on a small, busy machine."""


class Up:
    """A running `mesh up`."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self.process = process
        self.errors = errors
        self.ready: dict[str, Any] = {}

    @property
    def address(self) -> str:
        """host:port of its router."""
        return str(self.ready["router"]["grpc"])

    def said(self) -> str:
        return self.errors.read_text()

    def family(self) -> list[psutil.Process]:
        """Return every process it started, at any depth."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def ask(self, path: str, request: Any, response: Any, metadata: tuple[tuple[str, str], ...] = ()) -> Any:
        """Call a unary method of the router."""
        with grpc.insecure_channel(self.address) as channel:
            call = unary(channel, path, type(request), response)
            return call(request, timeout=DEADLINE_S, wait_for_ready=True, metadata=metadata)


@contextmanager
def up(folder: Path, *flags: str, env: dict[str, str] | None = None) -> Iterator[Up]:
    """Run `mesh up --json` on free ports; end it, and everything it started, at the end."""
    errors = folder / "stderr"
    command = [sys.executable, "-m", "mesh.cli.main", "up", "--json", "--grpc-port", "0", "--http-port", "0", *flags]
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, **(env or {})}
        ) as process,
    ):
        family: list[psutil.Process] = []
        running = Up(process, errors)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, f"no ready line: {running.said()}"
            running.ready = json.loads(line)
            family = running.family()
            yield running
            process.terminate()
            process.wait(DEADLINE_S)
        finally:
            process.kill()
            for each in family:
                if each.is_running():
                    each.kill()


def until(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, what()
        time.sleep(0.05)


def gone(family: list[psutil.Process]) -> bool:
    return not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in family)


def marked(mark: str) -> list[psutil.Process]:
    """Return the processes that run with MESH_TEST_MARK=mark, inherited from the one that a test started."""
    found = []
    for each in psutil.process_iter():
        with suppress(psutil.Error):
            if each.environ().get("MESH_TEST_MARK") == mark and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
    return found
