"""One ModelStreamInfer through the router on the wire: each message to its own model, answers in their order.

Messages for one copy share one stream to its node, which answers in order; messages for several copies are put in order
again here. What cannot be passed on at once goes to `Streams`, message by message: cold models, sequences, models with
several responses, and messages that a node did not answer.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any, Final

from mesh.api.stream import ERROR_TAG, error_message, read_error
from mesh.core.errors import Code, MeshError, RemoteError, code_of
from mesh.core.traffic.balance import Balancer
from mesh.core.traffic.retry import Fate, Tries, fate_of
from mesh.core.types import NodeId
from mesh.core.view import Located
from mesh.router.dispatch import MARGIN_S
from mesh.router.ends import named
from mesh.router.hop_sessions import SessionCarrier, StreamStep
from mesh.router.hop_up import Owner, Turn, Up, lost_turns, peek_framed
from mesh.router.live import said_of
from mesh.router.observe import UNSAMPLED_BLOCK
from mesh.router.streams import WINDOW, Streams, check_id, in_turn
from mesh.router.target import Target, passed
from mesh.wire.client import WireChannel
from mesh.wire.connection import Connection
from mesh.wire.grpc_framing import PREFIX_BYTES, Deframer, Packed, framed
from mesh.wire.heads import OK_TRAILERS, timeout_field
from mesh.wire.peek import Peeked
from mesh.wire.server_call import STREAM_BUFFER, Origin, ServerCall, stop_sending
from mesh.wire.streams import Stream
from mesh.wire.transport import MODEL_STREAM_INFER, Call, Direct

MAX_BYTES: Final = 1024 * 1024
"""Bytes of one stream's messages being answered, above which the caller waits: they are kept for another attempt."""


def stream(streams: Streams) -> Direct:
    """Return what answers ModelStreamInfer on the wire."""

    def hop(connection: Connection, stream: Stream, origin: Origin) -> HopStream:
        return HopStream(connection, stream, origin, streams)

    return hop


