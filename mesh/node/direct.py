"""The node's hot methods on the wire itself: a request goes from its frames to the batcher and back without a task.

What a request is, `running` says; `infer` carries the same over coroutines for the other engine and for models with
several responses.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing
from functools import lru_cache
from typing import Any, Final

from mesh.api.messages import ModelInferRequest
from mesh.api.question import decode
from mesh.api.stream import FINAL, INFER_RESPONSE_TAG, varint
from mesh.core.errors import Code, MeshError, RemoteError, let_go, status_of
from mesh.core.forwarding import NOTHING, Pattern
from mesh.core.traffic.held import COUNTED
from mesh.node.asked import Asked, heard_of
from mesh.node.fused import FusedRunning
from mesh.node.graph import GraphRunning
from mesh.node.infer import WINDOW, Infer
from mesh.node.labor import Later
from mesh.node.plan import Part
from mesh.node.running import Running, failed_message, fate_trailers
from mesh.node.served import Pins, Served
from mesh.wire.connection import Connection
from mesh.wire.grpc_framing import Deframer, Packed, framed, pack_prefix
from mesh.wire.header_cache import encode
from mesh.wire.heads import ANSWER, OK_TRAILERS, RequestHead
from mesh.wire.server_call import STREAM_BUFFER, Origin, ServerCall, UnaryCall, stop_sending
from mesh.wire.streams import Stream
from mesh.wire.transport import (
    CALLER_HEADER,
    FORWARD_HEADER,
    LOAD_TRAILER,
    MODEL_HEADER,
    PIPELINE_HEADER,
    VERSION_HEADER,
    Direct,
)

_CALLER: Final = CALLER_HEADER.encode()
_MODEL: Final = MODEL_HEADER.encode()
_VERSION: Final = VERSION_HEADER.encode()
_PIPELINE: Final = PIPELINE_HEADER.encode()
_FORWARD: Final = FORWARD_HEADER.encode()
_LOAD: Final = LOAD_TRAILER.encode()


def methods(infer: Infer) -> tuple[Direct, Direct]:
    """Return what answers ModelInfer and ModelStreamInfer on the wire."""

    def unary(connection: Connection, stream: Stream, origin: Origin) -> DirectUnary:
        return DirectUnary(connection, stream, origin, infer)

    def stream(connection: Connection, stream: Stream, origin: Origin) -> DirectStream:
        return DirectStream(connection, stream, origin, infer)

    return unary, stream


def _asked(head: RequestHead, deadline_s: float | None, peer: str, pattern: Pattern | None) -> Asked:
    """Return what the head of a call says; the part that is equal for equal heads is kept on it."""
    known = head.memo
    if not isinstance(known, _Known) or known.pattern is not pattern:
        known = head.memo = _Known(head, pattern)
    return Asked(
        known.method,
        lambda: head.metadata,
        deadline_s,
        known.model,
        known.version,
        known.traceparent,
        known.pipeline,
        known.caller or peer,
        known.forwarded,
        known.refused,
    )


class _Known:
    __slots__ = (
        "caller", "forwarded", "method", "model", "pattern", "pipeline", "refused", "traceparent", "version",
    )  # fmt: skip

    def __init__(self, head: RequestHead, pattern: Pattern | None) -> None:
        # The first of several with one name counts.
        said = {field.name: field.value for field in reversed(head.own)}
        self.method = head.path.decode("latin-1")
        self.model = said.get(_MODEL, b"").decode("utf-8", "replace")
        self.version = said.get(_VERSION, b"").decode("utf-8", "replace")
        self.pipeline = said.get(_PIPELINE, b"").decode("utf-8", "replace")
        self.caller = said.get(_CALLER, b"").decode("latin-1")
        self.traceparent = said.get(b"traceparent", b"").decode("latin-1")
        self.pattern = pattern
        routed, self.forwarded, self.refused = bool(self.model), NOTHING, ""
        if _FORWARD in said if routed else pattern is not None:
            self.forwarded, self.refused = heard_of(head.metadata, pattern, routed=routed)


def _load(outstanding: int) -> bytes:
    return encode(_LOAD, b"%d" % outstanding)


class DirectUnary(UnaryCall):
    """One ModelInfer: the `Reply` of its own request."""

    __slots__ = ("_infer", "_running")

    def __init__(self, connection: Connection, stream: Stream, origin: Origin, infer: Infer) -> None:
        super().__init__(connection, stream, origin)
        self._infer = infer
        self._running: Running | GraphRunning | FusedRunning | Later[Any] | None = None
        infer.outstanding += 1

    def received(self, message: bytes) -> None:
        """Begin."""
        try:
            infer = self._infer
            running = infer.begin(_asked(self.head, self.deadline_s, self.peer, infer.forwards), message, self)
            if not self.over:
                self._running = running
        except Exception as error:  # noqa: BLE001 - the edge: every failure becomes a status
            self.fail(error)

    def finish(self) -> None:
        """Count the request out, however it ended."""
        if not self.over:
            self._infer.outstanding -= 1
        super().finish()

    def cancelled(self) -> None:
        """Leave the queue."""
        running, self._running = self._running, None
        if running is not None:
            running.withdraw(asyncio.CancelledError())

    def answer(self, response: list[Part]) -> None:
        """Send the response with the load as it is now."""
        if self.over:
            return
        self.finish()
        self._running = None
        data = b"".join([pack_prefix(0, sum(map(len, response))), *response])
        self.connection.answer(self.stream, ANSWER, data, OK_TRAILERS + _load(self._infer.outstanding))
        stop_sending(self.connection, self.stream)

    def fail(self, error: BaseException, metadata: tuple[tuple[str, str | bytes], ...] = ()) -> None:
        """Send the status with the load, and whether the request was run."""
        load = (LOAD_TRAILER, str(self._infer.outstanding - 1))
        super().fail(error, (*metadata, *fate_trailers(error), load))


class DirectStream(ServerCall):
    """One ModelStreamInfer: ordinary requests answered in their order, several-response ones as they come."""

    __slots__ = (
        "_asked",
        "_deframer",
        "_ended",
        "_infer",
        "_loop",
        "_messages",
        "_owed",
        "_pins",
        "_several",
        "_telling",
        "_turns",
    )

    def __init__(self, connection: Connection, stream: Stream, origin: Origin, infer: Infer) -> None:
        super().__init__(connection, stream, origin)
        self._infer = infer
        self._asked = _asked(origin.head, self.deadline_s, self.peer, infer.forwards)
        self._deframer = Deframer(origin.max_message_bytes, compression=origin.head.compression)
        self._messages: deque[bytes] = deque()
        self._turns: deque[_Turn] = deque()
        self._several: set[asyncio.Task[None]] = set()
        self._owed = 0
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._telling = False
        self._pins = Pins()

    def data(self, stream: Stream, data: bytes, end: bool) -> None:
        """Take requests."""
        if self.over:
            self.connection.consumed(stream, len(data))
            return
        try:
            self._messages.extend(self._deframer.feed(data))
            self.assemble(self._deframer.held)
        except MeshError as error:
            self.fail(error)
            self.cancelled()
            return
        self._owed += len(data)
        self._ended = self._ended or end
        self._go_on()

    def drained(self, stream: Stream) -> None:
        """Go on: the caller reads again."""
        super().drained(stream)
        self._go_on()

    def _go_on(self) -> None:
        """Begin what waits, as far as the window goes; the caller's window opens when all has begun."""
        messages = self._messages
        while messages and self._busy < WINDOW and self.stream.pending_bytes <= STREAM_BUFFER:
            if messages[0].__class__ is Packed:
                self.unpack(messages, self._deframer, self._go_on)
                return
            self._begin_one(messages.popleft())
        if not messages and self._owed and not self.over:
            owed, self._owed = self._owed, 0
            self.connection.consumed(self.stream, owed)
        self._close_if_done()

    @property
    def _busy(self) -> int:
        return len(self._turns) + len(self._several)

    def _begin_one(self, message: bytes) -> None:
        turn = _Turn(self)
        infer, asked = self._infer, self._asked
        self._turns.append(turn)
        infer.outstanding += 1
        try:
            if len(message) >= COUNTED:
                self.keep(len(message))
                turn.size = len(message)
            if asked.refused:
                asked.check()
            if asked.pipeline:
                turn.running = graph = infer.pipelines.begin(asked, message, turn)
                for each in graph.copies:
                    self._pins.add(each)
                return
            turn.running = planned = infer.beginner.planned(asked, message, turn)
            if planned is None:
                request = decode(message)
                turn.id = request.id
                served = infer.served(asked, request)
                self._pins.add(served)
                if served.model.decoupled:
                    self.keep(-self._turns.pop().size)
                    infer.outstanding -= 1
                    self._begin_several(request, served)
                    return
                turn.running = infer.beginner.begin(asked, message, request, served, turn)
            else:
                self._pins.add(planned.served)
        except MeshError as error:
            turn.fail(error)

    def _begin_several(self, request: ModelInferRequest, served: Served) -> None:
        task = asyncio.get_running_loop().create_task(self._run_several(request, served))
        self._several.add(task)
        task.add_done_callback(self._several_done)

    def _tell(self) -> None:
        """Send what is answered up to the first that is not."""
        self._telling = False
        turns = self._turns
        ready: list[bytes] = []
        while turns and (message := turns[0].message) is not None:
            if size := turns.popleft().size:
                self.keep(-size)
            ready.append(message)
        if ready:
            self.send(b"".join(ready))
            if self._messages or (self._ended and not turns):
                self._go_on()

    def done_one(self) -> None:
        """Hear that a request of this stream ended. What ends in one turn of the loop is sent together."""
        self._infer.outstanding -= 1
        if not self._telling:
            self._telling = True
            self._loop.call_soon(self._tell)

    def failed(self, error: BaseException, request_id: str) -> bytes:
        """Return the message for a request that failed."""
        code, text = status_of(error)
        told = error if isinstance(error, MeshError) else RemoteError(code, text)
        let_go(error)
        return framed(failed_message(told, request_id, self._asked))

    def send(self, data: bytes) -> None:
        """Send framed messages."""
        if self.over:
            return
        if not self._begun:
            self.begin()
        self.connection.send_data(self.stream, data)

    async def _run_several(self, request: ModelInferRequest, served: Served) -> None:
        async with aclosing(self._infer.several(self._asked, request, served)) as responses:
            async for response in responses:
                self.send(framed(response))
                await self.room()

    def _several_done(self, task: asyncio.Task[None]) -> None:
        self._several.discard(task)
        if self.over or task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self.fail(error)
            self.cancelled()
        else:
            self._go_on()

    def drain(self) -> None:
        """End a router's stream between two messages: it goes on elsewhere. A caller's own stream is its to end."""
        if self._asked.model:
            self._ended = True
            self._close_if_done()

    def _close_if_done(self) -> None:
        if not self._ended or self._messages or self._turns or self._several or self.over:
            return
        if self._deframer.held:
            self.fail(_CutOff("the stream ended in the middle of a message"))
            return
        self.finish()
        self.begin()
        self.connection.send_headers(self.stream, OK_TRAILERS + _load(self._infer.outstanding), end=True)
        stop_sending(self.connection, self.stream)

    def finish(self) -> None:
        """Let go of the copies, however the stream ended."""
        self._pins.release()
        super().finish()

    def cancelled(self) -> None:
        """Give up every request of this stream."""
        self._pins.release()
        for turn in self._turns:
            if turn.message is None:
                self._infer.outstanding -= 1
                turn.message = b""
                running, turn.running = turn.running, None
                if running is not None:
                    running.withdraw(asyncio.CancelledError())
        self._turns.clear()
        self._messages.clear()
        for task in self._several:
            task.cancel()


