"""A connection on a socket: asyncio reads and writes for the protocol core.

One write per turn of the loop and connection: what is to be sent is marked, and sent when the turn's reads are done.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from typing import Final, cast

from mesh.wire.connection import Accept, Connection
from mesh.wire.flow import Bounds
from mesh.wire.frames import ConnectionFault, ErrorCode
from mesh.wire.windows import OUT_BYTES

log = logging.getLogger(__name__)

JOINED: Final = 64 * 1024
"""Below this, pieces are joined into one write; above it copying costs more than a vector of pieces."""


class Flusher:
    """The connections of one loop that have something to send, flushed once per turn."""

    __slots__ = ("_call_soon", "_dirty")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._call_soon = loop.call_soon
        self._dirty: list[Endpoint] = []

    def mark(self, endpoint: Endpoint) -> None:
        """Flush `endpoint` at the end of this turn. O(1)."""
        if not self._dirty:
            self._call_soon(self._flush)
        self._dirty.append(endpoint)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for endpoint in dirty:
            try:
                endpoint.flush()
            except Exception:
                log.exception("a connection failed while it sent")
                endpoint.abort()


class Endpoint(asyncio.Protocol):
    """One connection, either side. `on_closed` hears when it is gone."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        flusher: Flusher,
        bounds: Bounds,
        *,
        accept: Accept | None = None,
        on_open: Callable[[Endpoint], None] | None = None,
        on_closed: Callable[[Endpoint], None] | None = None,
    ) -> None:
        # Not the loop's: uvloop counts whole milliseconds, and the distance to a peer may be less than one.
        self._now = time.monotonic
        self._mark = flusher.mark
        self._on_open = on_open
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._marked = False
        self._paused = False
        self._said_while_paused = 0
        self.connection = Connection(bounds, accept=accept, notify=self._notify)
        self.connection.on_bug = _log_bug
        self._receive = self.connection.receive
        self.peer = "unknown"
        self.opened_s = self.last_heard_s = self._now()

    # -- asyncio calls these -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the peer."""
        # Not isinstance: uvloop's transports are of no asyncio class.
        self._transport = transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=OUT_BYTES)
        self.peer = _peer_of(transport)
        over_tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        if over_tls is not None and over_tls.selected_alpn_protocol() != "h2":
            log.warning("a TLS peer without ALPN h2 was turned away", extra={"peer": self.peer})
            transport.abort()
            return
        self.connection.now_s = self._now()
        self.connection.greet()
        if self._on_open is not None:
            self._on_open(self)

    def data_received(self, data: bytes) -> None:
        """Pass on what came."""
        self.last_heard_s = now_s = self._now()
        self._receive(data, now_s)

    def eof_received(self) -> bool:
        """Close: a gRPC peer that sends nothing more wants nothing more."""
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Tell everyone on this connection."""
        why = "the connection was closed" if error is None else f"the connection was lost: {error}"
        self.connection.lost(ConnectionFault(ErrorCode.NO_ERROR, why))
        self._transport = None
        if self._on_closed is not None:
            self._on_closed(self)

    def pause_writing(self) -> None:
        """Let no more DATA out: the socket is full."""
        self._paused = True
        self.connection.make_room(0)

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        self._said_while_paused = 0
        self.connection.make_room(OUT_BYTES)

    # -- the mesh calls these ------------------------------------------------------------------------------------

    def _notify(self) -> None:
        if not self._marked:
            self._marked = True
            self._mark(self)

    def flush(self) -> None:
        """Send what waits; close when the connection has said its last."""
        self._marked = False
        connection, transport = self.connection, self._transport
        out = connection.out
        if transport is None or transport.is_closing():
            out.clear()
            return
        if out:
            connection.out = []
            if self._paused:
                self._check_patience(transport, sum(map(len, out)))
            # Small pieces cost more as vectors than as a copy; large ones the other way round.
            if len(out) <= 6 or sum(map(len, out)) < JOINED:
                transport.write(b"".join(out))
            else:
                transport.writelines(out)
            if not self._paused:
                connection.make_room(OUT_BYTES)
        if connection.broken is not None or (connection.ended and not connection.streams):
            transport.close()

    def _check_patience(self, transport: asyncio.Transport, size: int) -> None:
        """Cut off a peer that does not read and makes us say ever more: answers to pings, resets, windows."""
        self._said_while_paused += size
        if self._said_while_paused > self.connection.bounds.max_control_bytes:
            log.warning("a peer that does not read was cut off", extra={"peer": self.peer})
            transport.abort()

    def finish(self) -> None:
        """Close as soon as the calls in flight are done."""
        self.connection.drain()

    def abort(self) -> None:
        """Close at once; what is in flight is lost."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def unsent(self) -> int:
        """Bytes in the socket's buffer on this side."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    @property
    def is_open(self) -> bool:
        """Whether it is connected."""
        return self._transport is not None

    def __repr__(self) -> str:
        """Show the peer and the connection."""
        return f"<Endpoint {self.peer} {self.connection!r}>"


def _log_bug(error: Exception) -> None:
    log.error("a call failed where it should not have, and was reset", exc_info=error)


def _peer_of(transport: asyncio.Transport) -> str:
    """Return the peer as grpc writes it: ipv4:..., ipv6:[...]:..., unix:..."""
    name = transport.get_extra_info("peername")
    if isinstance(name, tuple) and len(name) == 2:
        return f"ipv4:{name[0]}:{name[1]}"
    if isinstance(name, tuple):
        return f"ipv6:[{name[0]}]:{name[1]}"
    return f"unix:{name}" if name else "unix:"
