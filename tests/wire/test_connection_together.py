"""DATA frames that come together are heard as if each had come alone, only in fewer pieces."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.wire.flow import Bounds
from mesh.wire.frames import DATA, END_STREAM, PADDED, RST_STREAM, frame, headers, rst_stream
from tests.wire.pair import REQUEST, Served, greeted

BOUNDS = Bounds(stream_window=65_535, max_stream_window=65_535, connection_window=100_000)
FLAGS = (0, 0, 0, 0, 0, PADDED, END_STREAM)


@st.composite
def one_frame(draw: st.DrawFn) -> bytes:
    number, flags = draw(st.sampled_from((1, 1, 1, 3, 5))), draw(st.sampled_from(FLAGS))
    size = draw(st.sampled_from((0, 1, 5, 300, 5_000, 16_000)))
    if draw(st.integers(0, 30)) == 0:
        return rst_stream(number, 8)
    payload = bytes([draw(st.integers(0, 255))]) * size
    return frame(DATA, flags, number, (b"\x02" + payload + b"\0\0") if flags == PADDED else payload)


def heard(served: Served) -> list[tuple[bytes, bool, list[int]]]:
    return [(call.whole, call.ended, call.codes) for call in served.calls]


@settings(max_examples=300, deadline=None)
@given(st.lists(one_frame(), max_size=25))
def test_together_as_alone(sent: list[bytes]) -> None:
    together, alone = greeted(BOUNDS, late=True), greeted(BOUNDS, late=True)
    opened = [headers(REQUEST, number, end=False, max_frame=16_384) for number in (1, 3)]
    answers = together.hear(*opened, *sent)
    one_by_one = [answer for part in (*opened, *sent) for answer in alone.hear(part)]
    assert heard(together) == heard(alone)
    resets = [[each for each in said if each.kind == RST_STREAM] for said in (answers, one_by_one)]
    assert resets[0] == resets[1]
    one, other = together.connection, alone.connection
    assert (one.broken is None) == (other.broken is None)
    assert (one.recv_window + one.unacked) == (other.recv_window + other.unacked)
    assert {each.id: each.recv_window for each in one.streams.values()} == {
        each.id: each.recv_window for each in other.streams.values()
    }


def test_messages_that_come_together_are_one_piece() -> None:
    served = greeted(late=True)
    parts = [frame(DATA, 0, 1, bytes([number]) * 10) for number in range(5)]
    served.hear(headers(REQUEST, 1, end=False, max_frame=16_384), *parts, frame(DATA, END_STREAM, 1, b"end"))
    (call,) = served.calls
    assert call.pieces == [b"".join(bytes([number]) * 10 for number in range(5)), b"end"]
    assert call.ended
