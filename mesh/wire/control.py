"""The frames of a connection that carry no call, and what both sides keep of each other's limits.

SETTINGS, PING, GOAWAY, WINDOW_UPDATE, RST_STREAM, PRIORITY; draining by a double GOAWAY. `faults` has what ends a
stream or the connection.
(RFC 9113 §6)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mesh.wire.bandwidth import MEASURE_PING
from mesh.wire.faults import Faults
from mesh.wire.flow import Bounds
from mesh.wire.frames import (
    ACK,
    DEFAULT_MAX_FRAME,
    DEFAULT_WINDOW,
    ENABLE_PUSH,
    GOAWAY,
    HEADER_TABLE_SIZE,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    MAX_STREAM_ID,
    MAX_WINDOW,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ConnectionFault,
    ErrorCode,
    StreamFault,
    check_size,
    frame,
    goaway,
    ping,
    read_settings,
    settings,
    u32,
    window_update,
)
from mesh.wire.header_cache import HeaderReader
from mesh.wire.streams import Happening, Stream

DRAIN_PING: Final = b"mesh-bye"
"""Its answer shows that the peer has read our first GOAWAY; what it opens after that was not meant for us."""
ALIVE_PING: Final = b"mesh-are"
"""The keepalive's."""
FIRST_STREAMS: Final = 100
"""Streams a client opens before the server has said its limit: the least that RFC 9113 §6.5.2 recommends."""