class HopStream(ServerCall):
    """The receiver of the caller's stream. `Up` is that of each stream to a node."""

    __slots__ = (
        "_arrived", "_bytes", "_call", "_deframer", "_draining", "_ended", "_messages", "_metrics", "_owed", "_passed",
        "_sequences", "_sessions", "_streams", "_strict", "_targets", "_tasks", "_turns", "_ups",
    )  # fmt: skip

    def __init__(self, connection: Connection, stream: Stream, origin: Origin, streams: Streams) -> None:
        super().__init__(connection, stream, origin)
        self._streams = streams
        self._passed = passed(origin.head, streams.dispatch.forwards)
        self._strict = self._passed.strict
        self._deframer = Deframer(origin.max_message_bytes, compression=origin.head.compression, keep_prefix=True)
        self._messages: deque[bytes] = deque()
        self._turns: deque[Turn] = deque()
        self._bytes = 0
        self._ups: dict[tuple[NodeId, str, str], Up] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sequences: dict[tuple[str, str], asyncio.Event] = {}
        self._sessions: SessionCarrier | None = None
        self._draining = False
        self._call: Call | None = None
        self._owed = 0
        self._ended = False
        self._metrics = streams.metrics
        self._targets = streams.dispatch.targets
        self._arrived = 0
        """Messages that came and are not yet in the metrics."""
        streams.metrics.stream_opened()

    # -- the caller's side ---------------------------------------------------------------------------------------

    def data(self, stream: Stream, data: bytes, end: bool) -> None:
        """Take messages."""
        if self.over:
            self.connection.consumed(stream, len(data))
            return
        try:
            self._messages.extend(self._deframer.feed(data))
            self.assemble(self._deframer.held)
        except MeshError as error:
            self._stop(error)
            return
        self._owed += len(data)
        self._ended = self._ended or end
        self._go_on()

    def drained(self, stream: Stream) -> None:
        """Go on: the caller reads again."""
        super().drained(stream)
        self._go_on()

    def finish(self) -> None:
        """Count the stream out, however it ended."""
        if not self.over:
            self._metrics.stream_messages("request", self._arrived)
            self._metrics.stream_closed()
        super().finish()

    def cancelled(self) -> None:
        """Give up everything on its way."""
        for up in self._ups.values():
            for turn in up.stop():
                self.count(turn, Code.CANCELLED)
        self._ups.clear()
        if self._sessions is not None:
            self._sessions.stop(self._turns)
        for task in self._tasks:
            task.cancel()
        self._turns.clear()
        self._messages.clear()

    def drain(self) -> None:
        """Let a client that goes on elsewhere by itself do so, between two of its steps; others end their streams."""
        self._draining = True
        self._leave_if_resumable()

    def _leave_if_resumable(self) -> None:
        idle = not (self._turns or self._messages or self._tasks or self.over)
        if self._draining and idle and self._sessions is not None and self._sessions.resumable:
            self._stop(RemoteError(Code.UNAVAILABLE, "this router stops: go on at another"))

    def _stop(self, error: BaseException) -> None:
        self.fail(error)
        self.cancelled()

    def _go_on(self) -> None:
        """Pass on what waits, as far as the window goes; the caller's window opens when all is passed on."""
        messages = self._messages
        while (
            messages
            and len(self._turns) + len(self._tasks) < WINDOW
            and (self._bytes < MAX_BYTES or not self._turns)
            and self.stream.pending_bytes <= STREAM_BUFFER
        ):
            if messages[0].__class__ is Packed:
                self.unpack(messages, self._deframer, self._go_on)
                break
            self._pass_on(messages.popleft())
        for up in self._ups.values():
            if up.outbox:
                up.flush()
        if self.over:
            return
        if not messages and self._owed:
            owed, self._owed = self._owed, 0
            self.connection.consumed(self.stream, owed)
        if self._ended and not messages and not self._turns and not self._tasks:
            self._close()

    def _close(self) -> None:
        if self._deframer.held:
            self._stop(RemoteError(Code.INTERNAL, "the stream ended in the middle of a message"))
            return
        self.finish()
        for up in self._ups.values():
            up.half_close()
        self._ups.clear()  # They end by themselves, and know this call as it knew them.
        if self._sessions is not None:
            self._sessions.half_close()
            self._sessions = None
        self.begin()
        self.connection.send_headers(self.stream, OK_TRAILERS, end=True)
        stop_sending(self.connection, self.stream)

    # -- a message -----------------------------------------------------------------------------------------------

    def _pass_on(self, message: bytes) -> None:
        started_s = time.monotonic()
        self._arrived += 1
        request: Peeked | None = None
        try:
            fronts = self._streams.fronts
            request = fronts.find(message, PREFIX_BYTES)
            if request is None:
                request = peek_framed(message)
                fronts.learn(message, PREFIX_BYTES, request)
            if self._passed.unordered:
                check_id(request)
            target = self._targets.find(self._passed.named(request.model_name), request.model_version)
        except MeshError as error:
            turn = Turn(message, started_s)
            self._turns.append(turn)
            self.failed(turn, error, request.id if request is not None else "")
            return
        model, said = target.model, said_of(request)
        if model.decoupled:
            self._start(self._several(message[PREFIX_BYTES:], request, target))
            return
        self._bytes += len(message)
        if said.id and model.sequence is not None:
            sessions = self._sessions
            if sessions is None:
                sessions = self._sessions = SessionCarrier(self, self._streams.dispatch.sessions)
            step = StreamStep(sessions, message, started_s, said)
            step.model = model
            self._turns.append(step)
            sessions.begin(step, request.model_version, said, target)
            return
        turn = Turn(message, started_s)
        turn.model = model
        self._turns.append(turn)
        if said.name:
            one = in_turn(self._sequences, (model.name, said.name), partial(self._slowly, turn, request))
            self._start(self._one(turn, one))
        elif not self._send(turn, target):
            self.again(turn)

    def _send(self, turn: Turn, target: Target) -> bool:
        """Send a message on a stream to a copy; False when there is none to send to at once."""
        dispatch = self._streams.dispatch
        now_s, u = turn.started_s, random.random()  # noqa: S311 - a choice of two
        if dispatch.tracing.on and dispatch.tracing.wants(self._passed.traceparent, u):
            # A message with a span of its own needs a call of its own, whose headers say so.
            turn.traced = True
            return False
        located = dispatch.balancer.pick(target.candidates, tried=(), now_s=now_s, u=u)
        if located is None:
            return False
        key = (located.node.id, target.model.name, target.model.version)
        up = self._ups.get(key)
        if up is None:
            up = self.open(self, located, target, now_s)
            if up is None:
                return False
            self._ups[key] = up
        turn.node = located.node.id
        up.waiting.append(turn)
        up.outbox.append(turn.message)
        dispatch.balancer.picked(located.node.id)
        return True

    def open(self, owner: Owner, located: Located, target: Target, now_s: float, says: bytes = b"") -> Up | None:
        """Open a stream to a copy; None where that takes time. `says`, HPACK bytes of headers, is of sessions alone."""
        channel = self._streams.dispatch.channels.to(located.node.address)
        assert isinstance(channel, WireChannel)
        connection = channel.links.ready()
        if connection is None:
            return None
        block = channel.block(MODEL_STREAM_INFER)
        if self.deadline_s is not None:
            left_s = self.deadline_s - now_s - MARGIN_S
            if left_s <= 0:
                return None
            block += timeout_field(left_s)
        up = Up(owner, connection, located)
        trace = self._passed.trace
        if not trace and self._streams.dispatch.tracing.on:
            trace = UNSAMPLED_BLOCK
        known = self._passed.unforwarded if says else self._passed.block
        up.begin(connection.open(block + known + trace + target.block + says, up))
        return up

    def answered(self, turn: Turn, message: bytes) -> None:
        """Take a node's answer to `turn`, with its prefix; `tell` follows."""
        if message[PREFIX_BYTES : PREFIX_BYTES + 1] == _ERROR:
            error = read_error(message[PREFIX_BYTES:])
            if error is not None:
                fate = fate_of(error.error, not_run=error.not_run, died=error.died)
                self._elsewhere(turn, error.error, fate, free=error.absent)
                return
        turn.reply = message
        self.count(turn, Code.OK)

    def _elsewhere(self, turn: Turn, error: MeshError, fate: Fate, *, free: bool = False) -> None:
        """Send a message that a node failed to answer another way where that is safe, else tell the caller."""
        assert turn.node is not None
        assert turn.model is not None
        tries, dispatch = Tries(), self._streams.dispatch
        if dispatch.retries.may_follow(tries, turn.node, fate, turn.model, free=free):
            self.again(turn, tries)
            return
        self.count(turn, code_of(error))
        self.failed(turn, error, peek_framed(turn.message).id)

    def again(self, turn: Turn, tries: Tries | None = None) -> None:
        """Send a message that cannot go on a stream, or was not answered there, as a call of its own."""
        self._start(self._one(turn, partial(self._slowly, turn, peek_framed(turn.message), tries)))

    def _slowly(self, turn: Turn, request: Peeked, tries: Tries | None = None) -> Awaitable[bytes]:
        message, call, traced = turn.message[PREFIX_BYTES:], self.as_call(), turn.traced
        return self._streams.one(call, message, request, strict=self._strict, traced=traced, tries=tries)

    def failed(self, turn: Turn, error: MeshError, request_id: str) -> None:
        """Answer an error: a message, or the end of the stream where the caller asked for that."""
        if self._strict:
            self._stop(error)
            return
        turn.reply = framed(error_message(error, request_id))
        self.tell()

    def tell(self) -> None:
        """Send what is answered up to the first that is not."""
        turns = self._turns
        ready: list[bytes] = []
        if self._passed.unordered and len(turns) > 1:
            # What is answered goes to the front; among those and among the others the order stays.
            turns = self._turns = deque(sorted(turns, key=lambda turn: turn.reply is None))
        while turns and (answer := turns[0].reply) is not None:
            turn = turns.popleft()
            if turn.model is not None:
                self._bytes -= len(turn.message)
            ready.append(answer)
        if ready:
            self._metrics.stream_messages("response", len(ready))
            self._metrics.stream_messages("request", self._arrived)
            self._arrived = 0
            self._put(b"".join(ready))
            if self._messages or self._ended:
                self._go_on()
            elif self._draining:
                self._leave_if_resumable()

    def _put(self, data: bytes) -> None:
        if self.over:
            return
        if not self._begun:
            self.begin()
        self.connection.send_data(self.stream, data)

    def count(self, turn: Turn, code: Code) -> None:
        """Count a message that was answered."""
        model = turn.model
        assert model is not None
        total_s = time.monotonic() - turn.started_s
        self._metrics.request_done(model.name, model.version, code, total_s, int(turn.node is not None))

    # -- the slower way ------------------------------------------------------------------------------------------

    def as_call(self) -> Call:
        """Return the stream as a call."""
        if self._call is None:
            self._call = self.call()
        return self._call

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    async def _one(self, turn: Turn, answer: Callable[[], Awaitable[bytes]]) -> None:
        turn.reply = framed(await answer())  # A coroutine that was made before, and cancelled, is never awaited.

    async def _several(self, message: bytes, request: Peeked, target: Target) -> None:
        responses = self._streams.several(self.as_call(), message, request, target, strict=self._strict)
        async with aclosing(responses):
            async for response in responses:
                self._streams.metrics.stream_message("response")
                self._put(framed(response))
                await self.room()

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self.over or task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._stop(error)
            return
        self.tell()
        self._go_on()

    def lost(self, up: Up, error: RemoteError) -> None:
        """Hear that a stream to a node ended: what is unanswered goes another way, unless its answer is too large."""
        dispatch = self._streams.dispatch
        self._ups = {key: each for key, each in self._ups.items() if each is not up}
        # A node that ends its stream in order has begun nothing of what it leaves unanswered.
        fate = fate_of(error, not_run=not (error.transport_failed or error.status is Code.RESOURCE_EXHAUSTED))
        for turn in lost_turns(dispatch, up, error):
            if not self.over:
                self._elsewhere(turn, named(error, up.located, turn.model), fate)

    def stalled(self, up: Up, *, long: bool) -> bool:
        """Let another copy answer what waits for a node that does not answer, if there is one."""
        model = up.waiting[0].model
        return self._streams.dispatch.stalled.leaves(up.located.node, model, Tries(), long=long)

    @property
    def balancer(self) -> Balancer:
        """What counts the messages at each node."""
        return self._streams.dispatch.balancer


_ERROR: Final = bytes((ERROR_TAG,))
