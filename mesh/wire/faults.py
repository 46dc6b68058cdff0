"""What a peer may not do on a connection, and what ends by it: a stream, or all of them (RFC 9113 §5.4).

Floods of frames without use; frames on streams that are idle, closed or reset; bugs in what takes one call.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from mesh.core.errors import let_go
from mesh.wire.flow import USEFUL_BYTES, Allowance, Bounds, Resets
from mesh.wire.frames import ConnectionFault, ErrorCode, StreamFault, goaway, rst_stream
from mesh.wire.streams import NOBODY, Happening, Stream
from mesh.wire.windows import Windows


class Faults(Windows):
    """The part of a connection that judges its peer. `Control` and `Connection` find what there is to judge."""

    def __init__(self, bounds: Bounds, *, is_client: bool, notify: Callable[[], None]) -> None:
        super().__init__(bounds, is_client=is_client, notify=notify)
        self.received_bytes = 0
        self.next_id = 1
        self.last_peer_id = 0
        self.ended = False
        """Our last GOAWAY is out: streams opened from now on are not answered."""
        self.on_bug: Callable[[Exception], None] | None = None
        """Called with what a receiver raised that it should not have, after its stream was reset."""
        self.broken: ConnectionFault | None = None
        self.now_s = 0.0
        self.resets = Resets()
        self.reset_before_call = False
        """Whether the peer has reset a stream before it opened one."""
        self._allowance = Allowance()

    def nuisance(self, what: str) -> None:
        """Count a frame that is of no use. Raises `ConnectionFault` when there were too many."""
        kept = max(0, (self.last_peer_id >> 1) - self.resets.count)
        if not self._allowance.spend(self.now_s, self.received_bytes + USEFUL_BYTES * kept):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"too many {what}")

    def stray(self, stream_id: int, stream: Stream | None, what: str) -> None:
        """Answer a frame on a stream that is not open for it. Raises a fault, or returns where it is harmless."""
        if stream is not None:
            if stream.seen_headers:
                raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, f"{what} after END_STREAM")
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, f"{what} before HEADERS")
        self.check_not_idle(stream_id, what)
        if (told := self.resets.told(stream_id)) is not None:
            if not told:
                self.resets.note(stream_id, told=True)
                self.write(rst_stream(stream_id, ErrorCode.STREAM_CLOSED))
            return
        if self.resets.was_passed_over(stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{what} on stream {stream_id}, which was passed over")
        if self.ended and not self.is_client:
            return
        raise ConnectionFault(ErrorCode.STREAM_CLOSED, f"{what} on stream {stream_id}, which is closed")

    def check_not_idle(self, stream_id: int, what: str) -> None:
        """Raise `ConnectionFault` for a stream that was not opened yet, by neither side."""
        ours = bool(stream_id & 1) == self.is_client
        last = self.next_id - 2 if ours and self.is_client else self.last_peer_id if not ours else 0
        if stream_id == 0 or stream_id > last:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{what} on stream {stream_id}, which is idle")

    def reset_of_none(self, stream_id: int) -> None:
        """Take a RST_STREAM of a number without a stream. Raises `ConnectionFault` where none can have been meant.

        gRPC's C core resets a call that is given up after it got its number and before its headers, which never come
        then. RFC 9113 §6.4 has a connection end for that, and so everybody's calls on it. Here only one does that has
        no call yet, by `check_called`.
        """
        next_ones = range(self.last_peer_id + 1, self.last_peer_id + 2 * self.bounds.max_streams + 1)
        if self.is_client or not stream_id & 1 or stream_id not in next_ones:
            self.check_not_idle(stream_id, "RST_STREAM")
        elif not self.last_peer_id:
            self.reset_before_call = True

    def check_called(self) -> None:
        """End the connection of a peer that has reset a stream, and opened none in the time that it was given since."""
        if self.reset_before_call and not self.last_peer_id:
            self.fail(ConnectionFault(ErrorCode.PROTOCOL_ERROR, "RST_STREAM of an idle stream, and no call after it"))

    def fail_stream(self, fault: StreamFault) -> None:
        """Reset the stream that a peer used wrongly."""
        stream = self.streams.get(fault.stream_id)
        self.nuisance("faults")
        if stream is not None:
            receiver = stream.receiver
            self.reset(stream, fault.code)
            receiver.reset(stream, fault.code)
        else:
            self.write(rst_stream(fault.stream_id, fault.code))
            self.resets.note(fault.stream_id, told=True)

    def bug(self, stream_id: int, error: Exception) -> None:
        """End the one stream whose receiver raised: the others on this connection have no part in it."""
        if self.on_bug is not None:
            self.on_bug(error)
        let_go(error)
        stream = self.streams.get(stream_id)
        if stream is not None:
            receiver = stream.receiver
            self.reset(stream, ErrorCode.INTERNAL_ERROR)
            with suppress(Exception):  # It did not work before, and may not now.
                receiver.reset(stream, ErrorCode.INTERNAL_ERROR)

    def fail(self, fault: ConnectionFault) -> None:
        """End the connection because of `fault`: GOAWAY, and every stream hears that it is lost."""
        if self.broken is None:
            self.write(goaway(self.last_peer_id, fault.code, fault.why.encode()))
            self.lost(fault)

    def lost(self, fault: ConnectionFault) -> None:
        """Hear that the connection is gone: every stream hears it too."""
        if self.broken is None:
            self.broken = fault
        let_go(fault)
        streams, self.streams = self.streams, {}
        self.waiting.clear()
        for stream in streams.values():
            stream.move(Happening.RESET)
            self.drop(stream)
            receiver, stream.receiver = stream.receiver, NOBODY
            receiver.reset(stream, -1)

    def reset(self, stream: Stream, code: int) -> None:
        """Give a stream up; its receiver hears nothing more."""
        if self.streams.get(stream.id) is stream:
            stream.move(Happening.RESET)
            self.forget(stream)
            self.resets.note(stream.id, told=True)
            self.write(rst_stream(stream.id, code))
