"""One ModelInfer through the router on the wire: peek, route, pick, forward, with no task and no copy of a tensor.

The message is passed on while it arrives. What is not the common case goes to `Dispatch.infer`, which waits where this
file cannot: a model that no copy serves yet, a node without a connection, a compressed message. A failed attempt is
repeated on another copy as long as the message is still here whole and nothing of an answer went out.
"""

from __future__ import annotations

import random
import time
from functools import partial
from typing import Final

from mesh.api.details import trailers_of
from mesh.core.errors import Code, DeadlineExceeded, MeshError, RemoteError, TooLarge, Unimplemented, status_of
from mesh.core.traffic.retry import Tries, fate_of
from mesh.core.view import Located
from mesh.router.dispatch import MARGIN_S, Dispatch
from mesh.router.ends import TRANSPORT_CODES, End, broken, end_of, given_up, named
from mesh.router.hop_parts import PartsUnary
from mesh.router.observe import UNSAMPLED_BLOCK, HopSpan, hop_span
from mesh.router.target import Passed, Target, passed
from mesh.wire.client import WireChannel
from mesh.wire.connection import STOPPED, UNREAD, Connection
from mesh.wire.deadlines import Bucket, drop
from mesh.wire.fields import Block
from mesh.wire.frames import ErrorCode
from mesh.wire.grpc_framing import PREFIX_BYTES, unpack_prefix
from mesh.wire.heads import ANSWER, timeout_field
from mesh.wire.peek import Peeked, PeekError, peek_front
from mesh.wire.server_call import Origin, TaskUnary, break_off, refuse, stop_sending
from mesh.wire.streams import Stream
from mesh.wire.transport import MODEL_INFER, Direct

LOOKS: Final = 32
"""Pieces in which the routing fields may come, as each look begins anew. Clients send them in one or two."""
KEPT_BYTES: Final = 128 * 1024
"""Of a message kept for another attempt, a longer one for none: what a router can hold for thousands of requests."""


