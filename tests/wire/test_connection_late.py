"""What still comes on a stream that was reset: a table of who closed how, and which frame comes late."""

from __future__ import annotations

from collections.abc import Callable

import pytest

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
