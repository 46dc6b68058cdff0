from __future__ import annotations

from collections.abc import Callable

import pytest
from hpack import Encoder

from mesh.wire.connection import OVERSIZED, Connection
from mesh.wire.flow import NUISANCE_BURST, NUISANCE_PER_S, Bounds
from mesh.wire.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEADERS,
    MAX_STREAM_ID,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    ErrorCode,
    frame,
    goaway,
    headers,
    ping,
    rst_stream,
    settings,
    u32,
    window_update,
)
from mesh.wire.header_cache import MAX_BLOCK, encode
from mesh.wire.streams import Stream
from tests.wire.pair import HEADERS_BLOCK, REQUEST, TRAILERS, Frame, Recorder, Served, client, greeted, told

BURST = int(NUISANCE_BURST)


def opened(number: int, *, end: bool = False) -> bytes:
    return headers(REQUEST, number, end=end, max_frame=16_384)


def code_of(connection: Connection) -> ErrorCode | None:
    return connection.broken.code if connection.broken is not None else None


def resets(frames: list[Frame]) -> list[tuple[int, int]]:
    return [(number, u32(payload)) for kind, _, number, payload in frames if kind == RST_STREAM]


# -- what comes first ----------------------------------------------------------------------------------------------


def test_the_preface_may_come_byte_by_byte() -> None:
    served = Served()
    for byte in PREFACE + settings({}):
        served.hear(bytes((byte,)))
    assert (served.connection.greeted, served.connection.broken) == (True, None)


def test_another_protocol_is_turned_away_at_its_first_byte() -> None:
    served = Served()
    answers = served.hear(b"G")
    assert code_of(served.connection) is ErrorCode.PROTOCOL_ERROR
    assert answers[-1].kind == GOAWAY
    assert served.hear(b"ET / HTTP/1.1\r\n\r\n") == []


def test_a_first_frame_that_is_not_settings_ends_the_connection() -> None:
    served = Served()
    served.hear(PREFACE, ping(b"12345678", ack=False))
    assert code_of(served.connection) is ErrorCode.PROTOCOL_ERROR


# -- bounds --------------------------------------------------------------------------------------------------------


def test_a_stream_above_the_limit_is_refused_and_its_data_is_dropped_and_given_back() -> None:
    served = greeted(Bounds(max_streams=2))
    assert resets(served.hear(opened(1), opened(3))) == []
    assert resets(served.hear(opened(5), frame(DATA, END_STREAM, 5, b"x" * 100))) == [(5, ErrorCode.REFUSED_STREAM)]
    assert None is code_of(served.connection)
    assert served.connection.bounds.connection_window == served.connection.recv_window
    served.hear(rst_stream(1, ErrorCode.CANCEL))
    assert resets(served.hear(opened(7))) == []
    assert len(served.calls) == 3


