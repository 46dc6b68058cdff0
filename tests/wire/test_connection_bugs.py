from __future__ import annotations

from mesh.wire.flow import Bounds
from mesh.wire.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PING,
    PREFACE,
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
