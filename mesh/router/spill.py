"""Snapshots of sessions that this router has no room for: another node keeps them, and gives them back when they count.

It is the node that the session would go to last, so that what it keeps still counts after the session moved. One call
at a time goes to each, with many small snapshots or one large; what it refuses is offered to the next node. A node that
keeps something is called every `RENEW_S`, as it drops what a silent router left (`mesh.node.kept`).
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from mesh.api.messages import node_control
from mesh.core.errors import MeshError
from mesh.core.sessions.session import Place
from mesh.core.traffic.balance import Balancer, rendezvous
from mesh.core.types import Node, NodeId
from mesh.core.view import ClusterView
from mesh.router.channels import Channels
from mesh.router.live import Keeping, Live

KEEP: Final = "/mesh.v1.NodeControl/KeepSnapshots"
KEPT: Final = "/mesh.v1.NodeControl/KeptSnapshot"

CALL_S: Final = 30.0
"""How long a node may take to take or give snapshots."""
RENEW_S: Final = 10.0
REFUSED_S: Final = 5.0
"""How long a node without room, or without an answer, is not asked again."""
MESSAGE_BYTES: Final = 4 * 1024 * 1024
"""Snapshots go together up to this; a larger one goes alone."""
PENDING: Final = 0.5
"""Of what the router may keep may be on its way at once: it stays in memory until it has arrived."""


@dataclass(slots=True)
class _Parcel:
    key: int
    live: Live
    snapshot: bytes


@dataclass(slots=True, eq=False)
class _Keeper:
    """A node's process that keeps snapshots for this router."""

    place: Place
    address: str
    held: dict[int, Live] = field(default_factory=dict)
    outbox: deque[_Parcel] = field(default_factory=deque)
    dropped: list[int] = field(default_factory=list)
    calling: bool = False
    leaving: bool = False
    """Whether what it keeps was asked back already."""


