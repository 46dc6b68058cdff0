from __future__ import annotations

import pytest

from mesh.wire.connection import Connection
from mesh.wire.flow import Bounds
from mesh.wire.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HAS_PRIORITY,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    ErrorCode,
    frame,
    headers,
    ping,
    settings,
    u32,
    window_update,
)
from mesh.wire.header_cache import encode
from tests.wire.pair import HEADERS_BLOCK, REQUEST, TRAILERS, Recorder, Served, client, greeted, told

OPENED = headers(REQUEST, 1, end=False, max_frame=16_384)


def test_an_empty_end_is_sent_although_the_peer_made_its_windows_smaller_than_what_was_sent() -> None:
    connection = client()
    receiver = Recorder(connection)
    stream = connection.open(REQUEST, receiver)
    connection.send_data(stream, b"x" * 100)
    connection.receive(settings({INITIAL_WINDOW_SIZE: 10}), 1.0)
    told(connection)
    assert stream.send_window == -90
    assert connection.send_data(stream, b"", end=True)
    assert told(connection) == [(DATA, END_STREAM, 1, b"")]
    assert (stream.send_window, stream.pending_bytes) == (-90, 0)


def test_an_empty_answer_is_sent_although_the_callers_window_is_below_zero() -> None:
    served = greeted()
    served.hear(OPENED)
    stream = served.calls[0].stream
    assert stream is not None
    served.connection.send_data(stream, b"x" * 100)
    served.hear(settings({INITIAL_WINDOW_SIZE: 10}))
    assert stream.send_window == -90
    served.connection.answer(stream, HEADERS_BLOCK, b"", TRAILERS)
    assert [(kind, flags) for kind, flags, *_ in told(served.connection)] == [
        (HEADERS, END_HEADERS),
        (HEADERS, END_HEADERS | END_STREAM),
    ]


def test_the_rest_of_a_data_frame_beyond_the_streams_window_is_not_read_as_frames() -> None:
    served = greeted(Bounds(stream_window=100, max_stream_window=100), late=True)
    hidden = ping(b"smuggled", ack=False)
    large = frame(DATA, 0, 1, b"x" * 150 + hidden)
    answers = served.hear(OPENED, large[: 9 + 150])
    assert [(kind, u32(payload)) for kind, _, number, payload in answers if kind == RST_STREAM] == [
        (RST_STREAM, ErrorCode.FLOW_CONTROL_ERROR)
    ]
    assert [each for each in served.hear(large[9 + 150 :]) if each.kind == PING] == []
    assert served.connection.broken is None
    assert served.hear(ping(b"not that", ack=False)) == [(PING, 1, 0, b"not that")]


def test_trailers_that_waited_begin_with_the_size_update_that_new_settings_ask_for() -> None:
    served = Served()
    served.hear(PREFACE, settings({INITIAL_WINDOW_SIZE: 10}), OPENED)
    stream = served.calls[0].stream
    assert stream is not None
    served.connection.answer(stream, HEADERS_BLOCK, b"x" * 20, TRAILERS)
    assert told(served.connection)[0].payload[:1] == b"\x20"
    served.hear(settings({HEADER_TABLE_SIZE: 0}))
    last = served.hear(window_update(1, 10))[-1]
    assert (last.kind, last.payload) == (HEADERS, b"\x20" + TRAILERS)


def test_padding_gives_no_window_to_the_frame_that_it_came_with() -> None:
    served = greeted(Bounds(stream_window=100, max_stream_window=100), late=True)
    answers = served.hear(OPENED, frame(DATA, 0x8, 1, b"\x63" + b"x" * 10 + b"\0" * 99))
    assert [each.kind for each in answers if each.kind != SETTINGS][-1:] == [RST_STREAM]


def test_padding_and_priority_are_taken_off_headers_and_data() -> None:
    served = greeted(late=True)
    served.hear(
        frame(HEADERS, PADDED | HAS_PRIORITY | END_HEADERS, 1, b"\x03" + b"\0\0\0\0\x10" + REQUEST + b"\0\0\0"),
        frame(PRIORITY, 0, 1, b"\0\0\0\3\1"),
        frame(PRIORITY, 0, 99, b"\0\0\0\3\1"),
        frame(DATA, PADDED, 1, b"\x02ab\0\0"),
        frame(DATA, PADDED | END_STREAM, 1, b"\0c"),
    )
    (call,) = served.calls
    assert (call.whole, call.ended) == (b"abc", True)
    assert served.connection.broken is None


@pytest.mark.parametrize("parts", [[b"ab"], [b"abcd"], [b"ab", b"cd"]])
def test_a_body_unlike_its_content_length_resets_the_stream(parts: list[bytes]) -> None:
    served = greeted()
    served.hear(OPENED)
    stream = served.calls[0].stream
    assert stream is not None
    stream.body_left = 3
    frames = b"".join(frame(DATA, END_STREAM if part is parts[-1] else 0, 1, part) for part in parts)
    assert [u32(each.payload) for each in served.hear(frames) if each.kind == RST_STREAM] == [ErrorCode.PROTOCOL_ERROR]
    assert not served.calls[0].ended


