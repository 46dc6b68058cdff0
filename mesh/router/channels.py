"""One channel per node address, made when first needed and closed when the node left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from mesh.wire.transport import Channel


class Channels:
    """The router's connections to nodes. `connect` makes a channel for an address and does no I/O."""

    def __init__(self, connect: Callable[[str], Channel]) -> None:
        self._connect = connect
        self._open: dict[str, Channel] = {}

    def to(self, address: str) -> Channel:
        """Return the channel to `address`. O(1)."""
        channel = self._open.get(address)
        if channel is None:
            channel = self._open[address] = self._connect(address)
        return channel

    async def keep(self, addresses: Collection[str]) -> None:
        """Close the channels to all other addresses. Their calls in flight are cancelled."""
        gone = [self._open.pop(address) for address in list(self._open) if address not in addresses]
        await asyncio.gather(*(channel.close() for channel in gone))

    async def close(self) -> None:
        """Close all."""
        await self.keep(())

    def __repr__(self) -> str:
        """Show the addresses."""
        return f"<Channels {sorted(self._open)}>"
