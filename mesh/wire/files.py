"""The limit of open files of this process."""

from __future__ import annotations

import resource
from contextlib import suppress
from typing import Final

ENOUGH: Final = 1 << 20
"""Files that one process can use; hard limits go far above, and some programs walk through all that are allowed."""


def raise_limit() -> int:
    """Let this process open as many files as it may be allowed without asking anybody; return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return limit()


def limit() -> int:
    """Return how many files this process may open now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ENOUGH if soft == resource.RLIM_INFINITY else min(soft, ENOUGH)
