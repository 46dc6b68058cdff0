"""Deadlines of calls, by the hundred thousand: one timer per tick, not one per call."""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol

log = logging.getLogger(__name__)

TICK_S: Final = 0.02
"""How late a deadline may be noticed. Callers keep their own; this one is for those that do not."""


class Expires(Protocol):
    """What has a deadline."""

    def expired(self) -> None:
        """Hear that it passed."""


Bucket = dict[Expires, None]


def drop(bucket: Bucket | None, call: Expires) -> None:
    """Take `call` out of the bucket that `Deadlines.add` returned, if there is one."""
    if bucket is not None:
        bucket.pop(call, None)


class Deadlines:
    """The deadlines of one loop, on the clock of `time.monotonic` (the loop's own)."""

    __slots__ = ("_buckets", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._buckets: dict[int, Bucket] = {}

    def add(self, deadline_s: float, call: Expires) -> Bucket:
        """Call `call.expired()` soon after `deadline_s`, unless it was popped from the bucket returned. O(1)."""
        tick = int(deadline_s / TICK_S) + 1
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = {}
            self._loop.call_at(tick * TICK_S, self._expire, tick)
        bucket[call] = None
        return bucket

    def _expire(self, tick: int) -> None:
        for call in list(self._buckets.pop(tick, ())):
            try:
                call.expired()
            except Exception:
                log.exception("a call could not be ended at its deadline")
