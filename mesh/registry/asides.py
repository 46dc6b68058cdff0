"""Writes of other keys that go along with a process's own: one transaction of the registry instead of two.

A transaction costs an etcd about as much with one key as with five, and what a node tells of itself often goes with one
write elsewhere (a copy that is gone, and the placement that it leaves).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mesh.registry.store import Guard, Store

_AT_ONCE: Final = 32
"""How many go along with one write: if somebody was ahead of one of them, all are left to their owners."""


@dataclass(frozen=True, slots=True)
class Aside:
    """A value, the revision up to which its key was seen, and who is told how it went."""

    value: bytes
    seen: int
    told: asyncio.Future[bool]

    def tell(self, *, written: bool) -> None:
        """Say once whether it was written."""
        if not self.told.done():
            self.told.set_result(written)


class Asides:
    """Those that wait, by key."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[str, Aside] = {}

    def add(self, key: str, value: bytes, *, seen: int) -> asyncio.Future[bool]:
        """Have `key` written if it exists and nobody wrote it after revision `seen`; return whether it was.

        The latest of two for one key counts.
        """
        told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if (before := self._waiting.pop(key, None)) is not None:
            before.tell(written=False)
        self._waiting[key] = Aside(value, seen, told)
        return told

    def take(self) -> dict[str, Aside]:
        """Return those that go along with the next write: they wait no more."""
        some = dict(itertools.islice(self._waiting.items(), _AT_ONCE))
        for key in some:
            del self._waiting[key]
        return some

    async def write(
        self, batch: Mapping[str, bytes | None], asides: Mapping[str, Aside], *, mine: Guard, lease: int
    ) -> int | None:
        """Write `batch` under `lease` if `mine` holds, and `asides` with it if each is as it was seen.

        Returns what `Store.write` does of `batch`. All of `asides` are told, whatever happens; where the registry did
        not answer, they are told that they were not written, which may be wrong.
        """
        try:
            if asides:
                guards = (mine, *(Guard(key, seen=aside.seen) for key, aside in asides.items()))
                unleased = {key: aside.value for key, aside in asides.items()}
                revision = await self._store.write(batch, guards=guards, lease=lease, unleased=unleased)
                if revision is not None:
                    for aside in asides.values():
                        aside.tell(written=True)
                    return revision
                # Somebody wrote one of them meanwhile: that is its owner's affair.
            return await self._store.write(batch, guards=(mine,), lease=lease)
        finally:
            for aside in asides.values():
                aside.tell(written=False)

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._waiting)
