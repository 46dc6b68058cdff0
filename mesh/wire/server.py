"""The wire's server side: one port, hot methods on our own HTTP/2, everything else spliced to grpcio behind it."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import grpc

from mesh.api.details import trailers_of
from mesh.core.errors import Code
from mesh.core.files import connections
from mesh.core.traffic.clients import Clients
from mesh.core.traffic.held import COUNTED, UNLIMITED, HeldBytes
from mesh.wire.connection import STOPPED, UNREAD, Connection
from mesh.wire.deadlines import Deadlines
from mesh.wire.endpoint import Endpoint, Flusher
from mesh.wire.fields import Block
from mesh.wire.files import limit
from mesh.wire.flow import Bounds
from mesh.wire.frames import ErrorCode, StreamFault
from mesh.wire.header_cache import encode
from mesh.wire.heads import RequestHead, request_head
from mesh.wire.lasting import lasting
from mesh.wire.server_call import Origin, ServerCall, TaskStream, TaskUnary, break_off, refuse
from mesh.wire.splice import Behind, Spliced
from mesh.wire.streams import Receiver, Stream
from mesh.wire.tls import server_context
from mesh.wire.transport import HotMethods, Limits, TlsConfig

log = logging.getLogger(__name__)

KEEPALIVE_S: Final = 60.0
"""Silence after which a client is asked whether it lives; load balancers forget idle connections after minutes."""
KEEPALIVE_TIMEOUT_S: Final = 20.0
"""Silence after that which ends the connection (grpc's default)."""
GREETING_S: Final = 20.0
"""How long a connection may take to send its preface and SETTINGS."""
UNCALLED_S: Final = 0.5
"""How long a client that resets a stream before it opens one may take to open one: they are on their way together."""
HANDSHAKE_S: Final = 10.0
"""How long TLS may take to begin: until then a connection is counted nowhere."""
LOOK_FOR_ROOM_S: Final = 0.05
"""How often a connection that could make way is looked for: the look is at all of them."""
QUIET_S: Final = 2.0
"""A stopping server gives a client without calls this long to answer; then its connection is closed."""

MAKES_WAY: Final = 64
"""One part of so many of all connections is closed at a time, for those that come until the next look."""

SWEEP_S: Final = 1.0
"""How often connections are looked at."""


class WireServer:
    """A `transport.Server` on the wire. Construct it, then `start`."""

    def __init__(
        self,
        host: str,
        port: int,
        hot: HotMethods,
        services: Sequence[grpc.GenericRpcHandler[Any, Any]],
        *,
        limits: Limits,
        tls: TlsConfig | None = None,
        bounds: Bounds | None = None,
        reuse_port: bool = False,
        flusher: Flusher | None = None,
        deadlines: Deadlines | None = None,
        held: HeldBytes | None = None,
        clients: Clients | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._hot = hot
        self._limits = limits
        self._tls = tls
        self._bounds = bounds or Bounds()
        self._reuse_port = reuse_port
        self._behind = Behind(services, limits, self._bounds)
        self._unary = {path.encode(): handler for path, handler in hot.unary.items()}
        self._stream = {path.encode(): handler for path, handler in hot.stream.items()}
        self._direct = {path.encode(): direct for path, direct in hot.direct.items()}
        self._listener: asyncio.Server | None = None
        self._open: dict[Connection, Endpoint] = {}
        self._retire_at_s: dict[Connection, float] = {}
        self._flusher = flusher
        self._deadlines = deadlines
        self._sweeping: asyncio.Task[None] | None = None
        self._stopping = False
        self._held = held or HeldBytes(limits.held_bytes or UNLIMITED)
        self._clients = clients or Clients()
        self._most = limits.max_connections or connections(limit())
        self._looked_s = self._told_s = 0.0

    @property
    def address(self) -> str:
        """host:port it listens on, the real port after `start` when 0 was asked for; or unix:path."""
        return self._host if self._host.startswith("unix:") else f"{self._host}:{self._port}"

    async def start(self) -> None:
        """Listen. Raises OSError when the address cannot be had."""
        loop = asyncio.get_running_loop()
        self._flusher = flusher = self._flusher or Flusher(loop)
        self._deadlines = self._deadlines or Deadlines(loop)
        context = server_context(self._tls) if self._tls is not None else None

        def connected() -> Endpoint:
            return Endpoint(
                loop, flusher, self._bounds, accept=self._accept, on_open=self._opened, on_closed=self._closed
            )

        await self._behind.start(flusher)
        try:
            if self._host.startswith("unix:"):
                self._listener = await loop.create_unix_server(
                    connected, self._host.removeprefix("unix:"), ssl=context, **_handshake(context)
                )
            else:
                await self._listen(loop, connected, context)
        except OSError as error:
            await self._behind.stop(0)
            msg = f"cannot listen on {self.address}: is another server there? Choose another port ({error})"
            raise OSError(msg) from error
        self._sweeping = loop.create_task(lasting("looking after clients", self._sweep))

    async def _listen(
        self, loop: asyncio.AbstractEventLoop, connected: Callable[[], Endpoint], context: ssl.SSLContext | None
    ) -> None:
        self._listener = await loop.create_server(
            connected,
            self._host,
            self._port,
            ssl=context,
            backlog=1024,
            reuse_port=self._reuse_port or None,
            **_handshake(context),
        )
        self._port = self._listener.sockets[0].getsockname()[1]

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, wait at most `grace_s` seconds for those in flight, then cut."""
        self._stopping = True
        if self._listener is None:
            return
        self._listener.close()
        self._listener = None
        loop = asyncio.get_running_loop()
        until_s, quiet_s = loop.time() + grace_s, loop.time() + QUIET_S
        for connection, endpoint in list(self._open.items()):
            endpoint.finish()
            for stream in list(connection.streams.values()):
                if isinstance(stream.receiver, ServerCall):
                    stream.receiver.drain()
        while self._open and loop.time() < until_s:
            await asyncio.sleep(0.01)
            if loop.time() >= quiet_s:
                self._close_quiet()
        for connection, endpoint in list(self._open.items()):
            for stream in list(connection.streams.values()):
                stream.receiver.reset(stream, STOPPED)
            connection.end()
            endpoint.flush()
        if self._sweeping is not None:
            self._sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeping
        await self._behind.stop(0)
        for endpoint in list(self._open.values()):
            endpoint.abort()

    def _close_quiet(self) -> None:
        """Close the connections without a call whose clients do not answer that they heard of the end."""
        for connection, endpoint in list(self._open.items()):
            if not connection.streams:
                connection.end()
                endpoint.flush()
                endpoint.abort()

    # -- connections ---------------------------------------------------------------------------------------------

    def _opened(self, endpoint: Endpoint) -> None:
        if len(self._open) >= self._most and not self._make_room():
            endpoint.abort()
            return
        self._open[endpoint.connection] = endpoint
        self._clients.came()
        endpoint.connection.caller = self._held.caller()
        endpoint.connection.unread = _cut_unread
        if self._limits.max_connection_age_s:
            # Jitter of 10%, so that connections made together do not come back together (grpc's MAX_CONNECTION_AGE).
            age_s = self._limits.max_connection_age_s * random.uniform(0.9, 1.1)  # noqa: S311
            self._retire_at_s[endpoint.connection] = asyncio.get_running_loop().time() + age_s

    def _make_room(self) -> bool:
        """Close a connection that nobody uses; False when there is none. At most every `LOOK_FOR_ROOM_S`."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._told_s > SWEEP_S:
            self._told_s = now_s
            log.warning("all %d connections are taken", self._most)
        if now_s - self._looked_s < LOOK_FOR_ROOM_S:
            return False
        self._looked_s = now_s
        idle = [
            endpoint
            for connection, endpoint in self._open.items()
            if not connection.streams and not connection.ended and connection.broken is None
        ]
        # Who never said a word goes first, then who was silent longest: a client that lives connects again.
        idle.sort(key=lambda endpoint: (endpoint.connection.greeted, endpoint.last_heard_s))
        for endpoint in idle[: max(1, self._most // MAKES_WAY)]:
            endpoint.connection.end()
            endpoint.flush()
        return bool(idle)

    def _closed(self, endpoint: Endpoint) -> None:
        if self._open.pop(endpoint.connection, None) is not None:
            self._clients.went(_goaway_of(endpoint.connection))
        endpoint.connection.caller.close()
        self._retire_at_s.pop(endpoint.connection, None)

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = loop.time()
            for connection, endpoint in list(self._open.items()):
                silent_s = now_s - endpoint.last_heard_s
                if connection.reset_before_call and silent_s > UNCALLED_S:
                    connection.check_called()
                if connection.pings_unanswered and silent_s > KEEPALIVE_S + KEEPALIVE_TIMEOUT_S:
                    log.info("a client that is silent was cut off", extra={"peer": endpoint.peer})
                    endpoint.abort()
                elif not connection.greeted and now_s - endpoint.opened_s > GREETING_S:
                    endpoint.abort()
                elif silent_s > KEEPALIVE_S and not connection.pings_unanswered:
                    connection.ask_alive()
                if now_s >= self._retire_at_s.get(connection, now_s + 1):
                    connection.drain()

    # -- calls ---------------------------------------------------------------------------------------------------

    def _accept(self, connection: Connection, stream: Stream, block: Block, end: bool) -> Receiver:
        if not block.fields and block.size:
            # Far too long: they were not even kept.
            return self._too_long(connection, stream, block)
        head = request_head(block)
        if head.malformed:
            raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, head.malformed)
        stream.body_left = head.content_length
        if end and head.content_length > 0:
            raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, "a body shorter than its content-length")
        if head.http_error:
            connection.send_headers(stream, encode(b":status", head.http_error) + _TEXT)
            connection.send_data(stream, _EXPECTED, end=True)
            return _Ignored(connection)
        if block.size > connection.bounds.max_header_list:
            return self._too_long(connection, stream, block)
        receiver = self._receiver(connection, stream, block, head, end=end)
        if end and not isinstance(receiver, (Spliced, _Ignored)):
            receiver.data(stream, b"", end)
        return receiver

    @staticmethod
    def _too_long(connection: Connection, stream: Stream, block: Block) -> Receiver:
        text = f"headers of {block.size} bytes or more, at most {connection.bounds.max_header_list} are taken"
        refuse(connection, stream, Code.RESOURCE_EXHAUSTED, text)
        return _Ignored(connection)

    def _receiver(
        self, connection: Connection, stream: Stream, block: Block, head: RequestHead, *, end: bool
    ) -> Receiver:
        path = head.path
        direct = self._direct.get(path)
        unary, streaming = self._unary.get(path), self._stream.get(path)
        if direct is None and unary is None and streaming is None:
            return self._behind.splice(connection, stream, block, end=end)
        if head.refused is not None:
            refuse(connection, stream, head.refused.code, head.refused.message)
            return _Ignored(connection)
        caller = connection.caller
        if caller.held > COUNTED and caller.is_full:
            error = caller.refusal(0)
            refuse(connection, stream, error.code, error.message, trailers_of(error))
            return _Ignored(connection)
        assert self._deadlines is not None
        origin = Origin(head, self._open[connection].peer, self._deadlines, self._limits.max_message_bytes)
        if direct is not None:
            receiver: Receiver = direct(connection, stream, origin)
            return receiver
        if unary is not None:
            return TaskUnary(connection, stream, origin, unary)
        assert streaming is not None
        return TaskStream(connection, stream, origin, streaming)

    @property
    def streams(self) -> int:
        """Calls in flight."""
        return sum(len(connection.streams) for connection in self._open)

    @property
    def buffered(self) -> int:
        """Bytes that wait for peers to take them. O(connections and streams that wait)."""
        return sum(connection.waiting_bytes + endpoint.unsent for connection, endpoint in self._open.items())

    def __repr__(self) -> str:
        """Show the address and the counts."""
        return f"<WireServer {self.address} connections={len(self._open)} streams={self.streams}>"


def _cut_unread(connection: Connection, stream: Stream) -> None:
    """End a call whose answer waits for a caller that leaves too much unread: with a status in the answer's place."""
    receiver = stream.receiver
    error = connection.caller.refusal(stream.pending_bytes)
    connection.drop(stream)
    break_off(connection, stream, error.code, error.message, trailers_of(error))
    receiver.reset(stream, UNREAD)


def _goaway_of(connection: Connection) -> str:
    """Return the code of the last GOAWAY that this side sent; empty without one."""
    if connection.broken is not None and connection.broken.code is not ErrorCode.NO_ERROR:
        return connection.broken.code.name
    return ErrorCode.NO_ERROR.name if connection.draining else ""


_TEXT: Final = encode(b"content-type", b"text/plain")
_EXPECTED: Final = b"This port speaks gRPC: expected POST with content-type application/grpc.\n"


class _Ignored:
    """The receiver of a stream that has been answered: what still comes is dropped."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def headers(self, stream: Stream, block: Block, end: bool) -> None:
        """Drop it."""

    def data(self, stream: Stream, data: bytes, end: bool) -> None:
        """Drop it."""
        self._connection.consumed(stream, len(data))

    def reset(self, stream: Stream, code: int) -> None:
        """Nothing is left to stop."""

    def drained(self, stream: Stream) -> None:
        """Nothing waits."""

    def silent(self, stream: Stream, *, long: bool) -> None:
        """Nothing was asked."""


def _handshake(context: ssl.SSLContext | None) -> dict[str, Any]:
    return {} if context is None else {"ssl_handshake_timeout": HANDSHAKE_S}


def socket_of(path: Path) -> str:
    """Return the address of a unix socket."""
    return f"unix:{path}"
