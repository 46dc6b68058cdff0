"""How much memory there is, and how the C library treats large buffers: it keeps them for the next request.

A 600 KB tensor crosses a process in buffers above glibc's 128 KiB threshold. Each would be a mapping of its own, given
back to the kernel and cleared by it page by page at every request, which costs more than everything else done with it.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Final

import psutil

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3

MMAP_BYTES: Final = 32 * 1024 * 1024
"""Buffers up to here come from the heap: the most that glibc takes for it (HEAP_MAX_SIZE / 2 on 64 bits)."""
TRIM_BYTES: Final = 64 * 1024 * 1024
"""Free memory at the top of the heap that is kept: two of the largest such buffers."""

LEAST_HELD: Final = 1024 * 1024 * 1024
HELD_SHARE: Final = 8
"""One part of so many of the memory. At least four of the largest messages taken by default: one connection alone gets
half of it."""

_CGROUP_LIMITS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""cgroup v2, then v1."""


def keep_large_buffers() -> bool:
    """Raise glibc's thresholds for this process; False where the C library is another one, and nothing is changed."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, TRIM_BYTES))


def host_memory_bytes() -> int:
    """Return the memory that this process may use: the cgroup's limit where there is one, else the host's."""
    host = int(psutil.virtual_memory().total)
    for path in _CGROUP_LIMITS:
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdecimal() and int(text) < host:
            return int(text)
    return host


def default_held_bytes() -> int:
    """Return what callers may make a process hold, unless it is told."""
    return max(LEAST_HELD, host_memory_bytes() // HELD_SHARE)
