"""What a connection may send and take in now: both sides' windows, and the data that waits for them.

(RFC 9113 §5.2, §6.9) Streams send in turns; whatever is not sent costs the sender's memory, never ours beyond `Bounds`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from mesh.core.traffic.held import UNLIMITED, CallerBytes, HeldBytes
from mesh.wire.bandwidth import Bandwidth
from mesh.wire.flow import Bounds
from mesh.wire.frames import (
    DEFAULT_MAX_FRAME,
    DEFAULT_WINDOW,
    INITIAL_WINDOW_SIZE,
    headers,
    pack_head,
    settings,
    window_update,
)
from mesh.wire.streams import MAY_SEND, NOBODY, Happening, State, Stream

OUT_BYTES: Final = 256 * 1024
"""Bytes of DATA put together for one write, and left in a socket's buffer: a few loopback round trips at 10 Gbit/s."""

TURN: Final = 64 * 1024
"""Bytes of one stream before the next has its turn, where several wait for the connection's window."""


class Windows:
    """The part of a connection that sends. `Control` and `Connection` add the rest."""

    def __init__(self, bounds: Bounds, *, is_client: bool, notify: Callable[[], None]) -> None:
        self.bounds = bounds
        self.is_client = is_client
        self.notify = notify
        """Called when `out` is about to become non-empty."""
        self.out: list[bytes | memoryview] = []
        """Bytes to send, in order. Whoever sends them empties it."""
        self.room = OUT_BYTES
        """Bytes of DATA that `out` still takes; the rest waits, so that a peer which does not read costs no memory."""
        self.bandwidth = Bandwidth(bounds.stream_window, bounds.far_window)
        self.streams: dict[int, Stream] = {}
        self.waiting: dict[int, Stream] = {}
        """Streams with data that waits for a window, in the order in which they began to wait."""
        self.send_window = DEFAULT_WINDOW
        self.connection_window = self.recv_window = bounds.connection_window
        self.unacked = 0
        self.assembling = 0
        """Bytes of messages that are not whole yet, over all calls: their receivers count them here."""
        self.caller: CallerBytes = HeldBytes(UNLIMITED).caller()
        """What this connection makes the process hold. A server gives it a part of the process's account."""
        self.unread: Callable[[Any, Stream], None] = _stays
        """Called when data waits on a stream while the connection holds more than its part. A server ends the call."""
        self.peer_stream_window = DEFAULT_WINDOW
        self.peer_max_frame = DEFAULT_MAX_FRAME
        self.size_update_due = True
        """Whether the next header block of ours says first that we use no table (RFC 7541 §4.2)."""

    def write(self, data: bytes) -> None:
        """Add bytes to what is to be sent."""
        if not self.out:
            self.notify()
        self.out.append(data)

    def widen(self, more: int) -> None:
        """Let every stream, also those to come, send so many bytes more before they are read."""
        if more:
            for stream in self.streams.values():
                stream.window += more
                stream.recv_window += more
            self.write(settings({INITIAL_WINDOW_SIZE: self.bandwidth.window}))
            # One stream alone must not fill the connection's.
            wider = self.bandwidth.window * 3 // 2 - self.connection_window
            if wider > 0:
                self.connection_window += wider
                self.recv_window += wider
                self.write(window_update(0, wider))

    def forget(self, stream: Stream) -> None:
        """Drop a stream that is closed. What a server's receiver has not consumed is given back here, once."""
        if self.streams.pop(stream.id, None) is None:
            return
        # Its receiver knows it, and perhaps a whole request: each would keep the other until a full collection.
        stream.receiver = NOBODY
        unconsumed = stream.window - stream.recv_window - stream.unacked
        if unconsumed and not self.is_client:
            self.give_back(unconsumed)
        self.drop(stream)

    def drop(self, stream: Stream) -> None:
        """Drop what waits on a stream."""
        if stream.pending is not None:
            self.caller.add(-stream.pending_bytes)
            stream.pending = stream.ending = None
            stream.pending_bytes = 0
            self.waiting.pop(stream.id, None)

    def dealt_with(self, size: int) -> None:
        """Return `size` bytes to the connection's window, together with what comes soon."""
        self.unacked += size
        if self.unacked >= self.bounds.connection_window >> 2:
            self.give_back(0)

    def give_back(self, size: int) -> None:
        """Return `size` bytes, and what was consumed before, to the connection's window."""
        self.unacked += size
        if self.unacked:
            self.recv_window += self.unacked
            self.write(window_update(0, self.unacked))
            self.unacked = 0

    def make_room(self, size: int) -> None:
        """Hear that the socket takes `size` more bytes; 0 or less: no DATA goes to `out` until it does."""
        self.room = size
        if size > 0 and self.waiting:
            self.pump_all()

    def pump_all(self) -> None:
        """Send what waits, in turns of `TURN` bytes a stream, as far as the windows go."""
        going = True
        while going and self.waiting:
            going = False
            for stream in list(self.waiting.values()):
                if self.room <= 0 or self.send_window <= 0:
                    return
                if stream.pending is not None and self.pump(stream, TURN):
                    going = True
                    if stream.pending is not None:
                        # Its turn is over, also where the windows ran out in it: the next update is another's.
                        self.waiting[stream.id] = self.waiting.pop(stream.id)

    def pump(self, stream: Stream, at_most: int) -> bool:
        """Send what waits on `stream`, as far as the windows and `at_most` bytes go; True when something went."""
        pending = stream.pending
        assert pending is not None
        left = at_most
        while pending:
            data = pending[0]
            size = min(len(data), stream.send_window, self.send_window, self.peer_max_frame, left, self.room)
            if size <= 0:
                if len(data):
                    return left < at_most
                size = 0  # No data needs no window, not even one that is below 0.
            if size < len(data):
                pending[0], data = data[size:], data[:size]
            else:
                pending.popleft()
            stream.pending_bytes -= size
            self.caller.add(-size)
            stream.send_window -= size
            self.send_window -= size
            self.room -= size
            left -= size
            ends = not pending and stream.ending == b""
            self.write(pack_head(size << 8, 1 if ends else 0, stream.id))
            self.out.append(data)
        self._pumped(stream)
        return True

    def _pumped(self, stream: Stream) -> None:
        stream.pending = None
        self.waiting.pop(stream.id, None)
        trailers, stream.ending = stream.ending, None
        if trailers is not None and MAY_SEND[stream.state]:
            if trailers:
                if self.size_update_due:
                    self.size_update_due = False
                    trailers = b"\x20" + trailers
                self.write(headers(trailers, stream.id, end=True, max_frame=self.peer_max_frame))
            if stream.move(Happening.SENT_END) is State.CLOSED:
                self.forget(stream)
        if stream.state is not State.CLOSED:
            stream.receiver.drained(stream)

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait for the peer's windows. O(streams that wait)."""
        return sum(stream.pending_bytes for stream in self.waiting.values())


def _stays(connection: Windows, stream: Stream) -> None:
    """Let it wait: what a process asks others, it has on its own account."""
