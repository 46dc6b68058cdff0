"""How the C library treats large buffers: kept for the next request instead of given back to the kernel each time.

A 600 KB tensor crosses a process in buffers above glibc's 128 KiB threshold. Each would be a mapping of its own, which
the kernel clears page by page at every request; that costs more than everything else done with it.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3

MMAP_BYTES: Final = 32 * 1024 * 1024
"""Buffers up to here come from the heap: the most that glibc takes for it (HEAP_MAX_SIZE / 2 on 64 bits)."""
TRIM_BYTES: Final = 64 * 1024 * 1024
"""Free memory at the top of the heap that is kept: two of the largest such buffers."""


def keep_large_buffers() -> bool:
    """Raise glibc's thresholds for this process; False where the C library is another one, and nothing is changed."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, TRIM_BYTES))
