"""One HTTP/2 connection, either side: bytes in, calls of `Receiver` out, bytes to send in `out`. No I/O, no clock.

What a peer may not do ends a stream (RST_STREAM) or the connection (GOAWAY), as RFC 9113 says; every other byte
sequence is bounded by `Bounds`. `streams` has the table of states, `control` the frames that carry no call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mesh.wire.fields import Block, Role
from mesh.wire.flow import Bounds
from mesh.wire.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HAS_PRIORITY,
    HEAD_BYTES,
    HEADERS,
    MAX_STREAM_ID,
    PADDED,
    PREFACE,
    SETTINGS,
    ConnectionFault,
    ErrorCode,
    StreamFault,
    rst_stream,
    u32,
    unpack_head,
)
from mesh.wire.header_cache import MAX_BLOCK
from mesh.wire.sending import Sending
from mesh.wire.streams import MAY_RECEIVE, NOBODY, Happening, Receiver, State, Stream

Accept = Callable[["Connection", Stream, Block, bool], Receiver]
"""Returns who takes a stream that the peer opened. May raise `StreamFault`."""

LOST: Final = -1
"""The code of `Receiver.reset` when the connection went away, with no word on the stream."""

STOPPED: Final = -2
"""The code of `Receiver.reset` when this server stops and the call must end now, with a status if that can be."""

OVERSIZED: Final = -3
"""The code of `Receiver.reset` when the peer's headers on this stream are more than are taken."""

UNREAD: Final = -4
"""The code of `Receiver.reset` when what was sent on this stream waits for a peer that leaves too much unread."""


