"""Notes to a peer over one long-lived two-way stream, for whoever cannot wait: posted now, sent in their order.

Nothing bounds what waits here: whoever posts bounds the requests that it posts for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from mesh.core.errors import Code, MeshError, RemoteError
from mesh.wire.transport import Duplex


class Outbox:
    """Notes in the order they were posted; iterate to send them. Belongs to one loop."""

    def __init__(self) -> None:
        self._notes: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.closed = False

    def post(self, note: bytes) -> None:
        """Put a note behind the others; dropped when the box is closed."""
        if not self.closed:
            self._notes.append(note)
            self._wake()

    def close(self) -> None:
        """Take no more; the iteration ends behind what was posted."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the notes as they are posted, until the box is closed."""
        while True:
            while self._notes:
                yield self._notes.popleft()
            if self.closed:
                return
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def __len__(self) -> int:
        """Return how many notes wait."""
        return len(self._notes)

    def __repr__(self) -> str:
        """Show what waits."""
        return f"<Outbox waiting={len(self._notes)} closed={self.closed}>"


class Post:
    """A stream to a peer. `hear` gets its notes, `ended` hears once why the stream is over, None after `close`."""

    def __init__(
        self, duplex: Duplex, hear: Callable[[bytes], None], ended: Callable[[MeshError | None], None]
    ) -> None:
        self._duplex = duplex
        self._hear = hear
        self._ended = ended
        self._outbox = Outbox()
        self._sending = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def is_open(self) -> bool:
        """Whether a note posted now may arrive."""
        return not self._outbox.closed

    def post(self, note: bytes) -> None:
        """Send a note behind the others. It may be lost, and then `ended` is told."""
        # While the sending task waits, nothing may overtake what it holds.
        if self._sending or len(self._outbox) or self._outbox.closed or not self._duplex.post(note):
            self._outbox.post(note)

    async def close(self) -> None:
        """Give the stream up."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        error: MeshError | None = None
        try:
            await self._both_ways()
        except asyncio.CancelledError:
            raise
        except MeshError as failed:
            error = failed
        except Exception as failed:  # noqa: BLE001 - a peer's note can be anything
            error = RemoteError(Code.INTERNAL, f"{type(failed).__name__}: {failed}", transport_failed=True)
        finally:
            self._outbox.close()
            self._duplex.cancel()
            self._ended(error)

    async def _both_ways(self) -> None:
        sending = asyncio.create_task(self._send())
        try:
            while (note := await self._duplex.receive()) is not None:
                self._hear(note)
                note = b""  # What was heard must not stay until the next one comes.
            raise RemoteError(Code.UNAVAILABLE, "the peer ended the stream", transport_failed=True)
        finally:
            sending.cancel()
            await asyncio.wait([sending])

    async def _send(self) -> None:
        try:
            async for note in self._outbox:
                self._sending = True
                await self._duplex.send(note)
                del note
                self._sending = False
        except MeshError:
            # `receive` tells why.
            return

    def __repr__(self) -> str:
        """Show what waits."""
        return f"<Post {self._outbox!r}>"