@lru_cache(maxsize=4096)
def _head_of(size: int) -> bytes:
    """Return what stands before a response of `size` bytes in a stream: gRPC's prefix, and the field it is in."""
    head = INFER_RESPONSE_TAG + varint(size)
    return pack_prefix(0, len(head) + size) + head


class _CutOff(MeshError):
    code = Code.INTERNAL


class _Turn:
    """One ordinary request of a stream, waiting for its turn: the `Reply` of its request."""

    __slots__ = ("_stream", "id", "message", "running", "size")

    def __init__(self, stream: DirectStream) -> None:
        self._stream = stream
        self.id = ""
        self.size = 0
        """Of the request's message, where it is counted."""
        self.message: bytes | None = None
        """With its prefix; None while it is not there."""
        self.running: Running | GraphRunning | FusedRunning | Later[Any] | None = None

    def answer(self, response: list[Part]) -> None:
        """Take the response."""
        size = sum(map(len, response)) + len(FINAL)
        self._end(b"".join([_head_of(size), *response, FINAL]))

    def fail(self, error: BaseException) -> None:
        """Take the error: a message too, and the stream goes on."""
        self._end(self._stream.failed(error, self.id))

    def _end(self, message: bytes) -> None:
        if self.message is None:
            self.message = message
            self.running = None
            self._stream.done_one()
