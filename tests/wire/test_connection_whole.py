"""Two connections back to back: whatever is said on one side arrives on the other, in order and whole."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.wire.connection import Connection
from mesh.wire.flow import Bounds
from mesh.wire.frames import INITIAL_WINDOW_SIZE
from mesh.wire.frames import settings as settings_frame
from mesh.wire.streams import Stream
from tests.wire.pair import (
    HEADERS_BLOCK,
    REQUEST,
    TRAILERS,
    Recorder,
    Served,
    check_windows,
    exchange,
    frames_of,
    said,
)

SMALL = Bounds(stream_window=7, max_stream_window=20, connection_window=65_536)
SIZES = st.sampled_from([0, 1, 6, 7, 8, 100, 16_384, 16_385, 70_000])


def pattern(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


@settings(deadline=None, max_examples=40)
@given(
    bodies=st.lists(st.tuples(SIZES, SIZES, st.booleans()), min_size=1, max_size=6),
    small=st.tuples(st.booleans(), st.booleans()),
    step=st.sampled_from([0, 0, 1, 7, 1000]),
)
def test_calls_of_any_size_arrive_whole_however_their_bytes_are_cut(
    bodies: list[tuple[int, int, bool]], small: tuple[bool, bool], step: int
) -> None:
    if step and sum(size + back for size, back, _ in bodies) > 20_000 // 7 * step:
        step = 1000

    def cut(data: bytes) -> list[bytes]:
        return [data[at : at + step] for at in range(0, len(data), step)] if step else [data]

    served = Served(SMALL if small[0] else Bounds())
    asking = Connection(SMALL if small[1] else Bounds())
    asking.greet()
    exchange(asking, served.connection, cut)
    receivers = []
    for number, (size, _, at_once) in enumerate(bodies):
        receivers.append(Recorder(asking))
        if at_once:
            asking.call(REQUEST, receivers[-1], pattern(size, number))
        else:
            stream = asking.open(REQUEST, receivers[-1])
            asking.send_data(stream, pattern(size, number)[: size // 2])
            asking.send_data(stream, pattern(size, number)[size // 2 :], end=True)
    exchange(asking, served.connection, cut)
    assert [pattern(size, number) for number, (size, *_) in enumerate(bodies)] == [call.whole for call in served.calls]
    assert all(call.ended for call in served.calls)
    for number, ((_, size, _), call) in enumerate(zip(bodies, served.calls, strict=True)):
        assert call.stream is not None
        served.connection.answer(call.stream, HEADERS_BLOCK, pattern(size, -number), TRAILERS)
    exchange(asking, served.connection, cut)
    assert [pattern(size, -number) for number, (_, size, _) in enumerate(bodies)] == [each.whole for each in receivers]
    assert all(each.ended and len(each.blocks) == 2 and not each.codes for each in receivers)
    check_empty(asking, served.connection)


def check_empty(asking: Connection, answering: Connection) -> None:
    """Assert that nothing is left of any call, and that both sides count the same windows."""
    for one, other in ((asking, answering), (answering, asking)):
        assert one.broken is None
        assert (one.streams, one.waiting) == ({}, {})
        assert one.bounds.connection_window == one.recv_window + one.unacked
        assert one.send_window == other.recv_window


class Talk(RuleBasedStateMachine):
    """Both sides talk on many streams; bytes move when the machine says, in pieces; readers read late."""

    def __init__(self) -> None:
        super().__init__()
        self.served = Served(SMALL, late=True)
        self.asking = Connection(SMALL)
        self.asking.greet()
        exchange(self.asking, self.served.connection)
        self.wires = {self.asking: b"", self.served.connection: b""}
        self.asked: list[Recorder] = []
        self.sent: dict[tuple[bool, int], bytes] = {}
        self.closed: set[tuple[bool, int]] = set()
        self.reset: set[int] = set()

    @rule(size=st.integers(0, 60), end=st.booleans())
    def call(self, size: int, end: bool) -> None:
        receiver = Recorder(self.asking, late=True)
        body = pattern(size, len(self.asked))
        if end:
            receiver.stream = self.asking.call(REQUEST, receiver, body)
            self.closed.add((True, receiver.stream.id))
        else:
            receiver.stream = self.asking.open(REQUEST, receiver)
            self.asking.send_data(receiver.stream, body)
        self.asked.append(receiver)
        self.sent[True, receiver.stream.id] = body

    def _talkers(self) -> list[tuple[bool, Connection, Recorder, Stream]]:
        sides = [(True, self.asking, each) for each in self.asked]
        sides += [(False, self.served.connection, each) for each in self.served.calls]
        return [
            (asks, connection, each, each.stream)
            for asks, connection, each in sides
            if each.stream is not None and each.stream.id not in self.reset
        ]

    @precondition(lambda self: self.asked)
    @rule(pick=st.randoms(use_true_random=False), size=st.integers(0, 60), end=st.booleans())
    def talk(self, pick: random.Random, size: int, end: bool) -> None:
        talkers = [each for each in self._talkers() if (each[0], each[3].id) not in self.closed]
        if not talkers:
            return
        asks, connection, _, stream = pick.choice(talkers)
        if not asks and (asks, stream.id) not in self.sent:
            connection.send_headers(stream, HEADERS_BLOCK)
        body = pattern(size, size)
        self.sent[asks, stream.id] = self.sent.get((asks, stream.id), b"") + body
        if end:
            self.closed.add((asks, stream.id))
        if end and not asks:
            connection.send_data(stream, body)
            connection.send_headers(stream, TRAILERS, end=True)
        else:
            connection.send_data(stream, body, end=end)

    @precondition(lambda self: self.asked)
    @rule(pick=st.randoms(use_true_random=False), size=st.integers(1, 60))
    def read(self, pick: random.Random, size: int) -> None:
        if talkers := self._talkers():
            pick.choice(talkers)[2].consume(size)

    @rule(there=st.booleans(), size=st.integers(1, 300))
    def move(self, there: bool, size: int) -> None:
        source, target = self.asking, self.served.connection
        if not there:
            source, target = target, source
        wire = self.wires[source] + said(source)
        self.wires[source] = wire[size:]
        target.receive(wire[:size], 1.0)

    @rule(there=st.booleans(), window=st.integers(0, SMALL.stream_window))
    def offer(self, there: bool, window: int) -> None:
        """One side offers smaller windows, or again those that it had."""
        source = self.asking if there else self.served.connection
        source.write(settings_frame({INITIAL_WINDOW_SIZE: window}))

    @precondition(lambda self: self.asked)
    @rule(pick=st.randoms(use_true_random=False))
    def cancel(self, pick: random.Random) -> None:
        receiver = pick.choice(self.asked)
        assert receiver.stream is not None
        if receiver.stream.id in self.asking.streams:
            self.asking.reset(receiver.stream, 8)
            self.reset.add(receiver.stream.id)

    @invariant()
    def windows_hold(self) -> None:
        check_windows(self.asking)
        check_windows(self.served.connection)
        assert self.asking.broken is None, self.asking.broken
        assert self.served.connection.broken is None, self.served.connection.broken
        for receiver in self.asked:
            number = receiver.stream.id if receiver.stream is not None else 0
            assert self.sent.get((False, number), b"").startswith(receiver.whole)
        for receiver in self.served.calls:
            number = receiver.stream.id if receiver.stream is not None else 0
            assert self.sent[True, number].startswith(receiver.whole)

    def teardown(self) -> None:
        self.offer(there=True, window=SMALL.stream_window)
        self.offer(there=False, window=SMALL.stream_window)
        for asks, connection, _, stream in self._talkers():
            if (asks, stream.id) not in self.closed and asks:
                connection.send_data(stream, b"", end=True)
                self.closed.add((True, stream.id))
        for _ in range(2):
            self._settle()
            for asks, connection, _, stream in self._talkers():
                if not asks and (asks, stream.id) not in self.closed:
                    if (asks, stream.id) not in self.sent:
                        connection.send_headers(stream, HEADERS_BLOCK)
                    connection.send_headers(stream, TRAILERS, end=True)
                    self.closed.add((asks, stream.id))
        self._settle()
        everybody = [*self.asked, *self.served.calls]
        for receiver in everybody:
            assert receiver.stream is not None
            asks = receiver.connection is self.served.connection
            if receiver.stream.id not in self.reset:
                assert receiver.ended
                assert self.sent.get((asks, receiver.stream.id), b"") == receiver.whole
        check_empty(self.asking, self.served.connection)

    def _settle(self) -> None:
        for _ in range(10_000):
            before = dict(self.wires)
            for source, target in ((self.asking, self.served.connection), (self.served.connection, self.asking)):
                wire = self.wires[source] + said(source)
                self.wires[source] = b""
                target.receive(wire, 1.0)
                before[source] = wire
            owed = [each for each in (*self.asked, *self.served.calls) if each.owed]
            for each in owed:
                each.consume(each.owed)
            if not owed and not any(before.values()):
                return
        raise AssertionError("the two talk for ever")


TestTalk = Talk.TestCase
TestTalk.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_streams_that_wait_for_the_connections_window_have_turns() -> None:
    served = Served(Bounds(stream_window=1 << 20, connection_window=1 << 16), late=True)
    asking = Connection(Bounds())
    asking.greet()
    exchange(asking, served.connection)
    for _ in range(3):
        asking.call(REQUEST, Recorder(asking), b"x" * 200_000)
    exchange(asking, served.connection)
    for _ in range(3 * 4):
        for call in served.calls:
            call.consume(1 << 20)
        exchange(asking, served.connection)
        sizes = [len(call.whole) for call in served.calls]
        assert max(sizes) - min(sizes) <= 2 * 65_536
    assert [len(call.whole) for call in served.calls] == [200_000] * 3


def test_frames_are_at_most_as_large_as_the_peer_takes() -> None:
    served = Served(Bounds(max_frame=20_000, stream_window=1 << 20))
    asking = Connection(Bounds())
    asking.greet()
    exchange(asking, served.connection)
    asking.call(REQUEST + b"".join([b"\x00\x01a\x7f\x81\x7d" + b"v" * 16_128] * 3), Recorder(asking), b"x" * 50_000)
    sizes = [len(frame.payload) for frame in frames_of(said(asking))]
    assert max(sizes) == 20_000
