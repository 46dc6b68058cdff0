"""The routers that a client may call: one at a time, and the next when that one goes away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mesh_client._common import Method
from mesh_client._errors import Unavailable, closed
from mesh_client._transport_async import AsyncDuplex

Opener = Callable[[str], Any]


class AsyncRouters:
    """Connections to routers; those behind the first are opened when they are needed."""

    def __init__(self, addresses: list[str], opener: Opener) -> None:
        self.addresses = addresses
        self.closed = False
        self._opener = opener
        self._open: dict[str, Any] = {}
        self._at = 0
        # The first is opened here, so that what makes no sense is told at once; it connects when it is called.
        self._open[self.address] = opener(self.address)

    @property
    def address(self) -> str:
        """The one that is called now."""
        return self.addresses[self._at]

    @property
    def transport(self) -> Any:
        """The connection to it."""
        transport = self._open.get(self.address)
        if transport is None:
            if self.closed:
                raise closed(self.address)
            transport = self._open[self.address] = self._opener(self.address)
        return transport

    def turn(self) -> None:
        """Call the next one from now on."""
        self._at = (self._at + 1) % len(self.addresses)

    async def call(self, method: Method, request: Any, *, metadata: Any, timeout_s: float | None) -> Any:
        """Return the answer to a call. One that no router took, as nobody answered there, goes to the next."""
        for left in range(len(self.addresses) - 1, -1, -1):
            try:
                return await self.transport.call(method, request, metadata=metadata, timeout_s=timeout_s)
            except Unavailable as error:
                if not left or not error.unreached:
                    raise
                self.turn()
        raise AssertionError

    def stream(self, metadata: Any) -> AsyncDuplex:
        """Open a stream for a session; it ends with the session, not at a deadline."""
        duplex: AsyncDuplex = self.transport.stream(metadata=metadata, timeout_s=None)
        return duplex

    async def close(self) -> None:
        """Close every connection; calls in flight are cancelled."""
        self.closed = True
        for transport in self._open.values():
            await transport.close()

    def __repr__(self) -> str:
        """Show the addresses."""
        return f"<AsyncRouters {','.join(self.addresses)} at={self.address}>"
