"""One connection of the load client: frames, windows and buffers over a plain socket.

What a call is and when the next one starts is left to `benchmarks.client`.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections import deque

from benchmarks import h2
from benchmarks.calls import CallBytes, Ids, Job
from benchmarks.h2 import ProtocolFailed

READ_BYTES = 262_144
SILENCE_S = 30.0
"""A server that says nothing for so long hangs."""
ACK_BYTES = 2**28
"""Received data is acknowledged in such steps: the windows are larger."""
NOTHING = memoryview(b"")
BUFFERS = 256
"""Buffers for one system call; Linux takes 1024."""


class Call:
    """One call in flight."""

    __slots__ = ("answered", "closed", "got", "left", "owed", "room", "sent", "started_s", "unacked")

    def __init__(self, room: int, started_s: float, left: memoryview) -> None:
        self.room = room
        """Bytes that the server's window of this stream takes."""
        self.started_s = started_s
        self.left = left
        """What the windows did not let out yet of a single message."""
        self.got = 0
        """Bytes of messages received."""
        self.unacked = 0
        """Those of them that no WINDOW_UPDATE answered."""
        self.sent = self.answered = self.owed = 0
        """Messages of a stream that were sent, were answered, and may be sent once the windows let them."""
        self.closed = False
        """No more messages follow."""


