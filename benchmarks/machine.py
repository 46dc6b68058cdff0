"""The machine that is measured on: which core is whose, what a process has used, and the versions behind a figure.

Linux only: CPU clocks of other processes, and /proc. Leaves what is run to `benchmarks.peers` and `benchmarks.load`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import platform
import shutil
import socket
import time
from importlib import metadata
from pathlib import Path

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


def pin(pid: int, core: int) -> None:
    """Move a running process, all its threads, to `core`."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(int(thread.name), {core})


def cpu_s(pid: int) -> float:
    """Return the CPU seconds, user and system, that all threads of a process have used, ended ones included.

    Linux names a CPU clock for every process: the complement of its id, shifted by three, and 2 for the scheduler's
    own count (clock_getcpuclockid(3)). It is exact, where /proc/<pid>/stat counts in steps of 10 ms.
    """
    return time.clock_gettime((~pid << 3) | 2)


def memory_bytes(pid: int, field: str) -> int:
    """Return a size of /proc/<pid>/status: VmRSS is the memory in use now, VmHWM the most there was."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) * 1024
    raise ValueError(f"expected {field} in /proc/{pid}/status")


def forget_peak(pid: int) -> None:
    """Make VmHWM of a process start again from what it uses now (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that run."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for each in lists for child in each.read_text(encoding="ascii").split()]


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
