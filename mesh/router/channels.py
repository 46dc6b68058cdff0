"""One channel per node address, made when first needed and closed when the node left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from mesh.wire.transport import Channel

GRACE_S = 60.0
"""How long calls to a node that left the registry may go on: a draining node's own limit is 30 s by default."""


class Channels:
    """The router's connections to nodes. `connect` makes a channel for an address and does no I/O."""

    def __init__(self, connect: Callable[[str], Channel]) -> None:
        self._connect = connect
        self._open: dict[str, Channel] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def to(self, address: str) -> Channel:
        """Return the channel to `address`. O(1)."""
        channel = self._open.get(address)
        if channel is None:
            channel = self._open[address] = self._connect(address)
        return channel

    def keep(self, addresses: Collection[str]) -> None:
        """Give up the channels to all other addresses: calls in flight may finish, since a node that left may drain."""
        for address in [address for address in self._open if address not in addresses]:
            task = asyncio.create_task(self._open.pop(address).close(GRACE_S))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all; calls in flight are cancelled."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(
            *self._closing, *(channel.close(0) for channel in self._open.values()), return_exceptions=True
        )
        self._open.clear()

    def __repr__(self) -> str:
        """Show the addresses."""
        return f"<Channels {sorted(self._open)}>"