class Hop:
    """One call. The receiver of both its streams: `down` is the caller's, `up` the node's."""

    __slots__ = (
        "_answered", "_attempts", "_bucket", "_deadline_s", "_dispatch", "_down", "_down_connection", "_ended",
        "_first", "_held", "_kept", "_located", "_looks", "_node", "_origin", "_over", "_owed_down",
        "_passed", "_picked_s", "_size", "_span", "_started_s", "_target", "_tries", "_up", "_up_connection",
    )  # fmt: skip

    def __init__(self, connection: Connection, stream: Stream, origin: Origin, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._down_connection = connection
        self._down = stream
        self._origin = origin
        self._passed: Passed = passed(origin.head, dispatch.forwards)
        self._started_s = now_s = time.monotonic()
        self._bucket: Bucket | None = None
        self._deadline_s: float | None = None
        timeout_s = origin.head.timeout_s
        if timeout_s is not None:
            self._deadline_s = now_s + timeout_s
            self._bucket = origin.deadlines.add(self._deadline_s, self)
        self._first = b""
        """What came before the routing fields were whole."""
        self._kept: bytearray | None = bytearray()
        """The message so far, for another attempt; None once it is longer than `KEPT_BYTES`."""
        self._size = 0
        self._looks = 0
        self._ended = False
        """Whether the caller's message is whole."""
        self._held: bytes | None = None
        """The first piece of the answer, which goes out with the rest."""
        self._target: Target | None = None
        self._located: Located | None = None
        self._node = ""
        self._up_connection: Connection | None = None
        self._up: Stream | None = None
        self._tries: Tries | None = None
        """What failed so far; None while nothing did."""
        self._attempts = 0
        self._picked_s = 0.0
        self._answered = False
        self._over = False
        self._owed_down = 0
        self._span: HopSpan | None = None

    # -- `Receiver` ----------------------------------------------------------------------------------------------

    def data(self, stream: Stream, data: bytes, end: bool) -> None:
        """Take a piece of the question or of the answer."""
        if stream is not self._down:
            self._answer_piece(data, end=end)
            return
        self._owed_down += len(data)
        if self._over:
            self._credit()
        elif self._up is None:
            self._front(self._first + data if self._first else data, end=end)
        else:
            self._pass_on(data, end=end)

    def headers(self, stream: Stream, block: Block, end: bool) -> None:
        """Take the head or the status of the answer, or a caller's trailers as the end of its message."""
        if stream is self._down:
            self.data(stream, b"", end)
        elif stream is self._up and end:
            self._end_of_answer(end_of(block))

    def drained(self, stream: Stream) -> None:
        """Give back what has gone on."""
        if stream is self._up:
            self._credit()

    def reset(self, stream: Stream, code: int) -> None:
        """Hear that the caller gave up, or that the node's stream broke."""
        if self._over:
            return
        if stream is self._down:
            unread = RemoteError(Code.RESOURCE_EXHAUSTED, "the caller leaves too much unread")
            self._give_up(unread if code == UNREAD else given_up(self._deadline_s, time.monotonic()))
            if code == STOPPED:
                self._refuse(RemoteError(Code.UNAVAILABLE, "the server stopped before the answer was there"))
        elif stream is self._up:
            self._failed(broken(code), None)

    def silent(self, stream: Stream, *, long: bool) -> None:
        """Go to another copy, or fail, where the node does not answer and there is one."""
        located, target = self._located, self._target
        if self._over or stream is not self._up or located is None or target is None:
            return
        movable, tries = not self._answered and self._kept is not None, self._tries or Tries()
        leaves = self._dispatch.stalled.leaves
        if leaves(located.node, target.model, tries, target.pipeline, long=long, movable=movable):
            self._failed(RemoteError(Code.UNAVAILABLE, "it does not answer", transport_failed=True), None)

    def expired(self) -> None:
        """Answer that the deadline passed."""
        self._bucket = None
        if not self._over:
            error = DeadlineExceeded("the deadline passed before the answer was there")
            self._give_up(error)
            self._refuse(error)

    # -- the question --------------------------------------------------------------------------------------------

    def _front(self, data: bytes, *, end: bool) -> None:
        """Route as soon as the fields that say where to are here."""
        self._ended = end
        self._first = data
        try:
            request = self._peek(data, end=end)
            if request is None:
                self._credit()
            elif not self._route(request):
                self._hand_over(data)
        except PeekError:
            self._hand_over(data)
        except MeshError as error:
            self._close(error)
            self._refuse(error)

    def _peek(self, data: bytes, *, end: bool) -> Peeked | None:
        """Return the routing fields, None when they are not all here. Raises `PeekError` in uncommon cases."""
        self._looks += 1
        if len(data) < PREFIX_BYTES:
            if end:
                raise PeekError("no message")
            return None
        flag, length = unpack_prefix(data)
        if length > self._origin.max_message_bytes:
            raise TooLarge(f"a message of {length} bytes, at most {self._origin.max_message_bytes} are taken")
        self._size = PREFIX_BYTES + length
        if flag or len(data) > min(self._size, KEPT_BYTES) or (end and len(data) != self._size) or self._looks > LOOKS:
            raise PeekError("compressed, in many pieces, or not one message")
        return peek_front(data, PREFIX_BYTES, whole=len(data) == self._size)

    def _route(self, request: Peeked) -> bool:
        """Send to a copy; False when there is none to send to at once."""
        dispatch = self._dispatch
        target = self._target = dispatch.targets.find(self._passed.named(request.model_name), request.model_version)
        if target.model.decoupled:
            raise Unimplemented("ModelInfer RPC doesn't support models with decoupled transaction policy")
        if request.parameters and request.parameters.get("sequence_id"):
            # Its state is with one copy, and a second attempt could change it twice: `Dispatch` looks after that.
            return False
        now_s, tried = time.monotonic(), self._tries.tried if self._tries is not None else ()
        located = dispatch.balancer.pick(target.candidates, tried=tried, now_s=now_s, u=random.random())  # noqa: S311
        if located is None:
            return False
        channel = dispatch.channels.to(located.node.address)
        assert isinstance(channel, WireChannel)
        connection = channel.links.ready()
        if connection is None:
            return False
        self._send(channel, connection, located, target, now_s)
        return True

    def _send(
        self, channel: WireChannel, connection: Connection, located: Located, target: Target, now_s: float
    ) -> None:
        block = channel.block(MODEL_INFER)
        if self._deadline_s is not None:
            left_s = self._deadline_s - now_s - MARGIN_S
            if left_s <= 0:
                raise DeadlineExceeded("the deadline passed before a node could be asked")
            block += timeout_field(left_s)
        dispatch, known = self._dispatch, self._passed
        trace = known.trace
        if dispatch.tracing.on:
            if self._span is None:
                self._span = hop_span(dispatch.tracing, self._origin.head, known.traceparent)
            trace = self._span.block if self._span is not None else trace or UNSAMPLED_BLOCK
        block += known.block + trace + target.block
        if not self._attempts:
            self._picked_s = now_s - self._started_s
        self._attempts += 1
        self._located = located
        self._node = located.node.id
        dispatch.balancer.picked(located.node.id)
        data = self._first
        self._up_connection = connection
        if self._ended:
            self._up = connection.call(block, self, data)
            self._credit()
        else:
            self._up = connection.open(block, self)
            self._first = b""
            self._pass_on(data, end=False)

    def _pass_on(self, data: bytes, *, end: bool) -> None:
        self._size -= len(data)
        self._ended = self._ended or end
        if self._size < 0 or (end and self._size):
            error = RemoteError(Code.INTERNAL, "the call ended before its message was whole, or had more than one")
            self._give_up(error)
            self._refuse(error)
            return
        if self._kept is not None:
            self._kept += data
            if len(self._kept) > KEPT_BYTES:
                self._kept = None
        connection, stream = self._up_connection, self._up
        assert connection is not None and stream is not None  # noqa: PT018 - one fact
        if connection.send_data(stream, data, end=end):
            self._credit()

    def _credit(self) -> None:
        """Open the caller's window by what is dealt with."""
        owed, self._owed_down = self._owed_down, 0
        self._down_connection.consumed(self._down, owed)

    # -- the answer ----------------------------------------------------------------------------------------------

    def _answer_piece(self, data: bytes, *, end: bool) -> None:
        connection = self._up_connection
        assert connection is not None and self._up is not None  # noqa: PT018 - both since it was sent
        # At once, whether or not the caller reads: what it leaves unread is on its own account, and no node's.
        connection.consumed(self._up, len(data))
        if self._over:
            return
        if end:
            self._failed(RemoteError(Code.INTERNAL, "the node ended without a status", transport_failed=True), None)
        elif not self._answered and self._held is None:
            self._held = data
        else:
            self._begin_answer()
            self._down_connection.send_data(self._down, data)

    def _begin_answer(self) -> None:
        """Let the caller have what is held: from here on this copy's answer is the answer."""
        if not self._answered:
            self._answered = True
            self._kept = None
            self._down_connection.send_headers(self._down, ANSWER)
        if self._held is not None:
            self._down_connection.send_data(self._down, self._held)
            self._held = None

    def _end_of_answer(self, end: End) -> None:
        head = end.head
        if self._over:
            return
        if head.status != Code.OK:
            status = Code(head.status) if head.status is not None else Code.UNKNOWN
            failed = end.load is None and status in TRANSPORT_CODES
            self._failed(RemoteError(status, head.message, transport_failed=failed), end)
            return
        located = self._located
        assert located is not None
        dispatch = self._dispatch
        dispatch.balancer.answered(located.node)
        held = self._held
        if held is not None and not self._answered:
            self._down_connection.answer(self._down, ANSWER, held, end.block)
        else:
            self._begin_answer()
            self._down_connection.send_headers(self._down, end.block, end=True)
        if not self._ended:
            self._stop_up()
        self._done(end.load)
        self._close(None)
        stop_sending(self._down_connection, self._down)

    # -- ends ----------------------------------------------------------------------------------------------------

    def _failed(self, error: RemoteError, end: End | None) -> None:
        """Try another copy, or tell the caller."""
        dispatch, located, target, now_s = self._dispatch, self._located, self._target, time.monotonic()
        assert located is not None and target is not None  # noqa: PT018 - both since it was sent
        node = located.node
        if error.transport_failed:
            dispatch.balancer.failed(node, now_s)
        dispatch.metrics.attempt_failed(node.id, error.status.name)
        self._stop_up()
        self._done(end.load if end is not None else None)
        self._held = None
        # A copy that went while the request was on its way is nobody's failure.
        free = end is not None and end.absent and now_s - self._started_s < dispatch.cold_wait_s
        self._attempts -= free
        fate = fate_of(error, not_run=end is not None and end.not_run, died=end is not None and end.died)
        tries = self._tries = self._tries or Tries()
        again = dispatch.retries.may_follow(tries, node.id, fate, target.model, target.pipeline, free=free)
        if again and not self._answered and self._kept is not None:
            self._again()
            return
        told = named(error, located, target.model)
        self._close(told)
        if end is not None and not self._answered and told is error:
            self._down_connection.send_headers(self._down, ANSWER + end.block, end=True)
            stop_sending(self._down_connection, self._down)
        else:
            self._refuse(told)

    def _again(self) -> None:
        """Ask another copy, with all that came so far."""
        data = self._first
        if self._kept:
            data, self._kept = bytes(self._kept), bytearray()
        self._front(data, end=self._ended)

    def _hand_over(self, data: bytes) -> None:
        """Leave this call to the coroutine path, which can wait."""
        drop(self._bucket, self)
        self._bucket = None
        self._over = True
        if self._span is not None:
            self._span.end(Code.UNAVAILABLE, "", model="", version="", node="", picked_s=self._picked_s)
        target, connection, stream, tries = self._target, self._down_connection, self._down, self._tries
        if target is not None and target.pipeline is not None:
            task: TaskUnary = PartsUnary(connection, stream, self._origin, self._dispatch, target, tries)
        else:
            infer = self._dispatch.infer if tries is None else partial(self._dispatch.infer, tries=tries)
            task = TaskUnary(connection, stream, self._origin, infer)
        self._down.receiver = task
        self._credit()
        task.take(data, end=self._ended)

    def _give_up(self, error: BaseException) -> None:
        """Stop asking."""
        if self._up is not None:
            self._stop_up()
            self._done(None)
        self._close(error)

    def _stop_up(self) -> None:
        if self._up is not None and self._up_connection is not None:
            self._up_connection.reset(self._up, ErrorCode.CANCEL)

    def _done(self, load: int | None) -> None:
        located, self._located = self._located, None
        self._up = None
        if located is not None:
            self._dispatch.balancer.done(located.node.id, load)

    def _close(self, error: BaseException | None) -> None:
        """Count the call, however it ended."""
        self._over = True
        drop(self._bucket, self)
        self._bucket = None
        code = Code.OK if error is None else status_of(error)[0]
        target = self._target
        model, version = (target.model.name, target.model.version) if target is not None else ("", "")
        self._dispatch.metrics.request_done(model, version, code, time.monotonic() - self._started_s, self._attempts)
        if self._span is not None:
            text, picked_s = str(error or ""), self._picked_s
            self._span.end(code, text, model=model, version=version, node=self._node, picked_s=picked_s)

    def _refuse(self, error: BaseException) -> None:
        """Tell the caller what went wrong."""
        code, text = status_of(error)
        if self._answered:
            break_off(self._down_connection, self._down, code, text)
        else:
            refuse(self._down_connection, self._down, code, text, trailers_of(error))


def unary(dispatch: Dispatch) -> Direct:
    """Return what answers ModelInfer on the wire."""
    return lambda connection, stream, origin: Hop(connection, stream, origin, dispatch)
