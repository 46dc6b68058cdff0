"""The states of a stream, in one table, and what is remembered of one (RFC 9113 §5.1).

A stream is half of each side's: `*_END` says that a side has sent its last frame. Either side may reset it at any time.
Idle streams are numbers above the last one opened and have no object; closed ones have left `Connection.streams`.
Pushed streams do not exist here: we never push, and refuse the setting's use as a protocol error.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import Final, Protocol

from mesh.wire.fields import Block


class State(IntEnum):
    """Where a stream is in its life."""

    OPEN = 0
    HALF_CLOSED_LOCAL = 1
    """We have sent our end and still receive."""
    HALF_CLOSED_REMOTE = 2
    """The peer has sent its end and still receives."""
    CLOSED = 3


class Happening(IntEnum):
    """What moves a stream from state to state."""

    SENT_END = 0
    RECEIVED_END = 1
    RESET = 2


NEXT: Final[tuple[tuple[State, State, State], ...]] = (
    # SENT_END, RECEIVED_END, RESET
    (State.HALF_CLOSED_LOCAL, State.HALF_CLOSED_REMOTE, State.CLOSED),  # OPEN
    (State.HALF_CLOSED_LOCAL, State.CLOSED, State.CLOSED),  # HALF_CLOSED_LOCAL
    (State.CLOSED, State.HALF_CLOSED_REMOTE, State.CLOSED),  # HALF_CLOSED_REMOTE
    (State.CLOSED, State.CLOSED, State.CLOSED),  # CLOSED
)
"""`NEXT[state][happening]`."""

MAY_RECEIVE: Final = (True, True, False, False)
"""By state: whether HEADERS and DATA of the peer are in order."""
MAY_SEND: Final = (True, False, True, False)
"""By state: whether HEADERS and DATA of ours are in order."""


class Receiver(Protocol):
    """What happens on one stream, told to the one who answers it (server) or asked (client).

    Called from within `Connection.receive`; may send on any stream. After `reset`, or once both sides have ended,
    nothing more is called.
    """

    def headers(self, stream: Stream, block: Block, end: bool) -> None:
        """Take the headers, or the trailers when `end`."""

    def data(self, stream: Stream, data: bytes, end: bool) -> None:
        """Take a piece of the body. Say `Connection.consumed` when it has been dealt with."""

    def reset(self, stream: Stream, code: int) -> None:
        """Hear that the stream is over: reset by the peer, broken off by its fault, or its connection is gone."""

    def drained(self, stream: Stream) -> None:
        """Hear that everything which waited for the peer's window is on its way."""

    def silent(self, stream: Stream, *, long: bool) -> None:
        """Hear, at every look while it lasts, that the server asked does not answer for now (`mesh.wire.alive`).

        Who can have the answer elsewhere resets the stream; `long`: who could have had it ends the call.
        """


class Stream:
    """One stream. 0 <= `recv_window` + what is consumed and not yet given back <= `window`."""

    __slots__ = (
        "body_left",
        "ending",
        "id",
        "pending",
        "pending_bytes",
        "receiver",
        "recv_window",
        "seen_headers",
        "send_window",
        "state",
        "unacked",
        "window",
    )

    def __init__(self, stream_id: int, receiver: Receiver, send_window: int, window: int) -> None:
        self.id = stream_id
        self.receiver = receiver
        self.state = State.OPEN
        self.send_window = send_window
        """Bytes that we may still send; below 0 after the peer made its windows smaller."""
        self.window = window
        """What `recv_window` is refilled to; grows while the reader keeps up."""
        self.recv_window = window
        """Bytes that the peer may still send."""
        self.unacked = 0
        """Bytes consumed and not yet given back to the peer."""
        self.pending: deque[memoryview] | None = None
        """Data that waits for a window."""
        self.pending_bytes = 0
        self.ending: bytes | None = None
        """What ends our side once `pending` is out: a block of trailers, or empty for END_STREAM on the data."""
        self.seen_headers = False
        """Whether the peer's headers came; the next block is its trailers."""
        self.body_left = -1
        """What is left of a content-length; -1 without one."""

    def move(self, happening: Happening) -> State:
        """Go to the next state and return it."""
        self.state = state = NEXT[self.state][happening]
        return state

    def __repr__(self) -> str:
        """Show the state and the counts."""
        return (
            f"<Stream {self.id} {State(self.state).name} send={self.send_window} recv={self.recv_window}/{self.window} "
            f"pending={self.pending_bytes}>"
        )


class _Nobody:
    """Stands in until the stream's receiver is known, and once it has heard its last."""

    def headers(self, stream: Stream, block: Block, end: bool) -> None:
        """Ignore it."""

    def data(self, stream: Stream, data: bytes, end: bool) -> None:
        """Ignore it."""

    def reset(self, stream: Stream, code: int) -> None:
        """Ignore it."""

    def drained(self, stream: Stream) -> None:
        """Ignore it."""

    def silent(self, stream: Stream, *, long: bool) -> None:
        """Ignore it."""


NOBODY: Final[Receiver] = _Nobody()
