"""Sequences that were moved away from nodes that were not asked: they are to forget them, once they answer again.

A node that was stopped, or cut off from this router, still has the state that its sequences had then. Nobody may go on
from it: the sequence went on elsewhere. So as soon as the node answers, what it still has is taken from it and dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from mesh.api.messages import node_control
from mesh.core.errors import MeshError
from mesh.core.sessions.session import Place
from mesh.core.traffic.balance import Balancer
from mesh.core.types import Node
from mesh.core.view import Located
from mesh.registry.mirror import Mirror
from mesh.router.channels import Channels
from mesh.router.live import Key, Live, take_request
from mesh.wire.lasting import lasting
from mesh.wire.transport import at_once

TAKE: Final = "/mesh.v1.NodeControl/TakeSequence"
TAKE_S: Final = 10.0
"""How long a node may take to give a state away."""
LOOK_S: Final = 0.2
"""How often it is looked whether such a node answers, while there is one."""
TIMES: Final = 4
"""A node is asked for one sequence so often at most, as it gives none away that is at work: a step that was on its way
to it runs first. A look apart each."""
KEPT_S: Final = 600.0
"""A sequence that its node was not asked for within this is left to the node's own `idle_s`."""
MOST: Final = 65_536
"""Sequences that are remembered; beyond it the oldest are left to their `idle_s`, too."""


async def take(channels: Channels, located: Located | None, key: Key) -> bytes | None:
    """Return the state of a sequence that its node gives away; None when it does not, or is gone."""
    if located is None:
        return None
    return await _take(channels, located.node.address, key)


async def _take(channels: Channels, address: str, key: Key) -> bytes | None:
    try:
        reply = await channels.to(address).unary(TAKE, take_request(key), metadata=(), timeout_s=TAKE_S, leaves=at_once)
    except MeshError:
        return None
    return node_control.TakeSequenceResponse.FromString(reply.message).state or None


class Strays:
    """The ones of one router. It looks after them by itself while there are any."""

    def __init__(
        self, mirror: Mirror, balancer: Balancer, channels: Channels, find: Callable[[Key], Live | None]
    ) -> None:
        self._find = find
        self._mirror = mirror
        self._balancer = balancer
        self._channels = channels
        self._left: OrderedDict[tuple[Place, Key], tuple[float, int]] = OrderedDict()
        """When it was left, and how often its node was asked."""
        self._looking: asyncio.Task[None] | None = None

    def left(self, live: Live) -> None:
        """Note that a session leaves its place, which may still have it. O(1)."""
        place = live.core.place
        if place is None:
            return
        self._left[place, live.key] = time.monotonic(), 0
        if len(self._left) > MOST:
            self._left.popitem(last=False)
        if self._looking is None or self._looking.done():
            work = lasting("looking after sequences that were moved", self._look)
            self._looking = asyncio.get_running_loop().create_task(work)

    async def _look(self) -> None:
        while self._left:
            await asyncio.sleep(LOOK_S)
            now_s = time.monotonic()
            for (place, key), (since_s, _) in list(self._left.items()):
                node, live = self._mirror.view.nodes.get(place[0]), self._find(key)
                returned = live is not None and live.core.place == place
                restarted = node is not None and node.incarnation != place[1]
                if returned or restarted or now_s - since_s > KEPT_S:
                    self._left.pop((place, key), None)
                elif node is not None and not self._balancer.is_suspect(node, now_s):
                    await self._ask(node, place, key)

    async def _ask(self, node: Node, place: Place, key: Key) -> None:
        before = self._left[place, key]
        taken = await _take(self._channels, node.address, key)
        if self._left.get((place, key)) != before:
            return  # It came and left again meanwhile.
        since_s, times = before
        if taken is not None or times + 1 >= TIMES:
            del self._left[place, key]
        else:
            self._left[place, key] = since_s, times + 1

    def close(self) -> None:
        """Leave them."""
        if self._looking is not None:
            self._looking.cancel()

    def __repr__(self) -> str:
        """Show how many."""
        return f"<Strays {len(self._left)}>"
