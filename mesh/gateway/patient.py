"""One connection to the HTTP port: few at a time, and none that waits for a peer for long.

uvicorn takes any number and waits for a first request for ever.
"""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol

from mesh.core.files import HTTP

HEADER_S: Final = 10.0
"""How long a request may take to be whole, and a connection to ask for something."""
ANSWER_S: Final = 60.0
"""How long a peer may take to read an answer."""


class Patient(H11Protocol):
    """A connection that is closed when its peer is too slow. When all are taken, one without a request makes way."""

    _since_s = 0.0
    """When it began to wait for a request, or to answer one."""
    _was_asked = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """Begin to wait."""
        if len(self.connections) >= HTTP and not self._make_room():
            transport.abort()
            return
        super().connection_made(transport)
        self._since_s = self.loop.time()
        self._timer = self.loop.call_later(HEADER_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking."""
        if self._timer is None:
            return
        self._timer.cancel()
        super().connection_lost(exc)

    def _is_asked(self) -> bool:
        """Tell whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for a request; False when all are answering one."""
        waiting = [each for each in self.connections if isinstance(each, Patient) and not each._is_asked()]  # noqa: SLF001 - its own kind
        if waiting:
            min(waiting, key=lambda each: each._since_s).transport.abort()  # noqa: SLF001 - its own kind
        return bool(waiting)

    def _look(self) -> None:
        """Close it if it is too slow; else look again."""
        now_s, is_asked = self.loop.time(), self._is_asked()
        if is_asked != self._was_asked:
            self._was_asked, self._since_s = is_asked, now_s
        elif now_s - self._since_s >= (ANSWER_S if is_asked else HEADER_S):
            self.transport.abort()
            return
        self._timer = self.loop.call_later(HEADER_S / 4, self._look)
