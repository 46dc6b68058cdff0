"""The machine that is measured on: which core is whose, what a process has used, and the versions behind a figure.

Linux only: CPU time comes from /proc. Leaves what is run to `benchmarks.peers` and `benchmarks.load`.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import shutil
import socket
from importlib import metadata
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE = CORES[0]
LOAD_CORE = CORES[-1]
"""Another core than the servers', unless there is only one."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def pinned(core: int, *command: str) -> list[str]:
    """Return `command` on `core`, where taskset is there."""
    return ["taskset", "-c", str(core), *command] if shutil.which("taskset") else list(command)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds, user and system, of all threads of a process and of its children that ended.

    Fields 14 to 17 of /proc/<pid>/stat (proc(5)), counted after the command's closing bracket: a command may hold
    spaces. Steps are 10 ms on most kernels, so a run should take a second or more.
    """
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return sum(int(value) for value in fields[11:15]) * TICK_S


def describe() -> str:
    """Return the day, the machine and the versions that the figures depend on, as one line."""
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("grpcio", "onnxruntime", "protobuf"))
    loop = "uvloop" if _installed("uvloop") else "asyncio"
    today = dt.datetime.now(tz=dt.UTC).date()
    return f"{today}, {len(CORES)} cores, Python {platform.python_version()}, {packages}, {loop}"


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