def test_trailers_before_the_whole_content_length_reset_the_stream() -> None:
    served = greeted()
    served.hear(OPENED)
    stream = served.calls[0].stream
    assert stream is not None
    stream.body_left = 3
    served.hear(headers(b"", 1, end=True, max_frame=16_384))
    assert served.calls[0].codes == [ErrorCode.PROTOCOL_ERROR]


def test_data_that_waits_goes_as_far_as_new_settings_let_it() -> None:
    connection = client(peer={INITIAL_WINDOW_SIZE: 10})
    receiver = Recorder(connection)
    stream = connection.open(REQUEST, receiver)
    assert not connection.send_data(stream, b"x" * 100)
    assert sizes(connection) == [10]
    connection.receive(settings({INITIAL_WINDOW_SIZE: 5}), 1.0)
    connection.receive(window_update(1, 5), 1.0)
    assert (sizes(connection), stream.send_window) == ([], 0)
    connection.receive(settings({INITIAL_WINDOW_SIZE: 25}), 1.0)
    assert sizes(connection) == [20]
    connection.receive(window_update(1, 70), 1.0)
    assert sizes(connection) == [70]
    assert (receiver.drains, connection.waiting_bytes, connection.waiting) == (1, 0, {})


def test_tiny_pieces_that_wait_are_put_together_and_arrive_in_order() -> None:
    connection = client(peer={INITIAL_WINDOW_SIZE: 3})
    stream = connection.open(REQUEST, Recorder(connection))
    body = bytes(range(250)) * 40
    for byte in body:
        connection.send_data(stream, bytes((byte,)))
    assert stream.pending is not None
    assert len(stream.pending) <= 2 + len(body) // 500
    sent = [each.payload for each in told(connection) if each.kind == DATA]
    connection.send_data(stream, b"x" * 5000, end=True)
    connection.receive(window_update(1, 50_000), 1.0)
    last = told(connection)
    assert body + b"x" * 5000 == b"".join([*sent, *[each.payload for each in last]])
    assert last[-1].flags == END_STREAM


def test_data_waits_while_the_socket_takes_no_more() -> None:
    connection = client()
    stream = connection.open(REQUEST, Recorder(connection))
    connection.make_room(0)
    assert not connection.send_data(stream, b"x" * 100, end=True)
    assert [each.kind for each in told(connection)] == [HEADERS]
    assert sizes(connection) == [100]


def sizes(connection: Connection) -> list[int]:
    return [len(each.payload) for each in told(connection) if each.kind == DATA]


def test_an_interim_response_is_not_heard_of() -> None:
    connection = client()
    receiver = Recorder(connection)
    connection.call(REQUEST, receiver, b"x")
    interim = encode(b":status", b"103") + encode(b"link", b"x")
    connection.receive(headers(interim, 1, end=False, max_frame=16_384), 1.0)
    connection.receive(headers(HEADERS_BLOCK, 1, end=False, max_frame=16_384), 1.0)
    connection.receive(headers(TRAILERS, 1, end=True, max_frame=16_384), 1.0)
    assert [block[0][1] for block in receiver.blocks] == [b"200", b"0"]
    assert receiver.ended


def test_what_comes_late_for_a_call_that_was_given_up_is_dropped() -> None:
    connection = client()
    receiver = Recorder(connection)
    stream = connection.call(REQUEST, receiver, b"x")
    connection.reset(stream, ErrorCode.CANCEL)
    connection.reset(stream, ErrorCode.CANCEL)
    late = headers(HEADERS_BLOCK, 1, end=False, max_frame=16_384) + frame(DATA, 0, 1, b"x" * 10)
    connection.receive(late + headers(TRAILERS, 1, end=True, max_frame=16_384), 1.0)
    assert (connection.broken, receiver.blocks, receiver.codes) == (None, [], [])
    assert connection.bounds.connection_window == connection.recv_window


def test_frames_on_a_call_that_ended_end_the_connection() -> None:
    connection = client()
    connection.call(REQUEST, Recorder(connection), b"x")
    connection.receive(headers(TRAILERS, 1, end=True, max_frame=16_384), 1.0)
    connection.receive(window_update(1, 1), 1.0)
    assert connection.broken is None
    connection.receive(frame(DATA, 0, 1, b"x"), 1.0)
    assert connection.broken is not None
    assert connection.broken.code == ErrorCode.STREAM_CLOSED


def test_data_before_headers_resets_the_call() -> None:
    connection = client()
    receiver = Recorder(connection)
    connection.call(REQUEST, receiver, b"x")
    connection.receive(frame(DATA, 0, 1, b"x"), 1.0)
    assert (receiver.codes, connection.broken) == ([ErrorCode.PROTOCOL_ERROR], None)


def test_a_servers_limit_of_streams_is_kept_and_none_means_none() -> None:
    connection = Connection(Bounds())
    assert connection.has_room
    connection.receive(settings({MAX_CONCURRENT_STREAMS: 1}), 1.0)
    connection.open(REQUEST, Recorder(connection))
    assert not connection.has_room
    assert client().peer_max_streams > 1 << 30


def test_an_alive_ping_is_counted_until_it_is_answered() -> None:
    connection = client()
    connection.ask_alive()
    (asked,) = told(connection)
    assert connection.pings_unanswered == 1
    connection.receive(ping(asked.payload, ack=True), 1.0)
    assert connection.pings_unanswered == 0
