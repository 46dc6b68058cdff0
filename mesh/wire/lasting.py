"""Work that goes on for as long as the process does: whatever one round of it meets, it is logged, and begun again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from mesh.core.errors import let_go

log = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.1
LAST_PAUSE_S: Final = 10.0
"""First and longest pause. Work that went on for longer than the longest begins with the first again."""

LOG_EVERY_S: Final = 10.0
"""Failures in between are counted, not logged one by one."""


async def lasting(
    what: str, work: Callable[[], Awaitable[object]], *, ends: tuple[type[BaseException], ...] = ()
) -> None:
    """Run `work` until it returns; after an exception, but for those of `ends`, pause and run it again.

    Everything else that the process does goes on meanwhile. Cancelling it cancels the work.
    """
    failures, unlogged, logged_s = 0, 0, 0.0
    while True:
        began_s = time.monotonic()
        try:
            await work()
        except ends:
            raise
        except Exception as error:
            now_s = time.monotonic()
            failures = failures + 1 if now_s - began_s < LAST_PAUSE_S else 1
            unlogged += 1
            pause_s = min(LAST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16))
            if not logged_s or now_s - logged_s >= LOG_EVERY_S:
                text = "%s failed (%d times since the last such line) and begins again in %.1f s"
                log.exception(text, what, unlogged, pause_s)
                unlogged, logged_s = 0, now_s
            let_go(error)
        else:
            return
        await asyncio.sleep(pause_s)