class Run:
    """What the connections share: the job, how much of it is left, and the times."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.message = memoryview(job.message())
        self.answer_start = job.answer_start()
        self.answer_size = 5 + job.answer_bytes
        self.ids = Ids()
        self.trailers = h2.Trailers()
        self.left = job.count
        """Messages nobody has taken on yet."""
        self.answered = 0
        self.open = 0
        """Calls in flight."""
        self.latencies_s: list[float] = []
        self.streams_begun = 0


class Connection:
    """One connection: frames, windows and buffers. What a call is, `Unary` and `Streaming` say."""

    def __init__(self, run: Run) -> None:
        """Connect and exchange settings, blocking. Raises OSError, `ProtocolFailed`."""
        host, _, port = run.job.address.rpartition(":")
        self.run = run
        self.calls: dict[int, Call] = {}
        self.wants_to_write = False
        self._next = 1
        self.room = self._first_room = h2.FIRST_WINDOW
        self._settings: dict[int, int] | None = None
        self.out: deque[bytes | memoryview] = deque()
        self._rest = b""
        self._skip = 0
        """Bytes of a DATA frame that were counted and are still to come."""
        self._unacked = 0
        self._headers: CallBytes
        self._run = run
        self._table_bytes = -1
        self.socket = socket.create_connection((host, int(port)), timeout=SILENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(h2.opening())
        while self._settings is None:
            self.read()
        self.socket.settimeout(0)
        self._use_table()

    def _use_table(self) -> None:
        """Write headers for the table that the server has, which its later SETTINGS may change (RFC 7541 §4.2)."""
        table_bytes = (self._settings or {}).get(h2.HEADER_TABLE_SIZE, h2.TABLE_BYTES)
        if table_bytes != self._table_bytes:
            self._table_bytes = table_bytes
            self._headers = CallBytes(self._run.job, self._run.ids, table_bytes=table_bytes)

    def begin(self) -> None:
        """Start the first calls."""
        raise NotImplementedError

    def got(self, call: Call, data: bytes, at: int) -> None:
        """Look at the payload of a DATA frame, at `data[at:]`, before it is counted; a part of it may be missing."""

    def counted(self, stream: int, call: Call) -> None:
        """Do what follows from more bytes of messages."""

    def ended(self, call: Call) -> None:
        """Do what follows from the successful end of a call."""
        raise NotImplementedError

    def room_made(self) -> None:
        """Send what the server's windows held back."""
        raise NotImplementedError

    def read(self) -> None:
        """Take in what has come and send what follows from it."""
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise ProtocolFailed("expected answers, the server closed the connection")
        self._take(data)
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it."""
        out = self.out
        self.wants_to_write = False
        while out:
            try:
                if len(out) == 1:
                    sent = self.socket.send(out[0])
                else:
                    sent = self.socket.sendmsg(list(itertools.islice(out, BUFFERS)))
            except BlockingIOError:
                self.wants_to_write = True
                return
            while out and sent >= len(out[0]):
                sent -= len(out.popleft())
            if sent:
                out[0] = memoryview(out[0])[sent:]

    def _take(self, data: bytes) -> None:
        at = min(self._skip, len(data))
        self._skip -= at
        if self._rest:
            data = self._rest + data
        end = len(data)
        while end - at >= 9:
            high, low, kind, flags, stream = h2.FRAME.unpack_from(data, at)
            size = high << 8 | low
            after = at + 9 + size
            if kind == h2.DATA and (after <= end or size > 1_000):
                # A large frame's bytes are counted, not looked at: what is missing needs not be waited for.
                self._data(stream, data, at + 9, size, flags)
                self._skip = max(0, after - end)
                at = min(after, end)
                continue
            if after > end:
                break
            if kind == h2.HEADERS:
                self._header_block(stream, flags, data[at + 9 : after])
            else:
                self._control(kind, flags, stream, data[at + 9 : after])
            at = after
        self._rest = data[at:]

    def _data(self, stream: int, data: bytes, at: int, size: int, flags: int) -> None:
        if flags & (h2.PADDED | h2.END_STREAM):
            raise ProtocolFailed(f"expected DATA that trailers follow, without padding, got flags {flags:#x}")
        self._unacked += size
        if self._unacked >= ACK_BYTES:
            self.out.append(h2.window_update(0, self._unacked))
            self._unacked = 0
        call = self.calls[stream]
        self.got(call, data, at)
        call.got += size
        call.unacked += size
        if call.unacked >= ACK_BYTES:
            self.out.append(h2.window_update(stream, call.unacked))
            call.unacked = 0
        self.counted(stream, call)

    def _header_block(self, stream: int, flags: int, block: bytes) -> None:
        if flags & ~h2.END_STREAM != h2.END_HEADERS:
            raise ProtocolFailed(f"expected a header block in one frame, got flags {flags:#x}")
        if flags & h2.END_STREAM:
            self.run.trailers.check(block)
            self.run.open -= 1
            self.ended(self.calls.pop(stream))

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == h2.WINDOW_UPDATE:
            more = int.from_bytes(payload, "big")
            if not stream:
                self.room += more
            elif stream in self.calls:
                self.calls[stream].room += more
            self.room_made()
        elif kind == h2.SETTINGS and not flags & h2.ACK:
            self._settings = {**(self._settings or {}), **h2.settings_of(payload)}
            room = self._settings.get(h2.INITIAL_WINDOW_SIZE, h2.FIRST_WINDOW)
            for call in self.calls.values():
                call.room += room - self._first_room
            self._first_room = room
            self.out.append(h2.frame(h2.SETTINGS, h2.ACK, 0))
            if self._table_bytes >= 0:
                self._use_table()
        elif kind == h2.PING and not flags & h2.ACK:
            self.out.append(h2.frame(h2.PING, h2.ACK, 0, payload))
        elif kind == h2.GOAWAY or (kind == h2.RST_STREAM and stream in self.calls):
            raise ProtocolFailed(f"expected answers, got frame type {kind} with {payload!r}")

    def open(self, left: memoryview) -> tuple[int, Call]:
        """Open a call with its headers; `left` is what follows of its message."""
        stream, where = self._new_stream()
        self.out.append(self._headers.next(where))
        call = self.calls[stream] = Call(self._first_room, time.perf_counter(), left)
        return stream, call

    def send_whole(self, head: bytes, message: bytes) -> bool:
        """Make a call whose message is one DATA frame, `head` its first five bytes, if the windows take it all."""
        if len(message) > min(self.room, self._first_room):
            return False
        stream, where = self._new_stream()
        self.out.append(b"".join((self._headers.next(where), head, where, message)))
        self.room -= len(message)
        self.calls[stream] = Call(0, time.perf_counter(), NOTHING)
        return True

    def _new_stream(self) -> tuple[int, bytes]:
        stream = self._next
        self._next += 2
        self.run.open += 1
        return stream, stream.to_bytes(4, "big")
