"""The memory of this node's devices: room for a load, which copies go for it, and what is told of it.

The node has the last word: it evicts its own idle copies that are worth least, or refuses, and never overcommits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace

from mesh.api.clock import steady_s
from mesh.core.errors import LoadFailed, NotReady
from mesh.core.placement.evict import Idle, Order, victims
from mesh.core.types import Device, ModelVersion, NodeId
from mesh.core.view import VersionKey
from mesh.node.capacity import Account
from mesh.node.served import Served
from mesh.registry.mirror import Mirror

IN_USE_S = 0.25
"""A copy that was used this recently is in use: callers who ask one after another must not lose it in between."""

PINNED_S = 60.0
"""How long a copy stays after its last request for a stream that asked it and is still open, and for its sequences."""

WAIT_S = 2.0
"""How long a load waits for copies in use to become idle before this node gives it up to others."""

LOOK_S = 0.02

ANEW_S = 0.1
"""How old an order of copies is at least when it is made anew because it was not enough."""

SPARE = 0.1
"""What a copy is worth that others of its model stand in for, of what it would be worth alone."""

LEAST_LOAD_S = 0.1
"""What a caller waits for a load at least: registry, queue and a measurement that is mostly noise below this."""


class NoRoom(NotReady):
    """What is not in use on this node is not enough for the load, for now."""


class Memory:
    """The accounts of one node.

    `evictable` lists a device's copies with nothing in flight, `idle` returns one of them by its key (None: it is none
    any more), `evict` drops one.
    """

    def __init__(
        self,
        node: NodeId,
        accounts: Sequence[Account],
        mirror: Mirror,
        *,
        evictable: Callable[[str], Iterable[tuple[VersionKey, Served]]],
        idle: Callable[[VersionKey, str], Served | None],
        evict: Callable[[VersionKey], Awaitable[None]],
    ) -> None:
        self._node = node
        self.accounts = accounts
        self._mirror = mirror
        self._evictable = evictable
        self._idle = idle
        self._orders: dict[str, Order] = {}
        self._evict = evict
        self._making_room = asyncio.Lock()

    async def reserve(self, model: ModelVersion, account: Account, size: int) -> None:
        """Reserve `size` bytes for a load, evicting what is worth least; wait a moment for what is in use.

        Raises `LoadFailed` when the device is too small for it, `NoRoom` when too much of it stays in use.
        """
        ledger = account.ledger
        if size > ledger.capacity:
            raise LoadFailed(
                f"failed to load '{model.name}', it needs {size} bytes and {account.name} of node '{self._node}' has "
                f"{ledger.capacity} in all"
            )
        until_s = time.monotonic() + WAIT_S
        while not await self._try_to_reserve((model.name, model.version), account, size):
            if time.monotonic() > until_s:
                raise NoRoom(
                    f"it needs {size} bytes on {account.name} of node '{self._node}', which has {ledger.free} of "
                    f"{ledger.capacity} free; the other copies there are in use"
                )
            await asyncio.sleep(LOOK_S)

    async def settle(self, key: VersionKey, account: Account) -> None:
        """Make room for what a copy turned out to take, from idle copies that are worth less than others.

        Raises `NoRoom` when too much of the rest is in use.
        """
        ledger = account.ledger
        if not ledger.over:
            return
        async with self._making_room:
            for each in self._going(ledger.over, account, but=key) or ():
                await self._evict(each.key)
            if ledger.over:
                raise NoRoom(
                    f"it takes {ledger.bytes_of(key)} bytes on {account.name} of node '{self._node}', which has "
                    f"{ledger.capacity} in all; the other copies there are in use"
                )

    def devices(self) -> tuple[Device, ...]:
        """Return the devices with what is free on each, and what more room would cost there."""
        return tuple(replace(account.now(), curve=_rounded(self._order(account).curve())) for account in self.accounts)

    def release(self, key: VersionKey) -> None:
        """Take a closed copy out of its account."""
        for account in self.accounts:
            account.ledger.release(key)

    async def _try_to_reserve(self, key: VersionKey, account: Account, size: int) -> bool:
        async with self._making_room:
            if account.ledger.reserve(key, size):
                return True
            for each in self._going(size - account.ledger.free, account) or ():
                await self._evict(each.key)
            return account.ledger.reserve(key, size)

    def _going(self, missing: int, account: Account, *, but: VersionKey | None = None) -> list[Idle] | None:
        """Return the copies to evict for `missing` more bytes, not `but`; None when those that may go are too few."""

        def now(copy: Idle) -> Idle | None:
            served = self._idle(copy.key, account.name)
            return None if served is None or copy.key == but else self._worth(copy.key, served)

        order = self._order(account)
        found = victims(missing, order.first(missing, now))
        if found is None and steady_s() - order.made_s > ANEW_S:
            # Those that became idle since it was made are not in it.
            del self._orders[account.name]
            found = victims(missing, self._order(account).first(missing, now))
        return found

    def _order(self, account: Account) -> Order:
        """Return the copies on a device that may go, in the order in which they go."""
        now_s, order = steady_s(), self._orders.get(account.name)
        if order is None or order.is_old(now_s):
            found = (self._worth(key, served) for key, served in self._evictable(account.name))
            order = self._orders[account.name] = Order([each for each in found if each is not None], now_s)
        return order

    def _worth(self, key: VersionKey, served: Served) -> Idle | None:
        """Return what an idle copy is worth; None for one that may not go."""
        now_s, view, history = steady_s(), self._mirror.view, served.history
        if now_s - history.last_s < (PINNED_S if served.streams or served.live else IN_USE_S):
            return None
        model = served.model
        others = sum(each.node.id != self._node for each in view.serving.get(key, ()))
        if others < model.scaling.min_copies:
            return None
        loss = view.forecast.rate(history, now_s) * max(LEAST_LOAD_S, served.load_s)
        return Idle(key, served.bytes, loss * SPARE if others else loss, history.last_s)

    def __repr__(self) -> str:
        """Show the accounts."""
        return f"<Memory {' '.join(f'{account.name}={account.ledger!r}' for account in self.accounts)}>"


def _rounded(points: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    """Return a curve whose losses have three digits: more say nothing, and would make every record a new one."""
    return tuple((size, float(f"{loss:.3g}")) for size, loss in points)
