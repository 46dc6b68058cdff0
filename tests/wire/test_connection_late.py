"""What still comes on a stream that was reset: a table of who closed how, and which frame comes late."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mesh.wire.flow import NUISANCE_BURST, Bounds
from mesh.wire.frames import (
    DATA,
    END_STREAM,
    PRIORITY,
    ErrorCode,
    frame,
    headers,
    rst_stream,
    window_update,
)
from tests.wire.pair import TRAILERS, Served, greeted, told
from tests.wire.test_connection_bounds import opened, resets

LATE = {
    "headers": headers(TRAILERS, 1, end=True, max_frame=16_384),
    "data": frame(DATA, 0, 1, b"late"),
    "the last data": frame(DATA, END_STREAM, 1, b"late"),
    "a reset": rst_stream(1, ErrorCode.CANCEL),
    "a window": window_update(1, 5),
    "a priority": frame(PRIORITY, 0, 1, b"\0\0\0\0\1"),
}
"""What may come on a stream that is closed."""


def close_theirs(served: Served) -> None:
    served.hear(rst_stream(1, ErrorCode.CANCEL))


def close_ours(served: Served) -> None:
    served.connection.reset(served.connection.streams[1], ErrorCode.CANCEL)
    told(served.connection)


@pytest.mark.parametrize("frames", LATE)
@pytest.mark.parametrize("close", [close_theirs, close_ours])
def test_what_comes_late_on_a_stream_that_was_reset_harms_nobody(close: Callable[[Served], None], frames: str) -> None:
    served = greeted(late=True)
    served.hear(opened(1), opened(3))
    close(served)
    first, more = served.hear(LATE[frames]), served.hear(LATE[frames])
    taken = close is close_ours or frames in {"a reset", "a window", "a priority"}
    assert resets(first) == ([] if taken else [(1, ErrorCode.STREAM_CLOSED)])
    assert resets(more) == []
    assert served.connection.broken is None
    assert served.connection.bounds.connection_window == served.connection.recv_window + served.connection.unacked
    served.hear(frame(DATA, 0, 3, b"x"))
    assert served.calls[1].whole == b"x"


LEFT_OUT = {
    "a reset": (rst_stream(3, ErrorCode.CANCEL), None),
    "a window": (window_update(3, 5), None),
    "a priority": (frame(PRIORITY, 0, 3, b"\0\0\0\0\1"), None),
    "data": (frame(DATA, 0, 3, b"late"), ErrorCode.PROTOCOL_ERROR),
    "headers": (opened(3), ErrorCode.PROTOCOL_ERROR),
}
"""What may come on a number that the peer has passed over. Its stream is closed, not idle (RFC 9113 §5.1.1)."""


@pytest.mark.parametrize("frames", LEFT_OUT)
def test_a_client_may_give_up_a_call_whose_number_it_never_used(frames: str) -> None:
    """A call that waits for its turn may be over before its headers are sent; what is said of it later harms nobody."""
    served = greeted(late=True)
    served.hear(opened(1), opened(5))
    came, expected = LEFT_OUT[frames]
    served.hear(came)
    broken = served.connection.broken
    assert (broken.code if broken is not None else None) == expected
    if expected is None:
        served.hear(frame(DATA, 0, 5, b"x"))
        assert served.calls[-1].whole == b"x"


AHEAD = 2 * Bounds().max_streams
"""How far numbers of calls that wait for their turn may be from the last one that was opened."""


@pytest.mark.parametrize(
    ("last", "ahead", "expected"),
    [
        (1, 2, None),
        (1, AHEAD, None),
        (1, AHEAD + 2, ErrorCode.PROTOCOL_ERROR),
        (1, 3, ErrorCode.PROTOCOL_ERROR),
        (-1, 2, None),
        (-1, 4, None),
        (-1, AHEAD + 2, ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_a_call_may_be_reset_before_its_headers(last: int, ahead: int, expected: ErrorCode | None) -> None:
    """gRPC's C core does that, and never sends the headers."""
    served = greeted(late=True)
    if last > 0:
        served.hear(opened(last))
    served.hear(rst_stream(last + ahead, ErrorCode.CANCEL))
    broken = served.connection.broken
    assert (broken.code if broken is not None else None) == expected
    if expected is None:
        served.hear(opened(last + ahead + 2), frame(DATA, 0, last + ahead + 2, b"x"))
        served.connection.check_called()
        assert served.connection.broken is None
        assert served.calls[-1].whole == b"x"


def test_who_resets_a_stream_and_then_calls_nothing_is_ended() -> None:
    served = greeted(late=True)
    served.connection.check_called()
    served.hear(rst_stream(1, ErrorCode.CANCEL))
    assert served.connection.broken is None
    served.connection.check_called()
    broken = served.connection.broken
    assert broken is not None
    assert broken.code is ErrorCode.PROTOCOL_ERROR


def test_a_flood_of_resets_of_calls_that_never_came_ends_the_connection() -> None:
    served = greeted(late=True)
    served.hear(opened(1))
    for _ in range(int(NUISANCE_BURST) + 2):
        served.hear(rst_stream(3, ErrorCode.CANCEL))
    broken = served.connection.broken
    assert broken is not None
    assert broken.code is ErrorCode.ENHANCE_YOUR_CALM
