"""What a process holds in memory, with the processes that it started."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pynvml

MOST_CHILDREN: Final = 1000
"""That are looked at: a model that forks without end is ended for the memory of these."""

_HELD: Final = frozenset({"RssAnon:", "RssShmem:"})


def rss_bytes(pid: int) -> int:
    """Return what a process and all that it started hold in memory; 0 when it is gone. Linux's /proc.

    Pages of files (libraries, mapped weights) are not counted: the kernel shares them, and takes them back at need.
    """
    total, waiting, seen = 0, [pid], 0
    while waiting and seen < MOST_CHILDREN:
        each = waiting.pop()
        seen += 1
        try:
            total += held_bytes(Path(f"/proc/{each}/status").read_text())
            waiting += map(int, Path(f"/proc/{each}/task/{each}/children").read_text().split())
        except (OSError, ValueError, IndexError):
            continue
    return total


def held_bytes(status: str) -> int:
    """Return the anonymous and shared memory in the text of a /proc/PID/status, which counts in KiB."""
    parts = (line.split() for line in status.splitlines() if line.startswith("Rss"))
    return sum(int(each[1]) * 1024 for each in parts if each[0] in _HELD)


def gpu_bytes(pids: set[int]) -> dict[int, int]:
    """Return what processes hold on GPUs, by process, as NVML says; nothing without NVIDIA's driver.

    NVML counts a process once per GPU and kind of use; inside a container it may see other process numbers, or none.
    """
    found: dict[int, int] = {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return found
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            for each in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
                if each.pid in pids and each.usedGpuMemory:
                    found[each.pid] = found.get(each.pid, 0) + int(each.usedGpuMemory)
    except pynvml.NVMLError:
        return found
    finally:
        pynvml.nvmlShutdown()
    return found
