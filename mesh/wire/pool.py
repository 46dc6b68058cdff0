"""The connections to one address: opened when needed, a few side by side under load, again after a loss.

`Links` decides by numbers alone which connection takes the next call and when another is opened; `dial` opens it.
Whether a peer still answers, `alive` decides.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable
from typing import Final

from mesh.core.errors import Code, RemoteError
from mesh.wire.alive import AMONG_OURSELVES, LOOK_S, OF_CALLERS, Alive, Patience, Silence
from mesh.wire.connection import Connection
from mesh.wire.endpoint import Endpoint, Flusher
from mesh.wire.flow import Bounds
from mesh.wire.lasting import lasting

BUSY_STREAMS: Final = 128
"""Calls on every connection above which another is opened. One connection batches best: a write carries many calls."""

MAX_LINKS: Final = 4
"""Connections to one address: beyond a few, more only split the batches."""

BACKOFF_S: Final = (0.1, 1.0)
"""First and longest wait between attempts: a node that comes back on its port is found within a second."""

CONNECT_TIMEOUT_S: Final = 10.0
"""A connect that is not answered (a host that is gone) fails after this long."""

SETTINGS_TIMEOUT_S: Final = 10.0
"""A peer that accepts and says nothing is given up after this long."""

STUCK_S: Final = 1.5
"""A peer that other copies stand beside is no more waited for when it does not greet within this: whoever waits is
told, and the attempt goes on."""


NO_ANSWER: Final = "nothing there answers"


class Unreachable(RemoteError):
    """No connection could be had: nothing was sent."""

    def __init__(self, address: str, why: str) -> None:
        """Say where and why."""
        super().__init__(Code.UNAVAILABLE, f"failed to connect to {address}: {why}", transport_failed=True, unsent=True)


class Links:
    """The connections to one address. Not for several loops.

    `on_silence` is for who has others to ask: it is called when nothing at the address answers any more, and when
    something does again. Calls are not kept waiting there then, and attempts to connect go on meanwhile.
    """

    def __init__(
        self,
        address: str,
        *,
        flusher: Flusher,
        bounds: Bounds,
        tls: ssl.SSLContext | None = None,
        max_links: int = MAX_LINKS,
        on_silence: Callable[[bool], None] | None = None,
    ) -> None:
        self.address = address
        self._on_silence = on_silence
        self._asking = AMONG_OURSELVES if on_silence is not None else OF_CALLERS
        self._patience = Patience(self._asking)
        self._alive: dict[Endpoint, Alive] = {}
        self._stuck_s = 0.0
        """How long the attempt to connect has lasted, in looks."""
        self.silent = False
        self._flusher = flusher
        self._bounds = bounds
        self._tls = tls
        self._max_links = max_links
        self._links: list[Endpoint] = []
        self._dialing: asyncio.Task[None] | None = None
        self._waiters: list[asyncio.Future[Connection]] = []
        self._failures = 0
        self._retry_at_s = 0.0
        self._why = ""
        self._closed = False
        self._keeping: asyncio.Task[None] | None = None

    def ready(self) -> Connection | None:
        """Return a connection with room for a call, None when there is none yet. O(connections), no I/O."""
        links = self._links
        if len(links) == 1:
            connection = links[0].connection
            if len(connection.streams) < BUSY_STREAMS and connection.has_room:
                return connection
        best: Connection | None = None
        for link in links:
            connection = link.connection
            if connection.has_room and (best is None or len(connection.streams) < len(best.streams)):
                best = connection
        if (best is None or len(best.streams) >= BUSY_STREAMS) and len(links) < self._max_links:
            self._dial()
        return best

    async def connection(self) -> Connection:
        """Return a connection with room, waiting for one. Raises `Unreachable`, at once while attempts keep failing."""
        found = self.ready()
        if found is not None:
            return found
        loop = asyncio.get_running_loop()
        if self._closed:
            raise Unreachable(self.address, "this channel is closed")
        if self.silent:
            raise Unreachable(self.address, NO_ANSWER)
        if self._dialing is None and not self._live() and loop.time() < self._retry_at_s:
            raise Unreachable(self.address, self._why)
        self._dial()
        waiter: asyncio.Future[Connection] = loop.create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _live(self) -> bool:
        return any(
            not (link.connection.going_away or link.connection.silent) and link.connection.broken is None
            for link in self._links
        )

    def _dial(self) -> None:
        loop = asyncio.get_running_loop()
        if self._dialing is None and not self._closed and loop.time() >= self._retry_at_s:
            self._stuck_s = 0.0
            self._dialing = loop.create_task(self._connect())
            if self._keeping is None:
                self._keeping = loop.create_task(lasting(f"looking after {self.address}", self._keep))

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        greeted: asyncio.Future[None] = loop.create_future()
        endpoint = Endpoint(loop, self._flusher, self._bounds, on_closed=self._gone)

        def on_settings() -> None:
            if not greeted.done():
                greeted.set_result(None)
            else:
                self.freed()  # The peer may take more calls than before.

        endpoint.connection.on_settings = on_settings
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await dial(loop, self.address, lambda: endpoint, self._tls)
            # Only a peer's SETTINGS say how many calls it takes, and that it speaks HTTP/2 at all.
            async with asyncio.timeout(SETTINGS_TIMEOUT_S):
                await greeted
        except (OSError, TimeoutError, ssl.SSLError) as error:
            endpoint.abort()
            self._failed(str(error) or type(error).__name__)
            if isinstance(error, ConnectionError):
                self._tell(silent=False)  # That is an answer: nobody is there.
        except asyncio.CancelledError:
            endpoint.abort()
            raise
        else:
            if not endpoint.is_open or endpoint.connection.broken is not None:
                self._failed("the peer closed the connection at once")
            else:
                self._failures = 0
                self._alive[endpoint] = Alive(self._asking, self._patience)
                self._links.append(endpoint)
                self._tell(silent=False)
        finally:
            self._dialing = None
        self._serve_waiters()

    def _failed(self, why: str) -> None:
        self._failures += 1
        first, longest = BACKOFF_S
        # Jitter, so that many routers do not come back to a restarted node in step.
        wait_s = min(longest, first * 2 ** min(self._failures - 1, 10)) * random.uniform(0.8, 1.2)  # noqa: S311
        self._retry_at_s = asyncio.get_running_loop().time() + wait_s
        self._why = why
        self._turn_away(why)

    def _turn_away(self, why: str) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(Unreachable(self.address, why))

    def _serve_waiters(self) -> None:
        while self._waiters:
            connection = self.ready()
            if connection is None:
                return
            waiter = self._waiters.pop(0)
            if not waiter.done():
                waiter.set_result(connection)

    @property
    def connections(self) -> list[Connection]:
        """The connections that are open."""
        return [link.connection for link in self._links]

    def freed(self) -> None:
        """Hear that a call ended: somebody may wait for its room."""
        if self._waiters:
            asyncio.get_running_loop().call_soon(self._serve_waiters)

    def _gone(self, endpoint: Endpoint) -> None:
        settled = endpoint.connection.on_settings
        self._alive.pop(endpoint, None)
        if endpoint in self._links:
            self._links.remove(endpoint)
            if self._waiters:
                self._dial()
        elif settled is not None:
            settled()

    async def _keep(self) -> None:
        """Look after the connections, one timer for all: ask the silent ones, let go of those that are gone."""
        loop = asyncio.get_running_loop()
        wait_s = LOOK_S
        while True:
            await asyncio.sleep(wait_s)
            wait_s = self._look(loop.time())

    def _look(self, now_s: float) -> float:
        """Look at every connection; return in how many seconds to look again. O(connections); of silent ones O(calls).

        What a call does about silence may open and close others, so that copies are gone through.
        """
        wait_s = 2 * LOOK_S
        answers = False
        for link in list(self._links):
            connection, alive = link.connection, self._alive[link]
            waits = bool(connection.streams)
            if alive.look(now_s, link.last_heard_s, connection.echoed_s, waits=waits):
                connection.ask_alive()
            wait_s = min(wait_s, alive.next_s(now_s, waits=waits))
            connection.silent = alive.silence > Silence.NONE
            answers = answers or not connection.silent
            is_over = self._closed and self._on_silence is not None and connection.silent
            if alive.silence is Silence.GONE or is_over or (connection.going_away and not waits):
                link.abort()
        if self._dialing is not None:
            wait_s = LOOK_S
            self._stuck_s += LOOK_S
        if answers:
            self._tell(silent=False)
        elif self._links or self._stuck_s >= STUCK_S:
            self._tell(silent=True)
        if self.silent and not self._closed:
            self._dial()
        for link in list(self._links):
            if link.connection.silent:
                long = self._alive[link].silence >= Silence.LONG
                for stream in list(link.connection.streams.values()):
                    stream.receiver.silent(stream, long=long)
        return wait_s

    def _tell(self, *, silent: bool) -> None:
        if self._on_silence is None or silent is self.silent or self._closed:
            return
        self.silent = silent
        self._on_silence(silent)
        if silent:
            self._turn_away(NO_ANSWER)
        else:
            self._serve_waiters()

    async def close(self, grace_s: float) -> None:
        """Take no more calls, wait at most `grace_s` for those in flight, then close."""
        self._tell(silent=False)  # Nobody asks here any more.
        self._closed = True
        loop = asyncio.get_running_loop()
        until_s = loop.time() + grace_s
        while loop.time() < until_s and any(link.connection.streams for link in self._links):  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(0.01)
        if self._keeping is not None:
            self._keeping.cancel()
        if self._dialing is not None:
            self._dialing.cancel()
        for link in list(self._links):
            link.abort()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(Unreachable(self.address, "this channel is closed"))

    def __repr__(self) -> str:
        """Show the connections."""
        return f"<Links {self.address} {self._links!r} waiting={len(self._waiters)}>"


async def dial(
    loop: asyncio.AbstractEventLoop, address: str, make: Callable[[], Endpoint], tls: ssl.SSLContext | None
) -> None:
    """Connect to host:port, [host]:port or unix:path. Raises OSError."""
    if address.startswith("unix:"):
        await loop.create_unix_connection(
            make, address.removeprefix("unix:"), ssl=tls, server_hostname="" if tls else None
        )
        return
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    await loop.create_connection(make, host, int(port), ssl=tls, server_hostname=host if tls else None)