class Spill:
    """What other nodes keep for one router. 0 <= pending_bytes, the sum of what is on its way there."""

    def __init__(
        self,
        view: Callable[[], ClusterView],
        channels: Channels,
        balancer: Balancer,
        *,
        max_bytes: int,
    ) -> None:
        """Make one that keeps nothing; `max_bytes` is what the router keeps itself."""
        self._view = view
        self._channels = channels
        self._balancer = balancer
        self._max_bytes = max_bytes
        self._owner = secrets.token_hex(8)
        self._keys = itertools.count(1)
        self._keepers: dict[Place, _Keeper] = {}
        self._refused: dict[NodeId, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewer: asyncio.TimerHandle | None = None
        self.on_done: Callable[[Live, bytes, Keeping | None], None] = _nobody
        """Hears of a snapshot that is at another node, or (None) that none took."""
        self.on_lost: Callable[[Live], None] = _nobody
        """Hears of a session whose snapshot is gone with the node that kept it."""
        self.pending_bytes = 0

    def begin(self, live: Live) -> int:
        """Send a session's snapshot to another node; return its bytes, 0 if there is none or no node for it. O(nodes).

        One that came back from there needs no sending: it is put away. Else `on_done` is called later.
        """
        snapshot, kept = live.core.snapshot, live.kept
        if snapshot is None or live.spilling:
            return 0
        if kept is not None and kept.snapshot is snapshot and kept.place != live.core.place:
            if not live.core.put_away(snapshot):
                return 0
            kept.snapshot = None
            return len(snapshot)
        room = self._max_bytes * PENDING - self.pending_bytes
        if len(snapshot) > room and (self.pending_bytes or len(snapshot) > self._max_bytes):
            return 0
        host = self._choose(live)
        if host is None:
            return 0
        live.spilling = True
        self.pending_bytes += len(snapshot)
        place = (host.id, host.incarnation)
        keeper = self._keepers.get(place)
        if keeper is None:
            keeper = self._keepers[place] = _Keeper(place, host.address)
        keeper.outbox.append(_Parcel(next(self._keys), live, snapshot))
        self._call_soon(keeper)
        return len(snapshot)

    def drop(self, live: Live) -> None:
        """Hear that a kept snapshot is not needed any more. Idempotent."""
        kept, live.kept = live.kept, None
        if kept is not None:
            keeper = self._keepers.get(kept.place)
            if keeper is not None and keeper.held.pop(kept.key, None) is not None:
                keeper.dropped.append(kept.key)

    async def back(self, kept: Keeping) -> bytes | None:
        """Return a kept snapshot, None when its node is gone or has it no more. It stays there until `drop`."""
        keeper = self._keepers.get(kept.place)
        if keeper is None:
            return None
        request = node_control.KeptSnapshotRequest(owner=self._owner, key=kept.key)
        channel = self._channels.to(keeper.address)
        try:
            reply = await channel.unary(KEPT, request.SerializeToString(), metadata=(), timeout_s=CALL_S)
        except MeshError:
            return None
        return node_control.KeptSnapshotResponse.FromString(reply.message).state

    def moved(self, view: ClusterView) -> list[Live]:
        """Look at a new view: sessions whose keeper is gone are lost there; return those whose keeper is leaving."""
        leaving: list[Live] = []
        for keeper in list(self._keepers.values()):
            node = view.nodes.get(keeper.place[0])
            if node is None or node.incarnation != keeper.place[1]:
                del self._keepers[keeper.place]
                self._lose(keeper)
            elif (node.draining or node.leaving) and not keeper.leaving:
                keeper.leaving = True
                leaving += keeper.held.values()
        return leaving

    def close(self) -> None:
        """Give up what is on its way."""
        if self._renewer is not None:
            self._renewer.cancel()
        for task in self._tasks:
            task.cancel()

    def _choose(self, live: Live) -> Node | None:
        view, now_s = self._view(), time.monotonic()
        own = live.core.place[0] if live.core.place is not None else ""
        name = str(live.key[2])

        def usable(node: Node) -> bool:
            return (
                not (node.draining or node.leaving)
                and node.id != own
                and self._refused.get(node.id, 0.0) <= now_s
                and not self._balancer.is_suspect(node, now_s)
            )

        return min(filter(usable, view.nodes.values()), key=lambda node: rendezvous(node.id, name), default=None)

    def _call_soon(self, keeper: _Keeper) -> None:
        if not keeper.calling:
            keeper.calling = True
            self._start(self._call(keeper))
        if self._renewer is None:
            self._renewer = asyncio.get_running_loop().call_later(RENEW_S, self._renew)

    def _renew(self) -> None:
        for keeper in list(self._keepers.values()):
            if keeper.held or keeper.dropped or keeper.outbox:
                self._call_soon(keeper)
            elif not keeper.calling:
                del self._keepers[keeper.place]
        self._renewer = asyncio.get_running_loop().call_later(RENEW_S, self._renew) if self._keepers else None

    async def _call(self, keeper: _Keeper) -> None:
        """Send what there is for a node, at least that this router lives."""
        try:
            while await self._send(keeper, _parcels(keeper.outbox)) and keeper.outbox:
                pass
        finally:
            keeper.calling = False

    async def _send(self, keeper: _Keeper, parcels: list[_Parcel]) -> bool:
        """Make one call; False when the node did not answer."""
        request = node_control.KeepSnapshotsRequest(owner=self._owner, dropped=keeper.dropped)
        for each in parcels:
            request.snapshots.add(key=each.key, state=each.snapshot)
        dropped, keeper.dropped = keeper.dropped, []
        held = list(keeper.held)
        channel = self._channels.to(keeper.address)
        try:
            reply = await channel.unary(KEEP, request.SerializeToString(), metadata=(), timeout_s=CALL_S)
        except MeshError:
            keeper.dropped += dropped
            self._refused[keeper.place[0]] = time.monotonic() + REFUSED_S
            for each in (*parcels, *keeper.outbox):
                self._ended(each, None)
            keeper.outbox.clear()
            return False
        answer = node_control.KeepSnapshotsResponse.FromString(reply.message)
        if answer.empty:
            # It was restarted behind our back, or did not hear of us for too long.
            for key in held:
                live = keeper.held.pop(key, None)
                if live is not None:
                    self._lose_one(live)
        if answer.refused:
            self._refused[keeper.place[0]] = time.monotonic() + REFUSED_S
        gone = keeper.leaving or self._keepers.get(keeper.place) is not keeper
        for each in parcels:
            refused = gone or each.key in answer.refused
            self._ended(each, None if refused else keeper)
        return True

    def _ended(self, parcel: _Parcel, keeper: _Keeper | None) -> None:
        live = parcel.live
        live.spilling = False
        self.pending_bytes -= len(parcel.snapshot)
        if keeper is None:
            self.on_done(live, parcel.snapshot, None)
            return
        kept = Keeping(keeper.place, parcel.key)
        keeper.held[parcel.key] = live
        self.on_done(live, parcel.snapshot, kept)
        if live.kept is not kept:
            del keeper.held[parcel.key]
            keeper.dropped.append(parcel.key)

    def _lose(self, keeper: _Keeper) -> None:
        held, keeper.held = keeper.held, {}
        for live in held.values():
            self._lose_one(live)

    def _lose_one(self, live: Live) -> None:
        live.kept = None
        self.on_lost(live)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def __repr__(self) -> str:
        """Show what is kept where."""
        held = " ".join(f"{keeper.place[0]}={len(keeper.held)}" for keeper in self._keepers.values())
        return f"<Spill {held} pending_bytes={self.pending_bytes}>"


def _nobody(*_: object) -> None:
    """Hear nothing: what a `Spill` calls before it is told whom."""


def _parcels(outbox: deque[_Parcel]) -> list[_Parcel]:
    found: list[_Parcel] = []
    size = 0
    while outbox and (not found or size + len(outbox[0].snapshot) <= MESSAGE_BYTES):
        found.append(outbox.popleft())
        size += len(found[-1].snapshot)
    return found