FLOODS: dict[str, Callable[[int], bytes]] = {
    "resets": lambda index: opened(2 * index + 1) + rst_stream(2 * index + 1, ErrorCode.CANCEL),
    "pings": lambda _: ping(b"12345678", ack=False),
    "settings": lambda _: settings({}),
    "priorities": lambda index: frame(PRIORITY, 0, 2 * index + 1, b"\0\0\0\0\1"),
    "unknown frames": lambda _: frame(0xFA, 0, 0, b"x"),
    "empty data": lambda index: (opened(1) if not index else b"") + frame(DATA, 0, 1),
    "empty continuations": lambda index: frame(CONTINUATION if index else HEADERS, 0, 1),
    "refused streams": lambda index: opened(2 * index + 1),
    "faults": lambda index: opened(2 * index + 1) + window_update(2 * index + 1, 0),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_borne_for_a_while_and_then_ends_the_connection(name: str) -> None:
    served = greeted(Bounds(max_streams=1))
    flood = FLOODS[name]
    for index in range(BURST - 2):
        served.hear(flood(index))
        assert served.connection.broken is None
    for index in range(BURST - 2, BURST + 3):
        served.hear(flood(index))
    assert code_of(served.connection) is ErrorCode.ENHANCE_YOUR_CALM
    assert served.connection.streams == {}
    assert served.hear(flood(0)) == []


def test_what_floods_at_once_may_come_for_ever_when_it_comes_slowly() -> None:
    served = greeted()
    for index in range(2 * BURST):
        served.hear(ping(b"12345678", ack=False), now_s=1 + index / NUISANCE_PER_S)
    assert served.connection.broken is None


def test_pings_among_data_are_no_flood() -> None:
    served = greeted()
    served.hear(opened(1))
    for _ in range(2 * BURST):
        served.hear(frame(DATA, 0, 1, b"x" * 1024), ping(b"12345678", ack=False))
    assert served.connection.broken is None


def test_pings_of_a_caller_that_is_sent_data_are_no_flood() -> None:
    """grpc-go's clients measure the path with one ping a round trip while answers come, however small these are."""
    served = greeted()
    served.hear(opened(1))
    stream = next(iter(served.connection.streams.values()))
    for _ in range(3 * BURST):
        served.connection.send_data(stream, b"x")
        served.hear(window_update(0, 1), window_update(1, 1), ping(b"12345678", ack=False))
    assert served.connection.broken is None


def test_who_is_answered_may_give_up_as_often() -> None:
    served = greeted()
    for index in range(3 * BURST):
        served.hear(opened(4 * index + 1, end=True))
        served.connection.send_headers(next(iter(served.connection.streams.values())), TRAILERS, end=True)
        served.hear(opened(4 * index + 3), rst_stream(4 * index + 3, ErrorCode.CANCEL))
    assert served.connection.broken is None


def test_headers_that_never_end_are_cut_off_before_they_fill_memory() -> None:
    served = greeted()
    served.hear(frame(HEADERS, 0, 1, b"x" * 16_384))
    sent = 0
    while served.connection.broken is None:
        served.hear(frame(CONTINUATION, 0, 1, b"x" * 16_384))
        sent += 16_384
    assert code_of(served.connection) is ErrorCode.ENHANCE_YOUR_CALM
    assert sent <= MAX_BLOCK


LONG = encode(b"x", b"v" * 100_000)


@pytest.mark.parametrize("table", [b"", b"\x20"])
def test_headers_far_above_the_limit_are_their_streams_and_the_next_are_read_with_the_table_they_left(
    table: bytes,
) -> None:
    served = greeted()
    encoder = Encoder()
    if table:
        encoder.header_table_size = 0
    pairs = [(b":method", b"POST"), (b"x-mine", b"1"), (b"x", b"v" * 140_000), (b"x-late", b"2")]
    served.hear(headers(encoder.encode(pairs, huffman=False), 1, end=True, max_frame=16_384))
    served.hear(headers(encoder.encode([*pairs[:2], pairs[3]], huffman=False), 3, end=True, max_frame=16_384))
    assert served.connection.broken is None
    assert [call.blocks for call in served.calls] == [[()], [(*pairs[:2], pairs[3])]]


def test_an_answer_with_too_long_trailers_is_given_up_alone() -> None:
    connection = client()
    receivers = [Recorder(connection) for _ in range(2)]
    for receiver in receivers:
        connection.call(REQUEST, receiver, b"x")
    for _ in range(2 * BURST):
        late = Recorder(connection)
        number = connection.call(REQUEST, late, b"x").id
        connection.receive(headers(HEADERS_BLOCK, number, end=False, max_frame=16_384), 1.0)
        connection.receive(headers(TRAILERS + LONG, number, end=True, max_frame=16_384), 1.0)
        assert late.codes == [OVERSIZED]
    assert connection.broken is None
    connection.receive(headers(HEADERS_BLOCK + TRAILERS, 1, end=True, max_frame=16_384), 1.0)
    assert (receivers[0].ended, receivers[0].codes) == (True, [])
    assert list(connection.streams) == [3]


def test_trailers_of_a_client_that_are_too_long_reset_its_stream_and_a_flood_of_them_ends_the_connection() -> None:
    served = greeted()
    for index in range(BURST + 1):
        assert served.connection.broken is None
        number = 2 * index + 1
        served.hear(opened(number), headers(LONG, number, end=True, max_frame=16_384))
        assert served.calls[index].codes == [OVERSIZED]
    assert code_of(served.connection) is ErrorCode.ENHANCE_YOUR_CALM


def test_a_goaway_shows_the_peer_nothing_of_our_memory() -> None:
    served = greeted()
    last = served.hear(frame(HEADERS, END_HEADERS, 1, b"\xff" * 21))[-1]
    assert (last.kind, u32(last.payload, 4)) == (GOAWAY, ErrorCode.COMPRESSION_ERROR)
    assert b"0x" not in last.payload


def test_a_frame_above_our_limit_ends_the_connection_at_its_head() -> None:
    served = greeted()
    served.hear(frame(DATA, 0, 1, b"x" * 16_385)[:9])
    assert code_of(served.connection) is ErrorCode.FRAME_SIZE_ERROR


def test_what_waits_for_a_whole_frame_is_at_most_one_frame() -> None:
    served = greeted()
    whole = frame(HEADERS, END_HEADERS, 1, b"x" * 16_384)
    for start in range(0, len(whole) - 1, 1000):
        served.hear(whole[start : start + 1000][: len(whole) - 1 - start])
        assert len(served.connection._tail) <= 9 + 16_384


class Broken(Recorder):
    """A receiver with a bug."""

    def data(self, stream: Stream, data: bytes, end: bool) -> None:
        """Fail, unless it ends here."""
        if not end:
            raise KeyError("a bug")
        super().data(stream, data, end)


@pytest.mark.parametrize("cut", [1, 5000, 100_000])
def test_a_bug_in_what_takes_one_call_costs_that_call_alone(cut: int) -> None:
    served, bugs = greeted(), list[Exception]()
    served.connection.on_bug = bugs.append
    served.hear(opened(1), opened(3))
    stream = served.connection.streams[1]
    stream.receiver = broken = Broken(served.connection)
    data = frame(DATA, 0, 1, b"x" * 10_000) + frame(DATA, END_STREAM, 3, b"y")
    frames = [each for at in range(0, len(data), cut) for each in served.hear(data[at : at + cut])]
    assert resets(frames) == [(1, ErrorCode.INTERNAL_ERROR)]
    assert [type(bug) for bug in bugs] == [KeyError]
    assert broken.codes == [ErrorCode.INTERNAL_ERROR]
    assert (served.calls[1].whole, served.calls[1].ended) == (b"y", True)
    connection = served.connection
    assert connection.broken is None
    assert connection.bounds.connection_window == connection.recv_window + connection.unacked


# -- ends ----------------------------------------------------------------------------------------------------------


def test_a_drain_says_goaway_twice_and_answers_what_was_opened_before_the_second() -> None:
    served = greeted()
    served.hear(opened(1))
    served.connection.drain()
    served.connection.drain()
    first, asking = told(served.connection)
    assert (first.kind, u32(first.payload)) == (GOAWAY, MAX_STREAM_ID)
    assert asking.kind == PING
    served.hear(opened(3))
    second = served.hear(ping(asking.payload, ack=True))
    assert [(kind, u32(payload), u32(payload, 4)) for kind, _, _, payload in second] == [(GOAWAY, 3, 0)]
    assert served.hear(opened(5), frame(DATA, END_STREAM, 5, b"x"), window_update(5, 1))[1:] == []
    assert len(served.calls) == 2
    for call in served.calls:
        assert call.stream is not None
        served.connection.answer(call.stream, HEADERS_BLOCK, b"x", TRAILERS)
    assert served.connection.broken is None


def test_a_goaway_refuses_what_the_server_did_not_take_and_leaves_the_rest() -> None:
    connection = client()
    receivers = [Recorder(connection) for _ in range(3)]
    for receiver in receivers:
        connection.call(REQUEST, receiver, b"x")
    connection.receive(goaway(3, ErrorCode.NO_ERROR), 1.0)
    assert [receiver.codes for receiver in receivers] == [[], [], [ErrorCode.REFUSED_STREAM]]
    assert not connection.has_room
    connection.receive(headers(HEADERS_BLOCK, 3, end=False, max_frame=16_384), 1.0)
    assert len(receivers[1].blocks) == 1
    connection.receive(goaway(1, ErrorCode.NO_ERROR), 1.0)
    assert receivers[1].codes == [ErrorCode.REFUSED_STREAM]
    assert list(connection.streams) == [1]


def test_a_broken_connection_tells_every_call_and_forgets_them() -> None:
    connection = client()
    receivers = [Recorder(connection) for _ in range(3)]
    for receiver in receivers:
        connection.call(REQUEST, receiver, b"x" * 70_000)
    connection.receive(frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2" + REQUEST), 1.0)
    assert code_of(connection) is ErrorCode.PROTOCOL_ERROR
    assert [receiver.codes for receiver in receivers] == [[-1]] * 3
    assert (connection.streams, connection.waiting) == ({}, {})


# -- frames where they may not be ----------------------------------------------------------------------------------


BREAKS = {
    "data on an idle stream": (frame(DATA, 0, 5, b"x"), ErrorCode.PROTOCOL_ERROR),
    "data on stream 0": (frame(DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "headers on stream 0": (opened(0), ErrorCode.PROTOCOL_ERROR),
    "headers on an even stream": (opened(2), ErrorCode.PROTOCOL_ERROR),
    "a reset of a stream of ours": (rst_stream(2, 0), ErrorCode.PROTOCOL_ERROR),
    "a reset of a stream far ahead": (rst_stream(2 * Bounds().max_streams + 1, 0), ErrorCode.PROTOCOL_ERROR),
    "a window of an idle stream": (window_update(5, 1), ErrorCode.PROTOCOL_ERROR),
    "a window of 0": (window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
    "a window too large": (window_update(0, MAX_STREAM_ID), ErrorCode.FLOW_CONTROL_ERROR),
    "settings on a stream": (frame(SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
    "settings of 5 bytes": (frame(SETTINGS, 0, 0, b"12345"), ErrorCode.FRAME_SIZE_ERROR),
    "a full acknowledgement": (frame(SETTINGS, ACK, 0, b"123456"), ErrorCode.FRAME_SIZE_ERROR),
    "a frame size too small": (settings({5: 16_383}), ErrorCode.PROTOCOL_ERROR),
    "a window setting too large": (settings({4: 1 << 31}), ErrorCode.FLOW_CONTROL_ERROR),
    "push of 2": (settings({2: 2}), ErrorCode.PROTOCOL_ERROR),
    "a ping of 7 bytes": (frame(PING, 0, 0, b"1234567"), ErrorCode.FRAME_SIZE_ERROR),
    "a ping on a stream": (frame(PING, 0, 1, b"12345678"), ErrorCode.PROTOCOL_ERROR),
    "a goaway on a stream": (frame(GOAWAY, 0, 1, b"12345678"), ErrorCode.PROTOCOL_ERROR),
    "a goaway of 7 bytes": (frame(GOAWAY, 0, 0, b"1234567"), ErrorCode.FRAME_SIZE_ERROR),
    "a continuation alone": (frame(CONTINUATION, END_HEADERS, 1), ErrorCode.PROTOCOL_ERROR),
    "a ping within headers": (frame(HEADERS, 0, 1) + ping(b"12345678", ack=False), ErrorCode.PROTOCOL_ERROR),
    "push promises": (frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2"), ErrorCode.PROTOCOL_ERROR),
    "priority on stream 0": (frame(PRIORITY, 0, 0, b"\0\0\0\0\1"), ErrorCode.PROTOCOL_ERROR),
    "no length of padding": (opened(1) + frame(DATA, PADDED, 1), ErrorCode.FRAME_SIZE_ERROR),
    "too much padding": (opened(1) + frame(DATA, PADDED, 1, b"\x05\0\0\0\0"), ErrorCode.PROTOCOL_ERROR),
    "padded headers": (frame(HEADERS, PADDED | END_HEADERS, 1, b"\x01"), ErrorCode.PROTOCOL_ERROR),
    "headers without priority": (frame(HEADERS, HAS_PRIORITY | END_HEADERS, 1, b"\0"), ErrorCode.FRAME_SIZE_ERROR),
    "a stream left out": (opened(5) + frame(DATA, 0, 3, b"x"), ErrorCode.PROTOCOL_ERROR),
    "a stream opened late": (opened(5) + opened(3), ErrorCode.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_breaks_the_protocol_ends_the_connection_with_its_code(name: str) -> None:
    data, code = BREAKS[name]
    served = greeted()
    last = served.hear(data)[-1]
    assert code == code_of(served.connection)
    assert (GOAWAY, code) == (last.kind, u32(last.payload, 4))


STREAM_BREAKS = {
    "trailers that do not end": (opened(1), ErrorCode.PROTOCOL_ERROR),
    "pseudo-headers in trailers": (opened(1, end=True), ErrorCode.PROTOCOL_ERROR),
    "a window of 0": (window_update(1, 0), ErrorCode.PROTOCOL_ERROR),
    "a window too large": (window_update(1, MAX_STREAM_ID), ErrorCode.FLOW_CONTROL_ERROR),
    "more than the window": (frame(DATA, 0, 1, b"x" * 16_384) * 5, ErrorCode.FLOW_CONTROL_ERROR),
    "data after the end": (frame(DATA, END_STREAM, 1) + frame(DATA, 0, 1, b"x"), ErrorCode.STREAM_CLOSED),
    "headers after the end": (frame(DATA, END_STREAM, 1) + opened(1), ErrorCode.STREAM_CLOSED),
    "priority of 4 bytes": (frame(PRIORITY, 0, 1, b"\0\0\0\0"), ErrorCode.FRAME_SIZE_ERROR),
    "priority on itself": (frame(PRIORITY, 0, 1, b"\0\0\0\1\1"), ErrorCode.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("name", STREAM_BREAKS)
def test_what_breaks_a_stream_resets_it_and_leaves_the_others(name: str) -> None:
    data, code = STREAM_BREAKS[name]
    served = greeted(late=True)
    served.hear(opened(1), opened(3))
    assert [(1, code)] == resets(served.hear(data))
    assert [[code], []] == [call.codes for call in served.calls]
    assert list(served.connection.streams) == [3]
    assert served.connection.bounds.connection_window == served.connection.recv_window
    served.hear(frame(DATA, 0, 1, b"late"), window_update(1, 5), frame(DATA, 0, 3, b"x"))
    assert served.calls[1].whole == b"x"


def test_calls_that_a_client_gives_up_cost_its_server_nothing() -> None:
    asking = client()
    asking.receive(settings({}), 1.0)
    for _ in range(3 * BURST):
        asking.reset(asking.open(REQUEST, Recorder(asking)), ErrorCode.CANCEL)
    for index in range(BURST):
        asking.receive(settings({}), 1.0 + index / NUISANCE_PER_S)
    for index in range(BURST // 2):
        asking.reset(asking.open(REQUEST, Recorder(asking)), ErrorCode.CANCEL)
        asking.receive(settings({}), 1.0 + (BURST + index) / NUISANCE_PER_S)
    for _ in range(BURST - 10):
        asking.receive(settings({}), 1.0 + 1.5 * BURST / NUISANCE_PER_S)
    assert asking.broken is None
