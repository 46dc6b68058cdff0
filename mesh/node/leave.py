"""Taking a node out of a version's placement, by the node itself."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, Final, Protocol

from mesh.api.clock import steady_s
from mesh.core.errors import MeshError
from mesh.core.placement.forecast import History
from mesh.core.types import NodeId, Placement
from mesh.core.view import VersionKey
from mesh.registry import records
from mesh.registry.keys import placement_key
from mesh.registry.mirror import Mirror
from mesh.registry.store import Store
from mesh.telemetry import logs

log = logs.get(__name__)

TRIES: Final = 5


class Along(Protocol):
    """`Presence.along`: a write in one transaction with what the node says of its copies next."""

    def __call__(self, key: str, value: bytes, *, seen: int) -> asyncio.Future[bool]:
        """Write `key` if nobody did after revision `seen`; return whether it was written."""


class Leaves:
    """Takes `node` out of placements, and leaves there what it knows of the versions' requests.

    As long as the registry does not answer, it is tried again with what the node writes.
    """

    def __init__(self, node: NodeId, store: Store, mirror: Mirror) -> None:
        self._node = node
        self._store = store
        self._mirror = mirror
        self.along: Along | None = None
        """How to write along with the node's own records; set when it writes any."""

    def evicted(self, key: VersionKey, history: History) -> Coroutine[Any, Any, None]:
        """Leave the placement of a version whose copy has just gone; return what ends when it was left.

        What the node says of the copy goes with it, in one transaction: a read and a write less for each eviction.
        Logs what the registry says against it, and leaves it to the next reconcile.
        """
        view = self._mirror.view
        placement = view.placements.get(key)
        along = None
        if self.along is not None and placement is not None:
            left = records.encode(self._without(placement, history))
            along = self.along(placement_key(*key), left, seen=view.revision)
        return self._evicted(key, history, along)

    async def _evicted(self, key: VersionKey, history: History, along: asyncio.Future[bool] | None) -> None:
        if along is not None and await along:
            return
        try:
            await self.leave(key, history)
        except MeshError as error:
            log.warning("could not leave a placement", model=key[0], version=key[1], error=error.message)

    def left(self, key: VersionKey) -> History:
        """Return what the last node that left a version's placement knew of its requests."""
        placement, now_s = self._mirror.view.placements.get(key), steady_s()
        if placement is None:
            return History(last_s=now_s)
        return History(History(placement.heat, placement.last_s).at(now_s), now_s)

    async def leave(self, key: VersionKey, history: History | None) -> None:
        """Leave a version's placement as the registry has it. Raises `RegistryUnavailable`.

        After some tries that others were ahead of, it is left to the next reconcile.
        """
        path = placement_key(*key)
        for _ in range(TRIES):
            entry = await self._store.get(path)
            placement = records.placement_of(entry)
            if entry is None or placement is None:
                return
            left = records.encode(self._without(placement, history))
            if await self._store.replace(path, left, expected=entry.mod_revision) is not None:
                return

    def _without(self, placement: Placement, history: History | None) -> Placement:
        left = replace(placement, nodes=tuple(each for each in placement.nodes if each != self._node))
        if history is not None:
            left = replace(left, heat=round(history.heat, 3), last_s=round(history.last_s, 3))
        return left
