"""Connections without a network: a side that records what it hears, frames as tuples, bytes moved by the test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from mesh.wire.connection import Connection
from mesh.wire.fields import Block
from mesh.wire.flow import Bounds
from mesh.wire.frames import HEAD_BYTES, PREFACE, settings, unpack_head
from mesh.wire.header_cache import HeaderReader, encode
from mesh.wire.heads import request_block
from mesh.wire.streams import Stream
from mesh.wire.windows import OUT_BYTES

REQUEST: Final = request_block("/s/M", "here", "http")
HEADERS_BLOCK: Final = encode(b":status", b"200") + encode(b"content-type", b"application/grpc")
TRAILERS: Final = encode(b"grpc-status", b"0")


class Frame(NamedTuple):
    """One frame as it travelled."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


def frames_of(data: bytes) -> list[Frame]:
    """Return the frames in `data`, which holds whole ones only; a preface at its start is left out."""
    position = len(PREFACE) if data.startswith(PREFACE) else 0
    found = []
    while position < len(data):
        head, flags, stream_id = unpack_head(data, position)
        start = position + HEAD_BYTES
        position = start + (head >> 8)
        assert position <= len(data)
        found.append(Frame(head & 0xFF, flags, stream_id, data[start:position]))
    return found


def said(connection: Connection) -> bytes:
    """Take what `connection` has to send, as a socket with room would."""
    out, connection.out = connection.out, []
    data = b"".join(out)
    connection.make_room(OUT_BYTES)
    return data


def told(connection: Connection) -> list[Frame]:
    """Take what `connection` has to send, as frames."""
    return frames_of(said(connection))


class Recorder:
    """A receiver that keeps what it hears. With `late` it gives nothing back until `consume`."""

    def __init__(self, connection: Connection, *, late: bool = False) -> None:
        self.connection = connection
        self.late = late
        self.stream: Stream | None = None
        self.blocks: list[tuple[tuple[bytes, bytes], ...]] = []
        self.body = b""
        self.ended = False
        self.codes: list[int] = []
        self.owed = 0
        self.drains = 0
        self.pieces: list[bytes] = []

    def headers(self, stream: Stream, block: Block, end: bool) -> None:
        """Keep them."""
        self._alive()
        self.stream = stream
        self.blocks.append(tuple([(field.name, field.value) for field in block.fields]))
        self.ended = end

    def data(self, stream: Stream, data: bytes, end: bool) -> None:
        """Keep it."""
        self._alive()
        self.pieces.append(data)
        self.ended = end
        if self.late:
            self.owed += len(data)
        else:
            self.connection.consumed(stream, len(data))

    def reset(self, stream: Stream, code: int) -> None:
        """Keep the code."""
        assert not self.codes
        self.codes.append(code)

    def silent(self, stream: Stream, *, long: bool) -> None:
        """Wait."""

    def drained(self, stream: Stream) -> None:
        """Count."""
        assert not self.codes
        self.drains += 1

    def consume(self, size: int) -> None:
        """Give back what was not given back at once."""
        if self.stream is not None:
            size = min(size, self.owed)
            self.owed -= size
            self.connection.consumed(self.stream, size)

    @property
    def whole(self) -> bytes:
        """The body so far."""
        return b"".join(self.pieces)

    def _alive(self) -> None:
        assert not self.codes
        assert not self.ended


class Served:
    """A server's connection and the calls that it took."""

    def __init__(self, bounds: Bounds | None = None, *, late: bool = False) -> None:
        self.calls: list[Recorder] = []
        self._late = late
        self.connection = Connection(bounds or Bounds(), accept=self._accept)
        self.connection.greet()

    def _accept(self, connection: Connection, stream: Stream, block: Block, end: bool) -> Recorder:
        recorder = Recorder(connection, late=self._late)
        recorder.headers(stream, block, end)
        self.calls.append(recorder)
        return recorder

    def hear(self, *parts: bytes, now_s: float = 1.0) -> list[Frame]:
        """Take bytes as of a client's, and return what is said to them."""
        self.connection.receive(b"".join(parts), now_s)
        return told(self.connection)


def greeted(bounds: Bounds | None = None, *, late: bool = False) -> Served:
    """Return a server whose client has said its preface and settings; what it answered is forgotten."""
    served = Served(bounds, late=late)
    served.hear(PREFACE, settings({}))
    return served


def client(bounds: Bounds | None = None, *, peer: dict[int, int] | None = None) -> Connection:
    """Return a client's connection whose server has said `peer`; what it said is forgotten."""
    connection = Connection(bounds or Bounds())
    connection.greet()
    connection.receive(settings(peer or {}), 1.0)
    said(connection)
    return connection


def exchange(
    one: Connection, other: Connection, cut: Callable[[bytes], list[bytes]] = lambda data: [data], now_s: float = 1.0
) -> None:
    """Move bytes both ways until nobody has anything to say."""
    while True:
        there, back = said(one), said(other)
        if not there and not back:
            return
        for piece in cut(there):
            other.receive(piece, now_s)
        for piece in cut(back):
            one.receive(piece, now_s)


def check_windows(connection: Connection) -> None:
    """Assert what holds of a connection's windows at any time."""
    assert connection.recv_window >= 0
    assert connection.send_window >= 0
    for number, stream in connection.streams.items():
        assert number == stream.id
        assert stream.recv_window >= 0
        assert stream.unacked >= 0
        assert stream.recv_window + stream.unacked <= stream.window
        assert (stream.pending is not None) == (number in connection.waiting)
    assert set(connection.waiting) <= set(connection.streams)


def pairs_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the fields of one header block that needs no table."""
    return [(field.name, field.value) for field in HeaderReader(1 << 20).read(data).fields]