class Control(Faults):
    """The state of a connection outside its calls. `Connection` adds those."""

    def __init__(self, bounds: Bounds, *, is_client: bool, notify: Callable[[], None]) -> None:
        super().__init__(bounds, is_client=is_client, notify=notify)
        self.reader = HeaderReader(bounds.max_header_list)
        self.peer_max_streams = FIRST_STREAMS
        self.asked_for_no_table = False
        self.greeted = False
        """Whether the peer's first SETTINGS came."""
        self.going_away = self.silent = False
        """The peer sent GOAWAY, or does not answer for now: no new streams here."""
        self.draining = False
        self.on_settings: Callable[[], None] | None = None
        """Called when SETTINGS of the peer came: it says how many calls it takes."""
        self.echoed_s = 0.0
        """When the answer to our last `ALIVE_PING` came."""
        self.pings_unanswered = 0
        self._granted = DEFAULT_WINDOW
        """Bytes that the peer has let us send on this connection, in all."""
        self._pinged_at = (0, 0)
        self._block: list[bytes] | None = None
        self._block_stream = 0
        self._block_ends = False
        self._block_bytes = 0

    def greet(self) -> None:
        """Send the preface: for both sides their settings, and the connection's window."""
        bounds = self.bounds
        self.bandwidth.greeted(self.now_s)
        values = {
            INITIAL_WINDOW_SIZE: bounds.stream_window,
            MAX_FRAME_SIZE: bounds.max_frame,
            MAX_HEADER_LIST_SIZE: bounds.max_header_list,
        }
        if self.is_client:
            values[HEADER_TABLE_SIZE] = 0
            values[ENABLE_PUSH] = 0
            self.asked_for_no_table = True
            self.write(PREFACE)
        else:
            values[MAX_CONCURRENT_STREAMS] = bounds.max_streams
        self.write(settings(values) + window_update(0, bounds.connection_window - DEFAULT_WINDOW))

    def ask_for_no_table(self) -> None:
        """Ask a client to use no header table, when its second call comes.

        Not in the first SETTINGS: no client has read those before its first call anyway, one that makes a single call
        gains nothing, and h2spec's cases on table sizes contradict each other (128 must be taken, 1 refused) for a
        server that says 0 at once.
        """
        self.asked_for_no_table = True
        self.write(settings({HEADER_TABLE_SIZE: 0}))

    @property
    def has_room(self) -> bool:
        """Whether a client may open another stream here."""
        return (
            not (self.going_away or self.silent)
            and self.broken is None
            and len(self.streams) < self.peer_max_streams
            and self.next_id <= MAX_STREAM_ID
        )

    # -- frames --------------------------------------------------------------------------------------------------

    def control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Take a frame that is neither DATA nor HEADERS. Unknown kinds are ignored (RFC 9113 §5.5)."""
        if kind == WINDOW_UPDATE:
            self._window_update(stream_id, payload)
        elif kind == RST_STREAM:
            self._rst_stream(stream_id, payload)
        elif kind == PING:
            self._ping(flags, stream_id, payload)
        elif kind == SETTINGS:
            self._settings(flags, stream_id, payload)
        elif kind == GOAWAY:
            self._goaway(stream_id, payload)
        elif kind == PRIORITY:
            self._priority(stream_id, payload)
        elif kind == PUSH_PROMISE:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE, which we switched off")
        else:
            self.nuisance("frames of unknown kinds")

    def _window_update(self, stream_id: int, payload: bytes) -> None:
        check_size(payload, 4, "WINDOW_UPDATE")
        increment = u32(payload) & MAX_STREAM_ID
        if stream_id == 0:
            if increment == 0:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self.send_window += increment
            self._granted += increment
            if self.send_window > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a connection window of 2^31 or more")
            self.pump_all()
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self.check_not_idle(stream_id, "WINDOW_UPDATE")
            return
        if increment == 0:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        stream.send_window += increment
        if stream.send_window > MAX_WINDOW:
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "a stream window of 2^31 or more")
        if stream.pending is not None:
            self.pump(stream, MAX_WINDOW)

    def _rst_stream(self, stream_id: int, payload: bytes) -> None:
        check_size(payload, 4, "RST_STREAM")
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "RST_STREAM on stream 0")
        stream = self.streams.get(stream_id)
        if not self.is_client:
            self.nuisance("resets")
        if stream is None:
            self.reset_of_none(stream_id)
            return
        self.resets.note(stream_id, told=False)
        self._reset_here(stream, u32(payload))

    def _ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        check_size(payload, 8, "PING")
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if not flags & ACK:
            # As servers of gRPC do it: pings measure the path while data flows, so what was sent since allows one.
            sent = (self._granted - self.send_window, self.last_peer_id)
            if sent == self._pinged_at:
                self.nuisance("pings")
            self._pinged_at = sent
            self.write(ping(payload, ack=True))
            return
        self.pings_unanswered = 0
        if payload == MEASURE_PING:
            self.bandwidth.echoed(self.now_s)
        self.echoed_s = self.now_s if payload == ALIVE_PING else self.echoed_s
        if payload == DRAIN_PING and self.draining and not self.ended:
            self.end()

    def _settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement with settings in it")
            self.bandwidth.acknowledged(self.now_s)
            return
        if len(payload) % 6:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
        if self.greeted:
            self.nuisance("settings")
        elif self.is_client and self.peer_max_streams == FIRST_STREAMS:
            # A server that says nothing of a limit has none (RFC 9113 §6.5.2).
            self.peer_max_streams = MAX_STREAM_ID
        self.greeted = True
        window = self.peer_stream_window
        for key, value in read_settings(payload):
            self._setting(key, value)
        # The acknowledgement goes first: what follows it is sent under the new settings.
        self.write(frame(SETTINGS, ACK, 0))
        if self.peer_stream_window > window:
            self.pump_all()
        if self.on_settings is not None:
            self.on_settings()

    def _setting(self, key: int, value: int) -> None:
        if key == HEADER_TABLE_SIZE:
            self.size_update_due = True
        elif key == ENABLE_PUSH:
            if value > 1 or (value and self.is_client):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH {value}")
        elif key == MAX_CONCURRENT_STREAMS:
            self.peer_max_streams = value
        elif key == INITIAL_WINDOW_SIZE:
            if value > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE {value}")
            change, self.peer_stream_window = value - self.peer_stream_window, value
            for stream in self.streams.values():
                stream.send_window += change
                if stream.send_window > MAX_WINDOW:
                    raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a stream window of 2^31 or more")
        elif key == MAX_FRAME_SIZE:
            if not DEFAULT_MAX_FRAME <= value < 1 << 24:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE {value}")
            self.peer_max_frame = value

    def _goaway(self, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY of {len(payload)} bytes")
        self.going_away = True
        last = u32(payload) & MAX_STREAM_ID
        if self.is_client:
            for stream in [stream for number, stream in self.streams.items() if number > last]:
                self._reset_here(stream, ErrorCode.REFUSED_STREAM)

    def _priority(self, stream_id: int, payload: bytes) -> None:
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) != 5:
            raise StreamFault(stream_id, ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY of {len(payload)} bytes")
        self.nuisance("priorities")
        if u32(payload) & MAX_STREAM_ID == stream_id:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")

    # -- streams and windows -------------------------------------------------------------------------------------

    def _reset_here(self, stream: Stream, code: int) -> None:
        receiver = stream.receiver
        stream.move(Happening.RESET)
        self.forget(stream)
        receiver.reset(stream, code)

    # -- ends ----------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Ask the peer to open no more streams here; those it has opened go on. Idempotent."""
        if not self.draining:
            self.draining = True
            self.write(goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR) + ping(DRAIN_PING, ack=False))

    def end(self) -> None:
        """Say which stream was the last: the second GOAWAY."""
        if not self.ended:
            self.draining = self.ended = True
            self.write(goaway(self.last_peer_id, ErrorCode.NO_ERROR))

    def ask_alive(self) -> None:
        """Send a PING. `pings_unanswered` counts it until any answer comes, `echoed_s` is when its own came."""
        self.pings_unanswered += 1
        self.write(ping(ALIVE_PING, ack=False))

    def __repr__(self) -> str:
        """Show the counts."""
        side = "client" if self.is_client else "server"
        state = "broken" if self.broken else "draining" if self.draining or self.going_away else "open"
        return f"<Connection {side} {state} streams={len(self.streams)} waiting={self.waiting_bytes}>"
