"""Which versions a loader has to look at: those that changed in the registry or here, or all of them.

With thousands of copies a look at all, after each of many changes a second, is most of what a node does. All are looked
at in the beginning, after the registry was read anew, and now and then: nothing depends on having seen a change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from mesh.core.fold import Change, ModelChange, PlacementChange, SuspectChange
from mesh.core.view import VersionKey

ALL_S: Final = 60.0
"""How often all are looked at, whatever was seen to change."""


class Look:
    """What is to be looked at. `concerns` tells whether a version is held or wanted here."""

    def __init__(self, concerns: Callable[[VersionKey], bool]) -> None:
        self._concerns = concerns
        self._keys: set[VersionKey] = set()
        self._all = True
        self._wake = asyncio.Event()
        self._wake.set()

    def at(self, key: VersionKey) -> None:
        """Look at a version soon."""
        self._keys.add(key)
        self._wake.set()

    def at_all(self) -> None:
        """Look at all soon."""
        self._all = True
        self._wake.set()

    def changed(self, changes: Sequence[Change] | None) -> None:
        """Take what changed in the registry; None: it was read anew. O(changes)."""
        if changes is None:
            self.at_all()
            return
        for change in changes:
            if isinstance(change, PlacementChange | ModelChange | SuspectChange) and self._concerns(change.key):
                self.at(change.key)

    async def next(self) -> set[VersionKey] | None:
        """Return the versions to look at as soon as there are any, and forget them; None: all."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ALL_S):
                await self._wake.wait()
        keys = None if self._all or not self._wake.is_set() else self._keys
        self._keys, self._all = set(), False
        self._wake.clear()
        return keys

    def __repr__(self) -> str:
        """Show how many wait."""
        return f"<Look {'all' if self._all else len(self._keys)}>"
