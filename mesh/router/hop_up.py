"""One stream from the router to a node, and the messages on it: answers come in the order of the messages."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from mesh.core.errors import Code, MeshError, RemoteError, status_of
from mesh.core.traffic.balance import Balancer
from mesh.core.types import ModelVersion, NodeId
from mesh.core.view import Located
from mesh.router.ends import broken
from mesh.wire.connection import OVERSIZED, Connection
from mesh.wire.fields import Block
from mesh.wire.frames import ErrorCode
from mesh.wire.grpc_framing import PREFIX_BYTES, Deframer
from mesh.wire.peek import Peeked, PeekError, peek, peek_front
from mesh.wire.streams import Stream

if TYPE_CHECKING:
    from mesh.router.dispatch import Dispatch

MAX_ANSWER: Final = (1 << 31) - 1
"""Answers are not bounded here: the node is ours, and protobuf ends at 2 GiB."""


class Turn:
    """One message and its answer, waiting for those before it."""

    __slots__ = ("message", "model", "node", "reply", "started_s", "traced")

    def __init__(self, message: bytes, started_s: float) -> None:
        self.message = message
        """With its prefix, as it travels."""
        self.started_s = started_s
        self.reply: bytes | None = None
        """Framed; None while it is not there."""
        self.model: ModelVersion | None = None
        self.node: NodeId | None = None
        """Whom it was sent to, on a stream of several messages; None: nobody yet."""
        self.traced = False


class Owner(Protocol):
    """The caller's stream that an `Up` belongs to."""

    @property
    def balancer(self) -> Balancer:
        """What counts the messages at each node."""

    def answered(self, turn: Any, message: bytes) -> None:
        """Take the answer, with its prefix, to what waited as `turn`; `tell` follows."""

    def tell(self) -> None:
        """Send what is answered to the caller."""

    def lost(self, up: Up, error: RemoteError) -> None:
        """Hear that the stream to a node ended."""

    def stalled(self, up: Up, *, long: bool) -> bool:
        """Hear that a node does not answer what waits there; True: end the stream, which is `lost` then."""


class Up:
    """The receiver of one stream to a node: answers come in the order of the messages."""

    __slots__ = ("_connection", "_deframer", "_stream", "hop", "located", "outbox", "over", "waiting")

    def __init__(self, hop: Owner, connection: Connection, located: Located) -> None:
        self.hop = hop
        self._connection = connection
        self._stream: Stream | None = None
        self._deframer = Deframer(MAX_ANSWER, keep_prefix=True)
        self.located = located
        self.over = False
        """Whether it was given up, or ended: no more messages go on it."""
        self.waiting: deque[Any] = deque()
        """What its owner put there for each message; `Owner.answered` takes it."""
        self.outbox: list[bytes] = []
        """Messages to go out together."""

    def begin(self, stream: Stream) -> None:
        """Note the stream."""
        self._stream = stream

    def flush(self) -> None:
        """Send what is in the outbox."""
        assert self._stream is not None
        outbox, self.outbox = self.outbox, []
        self._connection.send_data(self._stream, outbox[0] if len(outbox) == 1 else b"".join(outbox))

    def half_close(self) -> None:
        """Say that no more messages follow."""
        assert self._stream is not None
        self._connection.send_data(self._stream, b"", end=True)

    def stop(self) -> list[Any]:
        """Give the stream up; return what waited for the messages that were not answered."""
        if self._stream is not None:
            self._connection.reset(self._stream, ErrorCode.CANCEL)
        return self.take()

    def take(self) -> list[Any]:
        """End, and return what waited for the messages that were not answered; none is left."""
        self.over = True
        turns = list(self.waiting)
        self.waiting.clear()
        for _ in turns:
            self.hop.balancer.done(self.located.node.id, None)
        return turns

    def data(self, stream: Stream, data: bytes, end: bool) -> None:
        """Take answers."""
        self._connection.consumed(stream, len(data))
        try:
            answers = self._deframer.feed(data)
        except MeshError as error:
            self._connection.reset(stream, ErrorCode.CANCEL)
            self.hop.lost(self, RemoteError(*status_of(error), transport_failed=True))
            return
        balancer, node, waiting, answered = self.hop.balancer, self.located.node, self.waiting, self.hop.answered
        count = 0
        for answer in answers:
            if not waiting:
                break
            count += 1
            answered(waiting.popleft(), answer)
        if count:
            balancer.done(node.id, None, count)
        balancer.answered(node)
        self.hop.tell()
        if end:
            self.hop.lost(self, RemoteError(Code.UNAVAILABLE, "the node ended the stream", transport_failed=True))

    def headers(self, stream: Stream, block: Block, end: bool) -> None:
        """Hear of the end."""
        if end:
            self.hop.lost(self, RemoteError(Code.UNAVAILABLE, "the node ended the stream"))

    def reset(self, stream: Stream, code: int) -> None:
        """Hear that the stream broke."""
        lost = RemoteError(Code.UNAVAILABLE, "the connection was lost", transport_failed=True)
        self.hop.lost(self, broken(code) if code == OVERSIZED else lost)

    def silent(self, stream: Stream, *, long: bool) -> None:
        """Leave it to the owner."""
        if self.waiting and self.hop.stalled(self, long=long):
            self._connection.reset(stream, ErrorCode.CANCEL)
            self.hop.lost(self, RemoteError(Code.UNAVAILABLE, "it does not answer", transport_failed=True))

    def drained(self, stream: Stream) -> None:
        """Nothing waits for it: what is unanswered is bounded by the caller's window."""


def lost_turns(dispatch: Dispatch, up: Up, error: RemoteError) -> list[Any]:
    """Return what a stream that ended did not answer, and remember its node when that went away."""
    if up.waiting:
        dispatch.metrics.attempt_failed(up.located.node.id, error.status.name)
        if error.transport_failed:
            dispatch.balancer.failed(up.located.node, time.monotonic())
    return up.take()


def peek_framed(framed_message: bytes) -> Peeked:
    """Return the routing fields of a message with its prefix. Raises `PeekError`."""
    try:
        found = peek_front(framed_message, PREFIX_BYTES, whole=True)
    except PeekError:
        found = None
    return found if found is not None else peek(framed_message[PREFIX_BYTES:])