class Connection(Sending):
    """The protocol of one connection. `accept` makes it a server's."""

    def __init__(
        self, bounds: Bounds, *, accept: Accept | None = None, notify: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(bounds, is_client=accept is None, notify=notify)
        self._accept = accept
        self._tail = b""
        self._preface = b"" if accept is None else PREFACE
        self._body: tuple[Stream | None, int, bool] | None = None
        """A DATA frame that is arriving: its stream, the bytes left, whether it is the last."""

    # -- bytes in ------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, now_s: float) -> None:
        """Take what came from the peer. Never raises for any bytes; a fault ends the connection (`broken`)."""
        if self.broken is not None:
            return
        self.now_s = now_s
        if self._tail:
            data = self._tail + data
            self._tail = b""
        try:
            start = self._start(data) if self._preface or self._body is not None else 0
            position = self._frames(data, start)
            if position < len(data):
                self._tail = data[position:]
        except ConnectionFault as fault:
            self.fail(fault)

    def _start(self, data: bytes) -> int:
        """Deal with what comes before the next frame: the client's preface, or the rest of a DATA frame."""
        if self._preface:
            if data[: len(PREFACE)] != PREFACE[: len(data)]:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "this port speaks gRPC over HTTP/2")
            if len(data) < len(PREFACE):
                self._tail = data
                return len(data)
            self._preface = b""
            return len(PREFACE)
        assert self._body is not None
        stream, left, end = self._body
        taken = min(left, len(data))
        self._body = (stream, left - taken, end) if taken < left else None
        if stream is None:
            self.give_back(taken)
        elif stream.state is not State.CLOSED:
            try:
                self._deliver(stream, data[:taken], end=end and taken == left)
            except Exception as error:  # noqa: BLE001 - faults, and bugs in what takes one call
                self._failed(stream.id, error)
        return taken

    def _frames(self, data: bytes, position: int) -> int:
        """Take every whole frame from `position` on, and the part of a DATA frame. Return where the rest begins."""
        size = len(data)
        max_frame = self.bounds.max_frame
        while size - position >= HEAD_BYTES:
            head, flags, stream_id = unpack_head(data, position)
            length = head >> 8
            kind = head & 0xFF
            start = position + HEAD_BYTES
            end = start + length
            if length > max_frame:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes, at most {max_frame}")
            if end > size and (kind != DATA or flags & PADDED):
                break
            stream_id &= MAX_STREAM_ID
            if self._block is not None and (kind != CONTINUATION or stream_id != self._block_stream):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame between HEADERS and its CONTINUATION")
            if not self.greeted and kind != SETTINGS:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            try:
                if kind == DATA:
                    if end > size:
                        self._data(stream_id, flags, data[start:size], length)
                        return size
                    payload = data[start:end]
                    if not flags and size - end > HEAD_BYTES:
                        payload, end = self._together(stream_id, data, payload, end)
                        length = len(payload)
                    self._data(stream_id, flags, payload, length)
                elif kind == HEADERS:
                    self._headers(stream_id, flags, data[start:end])
                elif kind == CONTINUATION:
                    self._continuation(stream_id, flags, data[start:end])
                else:
                    self.control(kind, flags, stream_id, data[start:end])
            except Exception as error:  # noqa: BLE001 - faults, and bugs in what takes one call
                self._failed(stream_id, error)
            position = end
        return position

    def _failed(self, stream_id: int, error: Exception) -> None:
        """End the stream because of a frame on it; raises `ConnectionFault` for one that ends more."""
        if isinstance(error, StreamFault):
            self.fail_stream(error)
        elif isinstance(error, ConnectionFault):
            raise error
        else:
            self.bug(stream_id, error)

    def _together(self, stream_id: int, data: bytes, payload: bytes, position: int) -> tuple[bytes, int]:
        """Return a DATA frame's payload and those of the frames behind it on its stream, and where the next one begins.

        Clients of streams send each message in a frame of its own, many at a time: they are delivered together. Only of
        frames without flags that the windows allow: all else is as if each came alone.
        """
        stream = self.streams.get(stream_id)
        if stream is None or not MAY_RECEIVE[stream.state] or not stream.seen_headers:
            return payload, position
        size, max_frame = len(data), self.bounds.max_frame
        left = min(self.recv_window, stream.recv_window) - len(payload)
        payloads = [payload]
        while size - position > HEAD_BYTES:
            head, flags, following = unpack_head(data, position)
            length = head >> 8
            start = position + HEAD_BYTES
            end = start + length
            left -= length
            alike = head & 0xFF == DATA and not flags and following & MAX_STREAM_ID == stream_id
            if not alike or not 0 < length <= max_frame or end > size or left < 0:
                break
            payloads.append(data[start:end])
            position = end
        return (b"".join(payloads) if len(payloads) > 1 else payload), position

    def _data(self, stream_id: int, flags: int, payload: bytes, length: int) -> None:
        """Take a DATA frame of `length` bytes, of which `payload` is here."""
        self.recv_window -= length
        self.received_bytes += length
        if self.recv_window < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the connection's window")
        stream = self.streams.get(stream_id)
        here = len(payload)
        if stream is None or not MAY_RECEIVE[stream.state] or not stream.seen_headers:
            if here < length:
                self._body = (None, length - here, False)
            self.give_back(here)
            self.stray(stream_id, stream, "DATA")
            return
        end = bool(flags & END_STREAM)
        if here < length:
            # Before any fault: what is still to come of this frame is no frame, even where nobody wants it.
            self._body = (stream, length - here, end)
            end = False
        if self.is_client:
            # At once: a stream that nobody reads keeps what comes on it waiting, by its own window, and no other.
            self.dealt_with(length)
        stream.recv_window -= length
        if stream.recv_window < 0:
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the stream's window")
        if flags & PADDED:
            payload = _unpadded(payload)
            self.consumed(stream, length - len(payload))
        if not length and not end:
            self.nuisance("empty DATA frames")
        if payload or end:
            self._deliver(stream, payload, end=end)

    def _deliver(self, stream: Stream, data: bytes, *, end: bool) -> None:
        if stream.body_left >= 0:
            stream.body_left -= len(data)
            if stream.body_left < 0 or (end and stream.body_left):
                self.fail_stream(StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, "DATA unlike content-length"))
                return
        receiver = stream.receiver
        if end and stream.move(Happening.RECEIVED_END) is State.CLOSED:
            self.forget(stream)
        receiver.data(stream, data, end)

    def _headers(self, stream_id: int, flags: int, payload: bytes) -> None:
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        if flags & PADDED:
            payload = _unpadded(payload)
        itself = False
        if flags & HAS_PRIORITY:
            if len(payload) < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            itself = u32(payload) & MAX_STREAM_ID == stream_id
            payload = payload[5:]
        end = bool(flags & END_STREAM)
        if flags & END_HEADERS:
            self._block_done(stream_id, payload, end=end)
        else:
            self._block, self._block_stream, self._block_ends = [payload], stream_id, end
            self._block_bytes = len(payload)
        if itself:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")

    def _continuation(self, stream_id: int, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS before it")
        self._block.append(payload)
        self._block_bytes += len(payload)
        if self._block_bytes > MAX_BLOCK:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"headers of more than {MAX_BLOCK} bytes")
        if not payload:
            self.nuisance("empty CONTINUATION frames")
        if flags & END_HEADERS:
            whole, self._block = b"".join(self._block), None
            self._block_done(stream_id, whole, end=self._block_ends)

    def _block_done(self, stream_id: int, data: bytes, *, end: bool) -> None:
        block = self.reader.read(data)
        if not self.asked_for_no_table and self.last_peer_id:
            self.ask_for_no_table()
        stream = self.streams.get(stream_id)
        if stream is None:
            self._open_peers(stream_id, block, end=end)
            return
        if not MAY_RECEIVE[stream.state]:
            self.stray(stream_id, stream, "HEADERS")
            return
        if block.size > self.bounds.max_header_list:
            receiver = stream.receiver
            self.reset(stream, ErrorCode.CANCEL)
            receiver.reset(stream, OVERSIZED)
            if not self.is_client:
                self.nuisance("trailers that are too long")
            return
        if stream.seen_headers and not end:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "trailers that do not end their stream")
        if not stream.seen_headers and block.fields and block.fields[0].value[:1] == b"1" and not end:
            return  # An interim response says nothing to gRPC (RFC 9113 §8.1).
        stream.seen_headers = True
        if self._accept is not None and any(Role.METHOD <= field.role <= Role.LAST_PSEUDO for field in block.fields):
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "pseudo-headers in trailers")
        if end and stream.body_left > 0:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "a body shorter than its content-length")
        receiver = stream.receiver
        if end and stream.move(Happening.RECEIVED_END) is State.CLOSED:
            self.forget(stream)
        receiver.headers(stream, block, end)

    def _open_peers(self, stream_id: int, block: Block, *, end: bool) -> None:
        stream = self._opened(stream_id)
        if stream is None:
            return
        if end:
            stream.move(Happening.RECEIVED_END)
        stream.seen_headers = True
        assert self._accept is not None
        receiver = self._accept(self, stream, block, end)
        if stream.state is not State.CLOSED:
            stream.receiver = receiver

    def _opened(self, stream_id: int) -> Stream | None:
        """Return a new stream for HEADERS of the peer on an id without one, None when it is not to be answered."""
        if self._accept is None or not stream_id & 1 or stream_id <= self.last_peer_id:
            self.stray(stream_id, None, "HEADERS")
            return None
        if stream_id > self.last_peer_id + 2:
            self.resets.pass_over(self.last_peer_id, stream_id)
        self.last_peer_id = stream_id
        if self.ended:
            return None  # Opened after our GOAWAY: the peer knows that it was not taken (RFC 9113 §6.8).
        if len(self.streams) >= self.bounds.max_streams:
            self.write(rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
            self.nuisance("streams above the limit")
            self.resets.note(stream_id, told=True)
            return None
        stream = Stream(stream_id, NOBODY, self.peer_stream_window, self.bandwidth.window)
        self.streams[stream_id] = stream
        return stream


def _unpadded(payload: bytes) -> bytes:
    """Return what is between the length of the padding and the padding (RFC 9113 §6.1)."""
    if not payload:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a padded frame without the length of its padding")
    padding = payload[0]
    if padding >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - padding]
