"""`Election`: at most one of several candidates is the leader at any time.

Owns the campaign, the keeping and the stepping down. The leader holds a key under a lease; the key is created by
compare-and-swap, so that two never both create it. A leader that cannot renew steps down by its own clock before the
lease can end at the registry: its time is counted from before each renewal was sent, the registry counts from after.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Final

from mesh.core.errors import LeaseLost, MeshError
from mesh.registry.store import Store
from mesh.registry.trouble import pause_s

_MARGIN: Final = 0.1
"""Part of the lease's time given up at its end, for a loop that wakes late and clocks that drift."""


class Election:
    """Campaigns for `key` as `candidate` while `run` runs. `on_change` is told when `is_leader` changes."""

    def __init__(
        self,
        store: Store,
        key: str,
        candidate: str,
        ttl_s: int,
        *,
        on_change: Callable[[bool], None] | None = None,
    ) -> None:
        self._store = store
        self._key = key
        self._candidate = candidate
        self._ttl_s = ttl_s
        self._on_change = on_change
        self._lease = 0
        self._until_s = float("-inf")
        self._leading = False
        self._changed = asyncio.Event()
        self._resigned = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        """Show where the election stands."""
        return f"<Election {self._key} candidate={self._candidate} leader={self.is_leader}>"

    @property
    def is_leader(self) -> bool:
        """Whether this candidate leads now. False as soon as its time is over, even when the loop is stuck."""
        return self._leading and time.monotonic() < self._until_s

    async def wait_for(self, *, leader: bool) -> None:
        """Return as soon as `is_leader` is `leader`."""
        while self.is_leader is not leader:
            changed = self._changed
            left_s = self._until_s - time.monotonic() if self._leading else None
            try:
                async with asyncio.timeout(None if left_s is None else max(0.0, left_s)):
                    await changed.wait()
            except TimeoutError:
                continue

    async def run(self) -> None:
        """Campaign, lead, step down, campaign again, until `resign`. Never gives up on a registry that is away."""
        if self._running is not None:
            raise RuntimeError(f"expected one run of the election for {self._key}, it runs already")
        self._running = asyncio.create_task(self._campaign(), name=f"election {self._key}")
        leaving = asyncio.create_task(self._resigned.wait())
        try:
            await asyncio.wait((self._running, leaving), return_when=asyncio.FIRST_COMPLETED)
            if self._running.done() and not self._running.cancelled():
                self._running.result()
        finally:
            leaving.cancel()
            self._running.cancel()
            await asyncio.gather(self._running, leaving, return_exceptions=True)
            self._running = None
            self._set(leading=False)

    async def resign(self) -> None:
        """Stop `run` and let another candidate lead at once. Idempotent. Without a registry the lease runs out."""
        self._resigned.set()
        self._set(leading=False)
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait((self._running,))
        await self._let_go()

    async def _campaign(self) -> None:
        failures = 0
        while True:
            try:
                if await self._win():
                    await self._lead()
                else:
                    await self._wait_for_vacancy()
                failures = 0
            except MeshError:
                failures += 1
            finally:
                self._set(leading=False)
            await self._let_go()
            if failures:
                await asyncio.sleep(pause_s(failures, random.random()))  # noqa: S311 - spreads load, no secret

    async def _win(self) -> bool:
        """Try to create the key; tell whether this candidate leads."""
        if await self._store.get(self._key) is not None:
            return False
        granted_s = time.monotonic()
        self._lease = await self._store.grant(self._ttl_s)
        value = self._candidate.encode()
        if await self._store.replace(self._key, value, expected=0, lease=self._lease) is None:
            return False
        self._extend(granted_s, self._ttl_s)
        self._set(leading=True)
        return True

    async def _lead(self) -> None:
        """Renew until the time is over or the key is no longer ours."""
        while self.is_leader:
            renew_s = time.monotonic() + self._ttl_s / 3
            try:
                async with asyncio.timeout(max(0.0, self._until_s - time.monotonic())):
                    asked_s = time.monotonic()
                    ttl_s = await self._store.keep_alive(self._lease)
                    entry = await self._store.get(self._key)
            except LeaseLost:
                return
            except (MeshError, TimeoutError):
                # Not renewed: the time goes on running, and it is tried again while there is some left.
                await asyncio.sleep(min(0.1, max(0.0, self._until_s - time.monotonic())))
                continue
            if entry is None or entry.lease != self._lease:
                return
            self._extend(asked_s, ttl_s)
            await asyncio.sleep(max(0.0, min(renew_s, self._until_s) - time.monotonic()))

    async def _wait_for_vacancy(self) -> None:
        """Return when the key may be free. Looks again every `ttl_s` whatever the watch says."""
        await self._let_go()
        listing = await self._store.list(self._key)
        if not any(entry.key == self._key for entry in listing.entries):
            return
        try:
            async with (
                asyncio.timeout(self._ttl_s),
                aclosing(self._store.watch(self._key, after=listing.revision)) as batches,
            ):
                async for batch in batches:
                    if batch.relisted or any(event.key == self._key and event.entry is None for event in batch.events):
                        return
        except TimeoutError:
            return

    async def _let_go(self) -> None:
        """End the lease so that others need not wait for it; it ends by itself when the registry does not answer."""
        lease, self._lease = self._lease, 0
        if lease:
            try:
                await self._store.revoke(lease)
            except MeshError:
                return

    def _extend(self, asked_s: float, ttl_s: float) -> None:
        self._until_s = asked_s + ttl_s * (1.0 - _MARGIN)

    def _set(self, *, leading: bool) -> None:
        if self._leading is leading:
            return
        self._leading = leading
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if self._on_change is not None:
            self._on_change(leading)
