"""Snapshots of sessions that run on other nodes: what routers have no room for. See `mesh.router.spill`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

OWNER_S: Final = 60.0
"""How long a router that says nothing keeps what it left here: it is dead then, and its clients went to another."""


@dataclass(slots=True)
class _Owner:
    heard_s: float
    states: dict[int, bytes] = field(default_factory=dict)


class Kept:
    """At most `max_bytes` of snapshots; what does not fit is refused, and never pushes out what was promised.

    0 <= kept_bytes <= max_bytes, the sum of all.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._owners: dict[str, _Owner] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self.kept_bytes = 0

    def __len__(self) -> int:
        """Return how many are kept."""
        return sum([len(each.states) for each in self._owners.values()])

    def renew(self, owner: str, dropped: Iterable[int], now_s: float) -> bool:
        """Hear from a router, and forget what it needs no more; return whether nothing was kept of it. O(dropped)."""
        mine = self._owners.get(owner)
        if mine is None:
            return True
        mine.heard_s = now_s
        for key in dropped:
            self.kept_bytes -= len(mine.states.pop(key, b""))
        if not mine.states:
            del self._owners[owner]
        return False

    def keep(self, owner: str, key: int, state: bytes, now_s: float) -> bool:
        """Keep a snapshot; False when there is no room. O(1)."""
        mine = self._owners.get(owner)
        before = len(mine.states.get(key, b"")) if mine is not None else 0
        if self.kept_bytes - before + len(state) > self._max_bytes:
            return False
        if mine is None:
            mine = self._owners[owner] = _Owner(now_s)
        mine.states[key] = state
        self.kept_bytes += len(state) - before
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(OWNER_S, self._sweep)
        return True

    def find(self, owner: str, key: int) -> bytes | None:
        """Return a snapshot, which stays; None when it is not here. O(1)."""
        mine = self._owners.get(owner)
        return mine.states.get(key) if mine is not None else None

    def forget_silent(self, now_s: float) -> None:
        """Drop what was kept for routers that were not heard of in `OWNER_S`. O(owners)."""
        for name, each in list(self._owners.items()):
            if now_s - each.heard_s > OWNER_S:
                self.kept_bytes -= sum([len(state) for state in each.states.values()])
                del self._owners[name]

    def close(self) -> None:
        """Stop looking for silent routers."""
        if self._sweeper is not None:
            self._sweeper.cancel()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self.forget_silent(loop.time())
        self._sweeper = loop.call_later(OWNER_S / 2, self._sweep) if self._owners else None

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Kept {len(self)} snapshots, {self.kept_bytes} of {self._max_bytes} bytes>"
