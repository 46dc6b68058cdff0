"""A client's connection and a server's, back to back: whatever is said on one side is heard on the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.wire import frames as f
from mesh.wire.connection import LOST, Connection
from mesh.wire.fields import Block
from mesh.wire.flow import Bounds
from mesh.wire.header_cache import encode
from mesh.wire.heads import ANSWER, OK_TRAILERS, request_block, request_head
from mesh.wire.streams import Stream

REQUEST = request_block("/a/B", "x", "http")


class Recorder:
    """A receiver that keeps what it hears, and consumes when told to."""

    def __init__(self, connection: Connection, *, lazy: bool = False) -> None:
        self.connection = connection
        self.lazy = lazy
        self.blocks: list[Block] = []
        self.body = bytearray()
        self.owed = 0
        self.ended = False
        self.code: int | None = None
        self.drains = 0

    def headers(self, stream: Stream, block: Block, end: bool) -> None:
        self.blocks.append(block)
        self.ended = self.ended or end

    def data(self, stream: Stream, data: bytes, end: bool) -> None:
        self.body += data
        self.ended = self.ended or end
        self.owed += len(data)
        if not self.lazy:
            self.consume(stream)

    def consume(self, stream: Stream) -> None:
        owed, self.owed = self.owed, 0
        self.connection.consumed(stream, owed)

    def reset(self, stream: Stream, code: int) -> None:
        self.code = code

    def silent(self, stream: Stream, *, long: bool) -> None:
        """Wait."""

    def drained(self, stream: Stream) -> None:
        self.drains += 1


class Pair:
    """Both sides, and the bytes between them."""

    def __init__(self, bounds: Bounds | None = None, *, lazy: bool = False) -> None:
        self.accepted: dict[int, Recorder] = {}
        self.streams: dict[int, Stream] = {}
        self.lazy = lazy
        self.client = Connection(bounds or Bounds())
        self.server = Connection(bounds or Bounds(), accept=self._accept)
        self.client.greet()
        self.server.greet()

    def _accept(self, connection: Connection, stream: Stream, block: Block, end: bool) -> Recorder:
        recorder = self.accepted[stream.id] = Recorder(connection, lazy=self.lazy)
        recorder.blocks.append(block)
        recorder.ended = end
        self.streams[stream.id] = stream
        return recorder

    def move(self, cut: Callable[[bytes], list[bytes]] = lambda data: [data]) -> None:
        """Carry bytes both ways until nothing more is said."""
        while self.client.out or self.server.out:
            for here, there in ((self.client, self.server), (self.server, self.client)):
                data, here.out = b"".join(here.out), []
                here.make_room(1 << 20)
                for part in cut(data):
                    there.receive(part, 0.0)
        assert self.client.broken is None
        assert self.server.broken is None

    def call(self, body: bytes) -> tuple[Stream, Recorder]:
        answer = Recorder(self.client)
        return self.client.call(REQUEST, answer, body), answer


bodies = st.lists(st.integers(0, 200_000), min_size=1, max_size=5)
cuts = st.one_of(st.just([1 << 30]), st.lists(st.integers(1, 5000), min_size=1, max_size=5))


def by(sizes: list[int]) -> Callable[[bytes], list[bytes]]:
    """Return what cuts bytes into pieces of these sizes, over and over."""

    def cut(data: bytes) -> list[bytes]:
        parts, position, number = [], 0, 0
        while position < len(data):
            size = sizes[number % len(sizes)]
            parts.append(data[position : position + size])
            position, number = position + size, number + 1
        return parts

    return cut


@settings(max_examples=60, deadline=None)
@given(bodies, bodies, cuts, st.sampled_from([65_535, 100_000]), st.sampled_from([65_535, 1 << 20]))
def test_bodies_of_any_size_arrive_whole_however_the_bytes_are_cut(
    questions: list[int], answers: list[int], sizes: list[int], window: int, most: int
) -> None:
    pair = Pair(Bounds(stream_window=window, max_stream_window=max(window, most), connection_window=200_000))
    asked = [(pair.call(bytes([number]) * size), bytes([number]) * size) for number, size in enumerate(questions)]
    pair.move(by(sizes))
    replies = {}
    for number, ((stream, _), body) in enumerate(asked):
        heard = pair.accepted[stream.id]
        assert heard.ended
        assert bytes(heard.body) == body
        replies[stream.id] = bytes([number + 100]) * answers[number % len(answers)]
        pair.server.answer(pair.streams[stream.id], ANSWER, replies[stream.id], OK_TRAILERS)
    pair.move(by(sizes))
    for (stream, answer), _ in asked:
        assert bytes(answer.body) == replies[stream.id]
        assert answer.ended
        assert len(answer.blocks) == 2
    for side in (pair.client, pair.server):
        assert side.streams == {}
        assert side.waiting == {}
        assert side.recv_window + side.unacked == side.bounds.connection_window
    assert pair.client.send_window == pair.server.recv_window
    assert pair.server.send_window == pair.client.recv_window


def test_who_does_not_consume_stops_the_sender_and_nobody_else() -> None:
    pair = Pair(lazy=True)
    stream, _ = pair.call(bytes(300_000))
    pair.move()
    heard = pair.accepted[stream.id]
    assert len(heard.body) == 65_535
    assert stream.pending_bytes == 300_000 - 65_535
    other, _ = pair.call(b"small")
    pair.move()
    assert bytes(pair.accepted[other.id].body) == b"small"
    while not heard.ended:
        heard.consume(pair.streams[stream.id])
        pair.move()
    assert len(heard.body) == 300_000


def test_windows_grow_while_the_reader_keeps_up() -> None:
    pair = Pair(Bounds(max_stream_window=1 << 20))
    stream, _ = pair.call(bytes(2_000_000))
    pair.move()
    assert pair.streams[stream.id].window == 1 << 20


def test_a_reset_gives_back_what_was_not_consumed() -> None:
    pair = Pair(lazy=True)
    stream, _ = pair.call(bytes(300_000))
    pair.move()
    pair.client.reset(stream, f.ErrorCode.CANCEL)
    pair.move()
    assert pair.accepted[stream.id].code == f.ErrorCode.CANCEL
    assert pair.server.recv_window + pair.server.unacked == pair.server.bounds.connection_window
    assert pair.client.waiting == {}


def test_a_drained_connection_answers_what_was_asked_and_takes_no_more() -> None:
    pair = Pair()
    stream, answer = pair.call(b"one")
    pair.move()
    pair.server.drain()
    pair.move()
    assert pair.client.going_away
    assert not pair.client.has_room
    assert pair.server.ended
    pair.server.answer(pair.streams[stream.id], ANSWER, b"1", OK_TRAILERS)
    pair.move()
    assert bytes(answer.body) == b"1"


def test_calls_beyond_the_peer_s_last_are_known_to_be_unsent() -> None:
    pair = Pair()
    pair.move()
    stream, answer = pair.call(b"late")
    pair.client.receive(f.goaway(0, f.ErrorCode.NO_ERROR), 0.0)
    assert answer.code == f.ErrorCode.REFUSED_STREAM
    assert stream.id not in pair.client.streams


def test_a_lost_connection_ends_every_call() -> None:
    pair = Pair()
    _, first = pair.call(b"one")
    _, second = pair.call(b"two")
    pair.client.lost(f.ConnectionFault(f.ErrorCode.NO_ERROR, "gone"))
    assert (first.code, second.code) == (LOST, LOST)


FAULTS = {
    "HEADERS on stream 0": (f.frame(f.HEADERS, f.END_HEADERS, 0, REQUEST), f.ErrorCode.PROTOCOL_ERROR),
    "DATA on an idle stream": (f.frame(f.DATA, 0, 5, b"x"), f.ErrorCode.PROTOCOL_ERROR),
    "a stream with an even number": (f.frame(f.HEADERS, f.END_HEADERS, 2, REQUEST), f.ErrorCode.PROTOCOL_ERROR),
    "a frame that is too large": (f.frame(f.DATA, 0, 1, bytes(16_385)), f.ErrorCode.FRAME_SIZE_ERROR),
    "CONTINUATION alone": (f.frame(f.CONTINUATION, f.END_HEADERS, 1, b""), f.ErrorCode.PROTOCOL_ERROR),
    "PUSH_PROMISE": (f.frame(f.PUSH_PROMISE, f.END_HEADERS, 1, bytes(8)), f.ErrorCode.PROTOCOL_ERROR),
    "a short PING": (f.frame(f.PING, 0, 0, b"1234"), f.ErrorCode.FRAME_SIZE_ERROR),
    "SETTINGS of 5 bytes": (f.frame(f.SETTINGS, 0, 0, b"12345"), f.ErrorCode.FRAME_SIZE_ERROR),
    "a window of 2^31": (f.window_update(0, f.MAX_WINDOW), f.ErrorCode.FLOW_CONTROL_ERROR),
    "bad HPACK": (f.frame(f.HEADERS, f.END_HEADERS, 1, b"\x80"), f.ErrorCode.COMPRESSION_ERROR),
    "more padding than payload": (
        f.frame(f.HEADERS, f.END_HEADERS | f.PADDED, 1, b"\x09x"),
        f.ErrorCode.PROTOCOL_ERROR,
    ),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_ends_the_connection_with_its_code(what: str) -> None:
    data, code = FAULTS[what]
    server = Connection(Bounds(), accept=Pair()._accept)
    server.receive(f.PREFACE + f.settings({}) + data, 0.0)
    assert server.broken is not None
    assert server.broken.code is code
    assert b"".join(server.out).endswith(f.goaway(server.last_peer_id, code, server.broken.why.encode()))


def test_padding_and_priority_are_taken_off() -> None:
    pair = Pair()
    pair.move()
    block = b"\x03" + b"\0\0\0\0\x10" + REQUEST + bytes(3)
    pair.server.receive(
        f.frame(f.HEADERS, f.END_HEADERS | f.PADDED | f.HAS_PRIORITY, 1, block)
        + f.frame(f.DATA, f.PADDED | f.END_STREAM, 1, b"\x02hi\0\0"),
        0.0,
    )
    assert bytes(pair.accepted[1].body) == b"hi"
    assert pair.accepted[1].ended


def test_trailers_without_an_end_and_pseudo_headers_in_them_reset_the_stream() -> None:
    for trailers in (f.frame(f.HEADERS, f.END_HEADERS, 1, REQUEST), f.frame(f.HEADERS, 5, 1, REQUEST)):
        pair = Pair()
        pair.move()
        pair.server.receive(f.headers(REQUEST, 1, end=False, max_frame=16_384) + trailers, 0.0)
        assert pair.accepted[1].code == f.ErrorCode.PROTOCOL_ERROR
        assert pair.server.broken is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=80), max_size=6), st.booleans())
def test_any_bytes_end_in_a_fault_or_in_silence(parts: list[bytes], after_hello: bool) -> None:
    for side in (Connection(Bounds(), accept=Pair()._accept), Connection(Bounds())):
        if after_hello:
            side.receive((b"" if side.is_client else f.PREFACE) + f.settings({}), 0.0)
        for part in parts:
            side.receive(part, 0.0)
        assert len(side.streams) <= side.bounds.max_streams


def test_two_content_lengths_that_differ_are_malformed() -> None:
    pair = Pair()
    block = REQUEST + encode(b"content-length", b"1") + encode(b"content-length", b"2")
    stream = pair.client.open(block, Recorder(pair.client))
    pair.move()
    assert request_head(pair.accepted[stream.id].blocks[0]).malformed == "two content-lengths that differ"
