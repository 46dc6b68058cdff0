"""What a connection says of its calls: headers, data and trailers, in as few pieces as the windows allow."""

from __future__ import annotations

from collections import deque
from typing import Final

from mesh.core.traffic.held import COUNTED
from mesh.wire.bandwidth import MEASURE_PING
from mesh.wire.control import Control
from mesh.wire.flow import grown
from mesh.wire.frames import (
    DEFAULT_MAX_FRAME,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MAX_WINDOW,
    headers,
    pack_head,
    ping,
    window_update,
)
from mesh.wire.streams import MAY_RECEIVE, MAY_SEND, Happening, Receiver, State, Stream

_LAST: Final = END_HEADERS | END_STREAM

_TOGETHER: Final = 1024
"""Pieces that wait are put together up to here: an object for each byte would cost 200 times what it holds."""


class Sending(Control):
    """The half of a connection that its calls send with."""

    def open(self, block: bytes, receiver: Receiver, *, end: bool = False) -> Stream:
        """Open a stream with these HPACK bytes as its headers. The caller has looked at `has_room`."""
        stream = Stream(self.next_id, receiver, self.peer_stream_window, self.bandwidth.window)
        self.next_id += 2
        self.streams[stream.id] = stream
        self.send_headers(stream, block, end=end)
        return stream

    def call(self, block: bytes, receiver: Receiver, data: bytes) -> Stream:
        """Open a stream with these headers and this whole body, which ends it: HEADERS and DATA in one piece."""
        size = len(data)
        if size > self.peer_stream_window or size > self.send_window or size > self.peer_max_frame or size > self.room:
            stream = self.open(block, receiver)
            self.send_data(stream, data, end=True)
            return stream
        stream = Stream(self.next_id, receiver, self.peer_stream_window - size, self.bandwidth.window)
        stream.state = State.HALF_CLOSED_LOCAL
        self.next_id += 2
        self.streams[stream.id] = stream
        self.send_window -= size
        self.room -= size
        if self.size_update_due:
            self.size_update_due = False
            block = b"\x20" + block
        out = self.out
        if not out:
            self.notify()
        if len(block) > self.peer_max_frame:
            out.append(headers(block, stream.id, end=False, max_frame=self.peer_max_frame))
        else:
            out.append(pack_head(len(block) << 8 | HEADERS, END_HEADERS, stream.id))
            out.append(block)
        out.append(pack_head(size << 8, END_STREAM, stream.id))
        out.append(data)
        return stream

    def answer(self, stream: Stream, block: bytes, data: bytes, trailers: bytes) -> None:
        """Send headers, a whole body and trailers: in one piece where the windows allow it."""
        size = len(data)
        if (
            stream.pending is not None
            or size > stream.send_window
            or size > self.send_window
            or size > self.peer_max_frame
            or size > self.room
            or self.size_update_due
            or len(trailers) > DEFAULT_MAX_FRAME
            or not MAY_SEND[stream.state]
        ):
            self.send_headers(stream, block)
            self.send_data(stream, data)
            self.send_headers(stream, trailers, end=True)
            return
        self.send_window -= size
        self.room -= size
        number = stream.id
        out = self.out
        if not out:
            self.notify()
        out.append(pack_head(len(block) << 8 | HEADERS, END_HEADERS, number) + block)
        out.append(pack_head(size << 8, 0, number))
        out.append(data)
        out.append(pack_head(len(trailers) << 8 | HEADERS, _LAST, number) + trailers)
        if stream.move(Happening.SENT_END) is State.CLOSED:
            self.forget(stream)

    def send_headers(self, stream: Stream, block: bytes, *, end: bool = False) -> None:
        """Send headers, or trailers with `end` after all data that waits."""
        if not MAY_SEND[stream.state]:
            return
        if stream.pending is not None and end:
            stream.ending = block
            return
        if self.size_update_due:
            self.size_update_due = False
            block = b"\x20" + block
        if not self.out:
            self.notify()
        self.out.append(headers(block, stream.id, end=end, max_frame=self.peer_max_frame))
        if end and stream.move(Happening.SENT_END) is State.CLOSED:
            self.forget(stream)

    def send_data(self, stream: Stream, data: bytes, *, end: bool = False) -> bool:
        """Send `data`; False when some of it waits for the peer, who is heard of by `Receiver.drained`."""
        size = len(data)
        if (
            stream.pending is not None
            or size > stream.send_window
            or size > self.send_window
            or size > self.peer_max_frame
            or size > self.room
        ):
            return self._send_later(stream, data, end=end)
        if not MAY_SEND[stream.state]:
            return True
        stream.send_window -= size
        self.send_window -= size
        self.room -= size
        out = self.out
        if not out:
            self.notify()
        out.append(pack_head(size << 8, 1 if end else 0, stream.id))
        out.append(data)
        if end and stream.move(Happening.SENT_END) is State.CLOSED:
            self.forget(stream)
        return True

    def _send_later(self, stream: Stream, data: bytes, *, end: bool) -> bool:
        if not MAY_SEND[stream.state]:
            return True
        if stream.pending is None:
            stream.pending = deque()
            self.waiting[stream.id] = stream
        if data or end:
            # A view: what is cut off the front must not be copied each time.
            if stream.pending and len(stream.pending[-1]) + len(data) <= _TOGETHER:
                stream.pending[-1] = memoryview(bytes(stream.pending[-1]) + data)
            else:
                stream.pending.append(memoryview(data))
            stream.pending_bytes += len(data)
            self.caller.add(len(data))
        if end:
            stream.ending = b""
        self.pump(stream, MAX_WINDOW)
        caller = self.caller
        if stream.pending is not None and caller.held > COUNTED and caller.is_full:
            self.unread(self, stream)
        return stream.pending is None

    def consumed(self, stream: Stream, size: int) -> None:
        """Give `size` bytes of what `stream` received back to the peer; `forget` did it for a closed one."""
        if stream.state is State.CLOSED:
            return
        if not self.is_client:
            self.dealt_with(size)
        stream.unacked += size
        if stream.unacked >= stream.window >> 1 and MAY_RECEIVE[stream.state]:
            window = grown(stream.window, self.bounds.max_stream_window)
            increment = stream.unacked + window - stream.window
            stream.window = window
            stream.recv_window += increment
            stream.unacked = 0
            self.write(window_update(stream.id, increment))
            if self.bandwidth.is_due(self.now_s) and not self.caller.is_full:
                self.widen(self.bandwidth.begin(self.now_s, self.received_bytes))
                self.write(ping(MEASURE_PING, ack=False))
