"""Calls that the wire hands to coroutine handlers: one message in and out, or a stream each way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from mesh.api.details import trailers_of
from mesh.core.errors import Code, DeadlineExceeded, MeshError, let_go, status_of
from mesh.wire.connection import STOPPED, Connection
from mesh.wire.deadlines import Bucket, Deadlines
from mesh.wire.fields import Block
from mesh.wire.frames import ErrorCode
from mesh.wire.grpc_framing import PREFIX_BYTES, Deframer, Packed, framed, pack_prefix
from mesh.wire.heads import ANSWER, ANSWER_NAMING_ENCODINGS, OK_TRAILERS, RequestHead, answer_block, trailers
from mesh.wire.holding import Holding
from mesh.wire.inflate import inflate
from mesh.wire.streams import Receiver, State, Stream
from mesh.wire.transport import Call, Metadata, StreamHandler, UnaryHandler

log = logging.getLogger(__name__)

STREAM_BUFFER: Final = 64 * 1024
"""Bytes of answers waiting for a slow reader above which a handler waits too."""


def refuse(connection: Connection, stream: Stream, code: int, text: str, metadata: Metadata = ()) -> None:
    """End `stream` with a status alone, and tell a peer that still sends to stop."""
    head = ANSWER_NAMING_ENCODINGS if code == Code.UNIMPLEMENTED else ANSWER
    connection.send_headers(stream, head + trailers(code, text, metadata), end=True)
    stop_sending(connection, stream)


def stop_sending(connection: Connection, stream: Stream) -> None:
    """After the answer: a peer that still sends may stop (RFC 9113 §8.1)."""
    if stream.state is State.HALF_CLOSED_LOCAL:
        connection.reset(stream, ErrorCode.NO_ERROR)


def break_off(connection: Connection, stream: Stream, code: int, text: str, metadata: Metadata = ()) -> None:
    """End a call whose answer has begun with a status, perhaps OK, and tell a peer that still sends to stop."""
    connection.send_headers(stream, trailers(code, text, metadata), end=True)
    stop_sending(connection, stream)


@dataclass(slots=True)
class Origin:
    """Where a call comes from, and the bounds it is under."""

    head: RequestHead
    peer: str
    deadlines: Deadlines
    max_message_bytes: int


Direct = Callable[[Connection, Stream, Origin], Receiver]
"""Answers calls of one method on the stream itself, without a task."""


class ServerCall(Holding):
    """What every call of a server has: its stream, its caller's words, its deadline. Subclasses are `Receiver`s."""

    __slots__ = ("_begun", "_bucket", "_room", "deadline_s", "head", "peer", "stream")

    def __init__(self, connection: Connection, stream: Stream, origin: Origin) -> None:
        super().__init__(connection)
        self.stream = stream
        self.head = head = origin.head
        self.peer = origin.peer
        self._begun = False
        self._room: asyncio.Event | None = None
        self._bucket: Bucket | None = None
        self.deadline_s: float | None = None
        if head.timeout_s is not None:
            self.deadline_s = time.monotonic() + head.timeout_s
            self._bucket = origin.deadlines.add(self.deadline_s, self)

    def call(self) -> Call:
        """Return the call as handlers see it. Raises `InvalidRequest` for metadata that cannot be read."""
        return Call(self.head.path.decode("latin-1"), self.head.metadata, self.deadline_s, self.peer)

    def headers(self, stream: Stream, block: Block, end: bool) -> None:
        """Take a client's trailers as the end of its messages."""
        self.data(stream, b"", end)

    def data(self, stream: Stream, data: bytes, end: bool) -> None:
        """Take a piece of the body."""
        raise NotImplementedError

    def reset(self, stream: Stream, code: int) -> None:
        """Give the call up: its caller is gone, or this server stops."""
        if code == STOPPED:
            self.fail(_Cut("the server stopped before the answer was there"))
        self.finish()
        self.cancelled()

    def drained(self, stream: Stream) -> None:
        """Hear that what waited is sent."""
        if self._room is not None:
            self._room.set()

    def silent(self, stream: Stream, *, long: bool) -> None:
        """Nothing: this is a client's call, and its server is here."""

    async def room(self) -> None:
        """Return when little waits for a slow reader, or when the call is over. For any number of tasks at a time."""
        while self.stream.pending_bytes > STREAM_BUFFER and not self.over:
            if self._room is None or self._room.is_set():
                self._room = asyncio.Event()
            await self._room.wait()

    def cancelled(self) -> None:
        """Stop whatever works on this call."""

    def drain(self) -> None:
        """Hear that this server is about to stop: end what could go on for ever."""

    def expired(self) -> None:
        """Answer that the deadline passed, and stop."""
        if not self.over:
            self.fail(DeadlineExceeded("the deadline passed before the answer was there"))
            self.cancelled()

    def finish(self) -> None:
        """Mark the call as over."""
        self.over = True
        if self._room is not None:
            self._room.set()
        self.release()
        if self._bucket is not None:
            self._bucket.pop(self, None)
            self._bucket = None

    def fail(self, error: BaseException, metadata: Metadata = ()) -> None:
        """End the call with the status of `error`."""
        if self.over:
            return
        self.finish()
        code, text = status_of(error)
        metadata = (*metadata, *trailers_of(error))
        if not isinstance(error, MeshError):
            log.error("a handler failed", extra={"method": self.head.path.decode("latin-1")}, exc_info=error)
        let_go(error)
        if self._begun:
            break_off(self.connection, self.stream, code, text, metadata)
        else:
            refuse(self.connection, self.stream, code, text, metadata)

    def handler_failed(self, error: BaseException, call: Call | None) -> None:
        """End the call with the status of what its handler raised, and with the metadata that it left."""
        if call is not None and call.headers and not self.over:
            self.begin(call.headers)
        self.fail(error, tuple(call.trailers) if call is not None else ())

    def give_up(self, error: BaseException) -> None:
        """End the call with the status of `error`, and stop whatever works on it."""
        self.fail(error)
        self.cancelled()

    def begin(self, metadata: Metadata = ()) -> None:
        """Send the answer's headers, if that was not done yet."""
        if not self._begun:
            self._begun = True
            self.connection.send_headers(self.stream, answer_block(metadata))

    def done(self, message: bytes, metadata: Metadata = (), headers: Metadata = ()) -> None:
        """Answer with one message and OK."""
        if self.over:
            return
        self.finish()
        last = trailers(0, "", metadata) if metadata else OK_TRAILERS
        self.connection.answer(self.stream, answer_block(headers), framed(message), last)
        stop_sending(self.connection, self.stream)


class _Cut(MeshError):
    code = Code.UNAVAILABLE


class UnaryCall(ServerCall):
    """One message in, one out. `received` begins the work."""

    __slots__ = ("_deframer", "_max_bytes", "_message")

    def __init__(self, connection: Connection, stream: Stream, origin: Origin) -> None:
        super().__init__(connection, stream, origin)
        self._deframer: Deframer | None = None
        self._max_bytes = origin.max_message_bytes
        self._message: bytes | None = None

    def data(self, stream: Stream, data: bytes, end: bool) -> None:
        """Take a piece of the message."""
        self.connection.consumed(stream, len(data))
        self.take(data, end=end)

    def take(self, data: bytes, *, end: bool) -> None:
        """Take a piece of the message that the caller's window has back."""
        if self.over:
            return
        size = len(data)
        if (
            end
            and self._deframer is None
            and PREFIX_BYTES <= size <= self._max_bytes
            and data[:PREFIX_BYTES] == pack_prefix(0, size - PREFIX_BYTES)
        ):
            self.received(data[PREFIX_BYTES:])
            return
        try:
            self._take(data)
            if end:
                message, self._message = self._message, None
                if message is None:
                    raise _Unfinished("the call ended before its message was whole")
                self._whole(message)
        except MeshError as error:
            self.fail(error)

    def _take(self, data: bytes) -> None:
        if self._deframer is None:
            self._deframer = Deframer(self._max_bytes, compression=self.head.compression)
        messages = self._deframer.feed(data)
        self.assemble(self._deframer.held)
        for message in messages:
            if self._message is not None:
                raise _Unfinished("more than one message in a call that takes one")
            self._message = message
            self.keep(len(message))

    def _whole(self, message: bytes) -> None:
        if message.__class__ is not Packed:
            self._deframer = None
            self.received(message)
            return
        assert self._deframer is not None
        waiting: deque[bytes] = deque([message])

        def unpacked() -> None:
            whole = waiting.popleft()
            self.keep(len(whole) - len(message))
            self.received(whole)

        self.unpack(waiting, self._deframer, unpacked)

    def received(self, message: bytes) -> None:
        """Begin the work on the whole message."""
        raise NotImplementedError


class _Unfinished(MeshError):
    """The messages of a call are not as many as its method has."""

    code = Code.INTERNAL


class TaskUnary(UnaryCall):
    """A unary call answered by a coroutine."""

    __slots__ = ("_handler", "_task")

    def __init__(self, connection: Connection, stream: Stream, origin: Origin, handler: UnaryHandler) -> None:
        super().__init__(connection, stream, origin)
        self._handler = handler
        self._task: asyncio.Task[None] | None = None

    def received(self, message: bytes) -> None:
        """Run the handler in a task."""
        self._task = asyncio.get_running_loop().create_task(self._run(message))

    def cancelled(self) -> None:
        """Cancel the handler."""
        # What a task was cancelled with keeps its frames, and these this call.
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def answered(self, call: Call, message: bytes) -> Awaitable[bytes]:
        """Return the handler's answer."""
        return self._handler(call, message)

    async def _run(self, message: bytes) -> None:
        call: Call | None = None
        try:
            call = self.call()
            reply = await self.answered(call, message)
        except asyncio.CancelledError:
            self.fail(_Cut("the server stopped before the answer was there"))
            raise
        except Exception as error:  # noqa: BLE001 - the edge: every failure becomes a status
            self.handler_failed(error, call)
        else:
            self.done(reply, tuple(call.trailers), call.headers)


class TaskStream(ServerCall):
    """A stream of messages answered by an async generator."""

    __slots__ = ("_arrived", "_deframer", "_ended", "_handler", "_messages", "_owed", "_task")

    def __init__(self, connection: Connection, stream: Stream, origin: Origin, handler: StreamHandler) -> None:
        super().__init__(connection, stream, origin)
        self._handler = handler
        self._deframer = Deframer(origin.max_message_bytes, compression=origin.head.compression)
        self._messages: deque[bytes] = deque()
        self._owed = 0
        self._ended = False
        self._arrived: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = asyncio.get_running_loop().create_task(self._run())

    def data(self, stream: Stream, data: bytes, end: bool) -> None:
        """Take a piece of the messages."""
        if self.over:
            self.connection.consumed(stream, len(data))
            return
        try:
            self._messages.extend(self._deframer.feed(data))
            self.assemble(self._deframer.held)
            if end and self._deframer.held:
                raise _Unfinished("the stream ended in the middle of a message")
        except MeshError as error:
            self.fail(error)
            self.cancelled()
            return
        self._owed += len(data)
        self._ended = self._ended or end
        if not self._messages:
            self._give_back()
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def _give_back(self) -> None:
        """Open the caller's window: all that came is with the handler."""
        if self._owed:
            self.connection.consumed(self.stream, self._owed)
            self._owed = 0

    def cancelled(self) -> None:
        """Cancel the handler."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    async def _incoming(self) -> AsyncIterator[bytes]:
        while True:
            while self._messages:
                message = self._messages.popleft()
                if message.__class__ is Packed:
                    message = await inflate(self._deframer.inflation(message), self.connection.caller)
                if not self._messages:
                    self._give_back()
                yield message
                del message
            if self._ended:
                return
            self._arrived = asyncio.get_running_loop().create_future()
            await self._arrived

    async def _run(self) -> None:
        call: Call | None = None
        try:
            call = self.call()
            replies = self._handler(call, self._incoming())
            try:
                async for reply in replies:
                    await self._send(call, reply)
                    del reply  # It must not stay until the next one comes.
            finally:
                close = getattr(replies, "aclose", None)
                if close is not None:
                    await close()
        except asyncio.CancelledError:
            self.fail(_Cut("the server stopped before the stream ended"))
            raise
        except Exception as error:  # noqa: BLE001 - the edge: every failure becomes a status
            self.handler_failed(error, call)
        else:
            self._close(call)

    async def _send(self, call: Call, reply: bytes) -> None:
        if self.over:
            return
        self.begin(call.headers)
        if not self.connection.send_data(self.stream, framed(reply)):
            await self.room()

    def _close(self, call: Call) -> None:
        if self.over:
            return
        self.begin(call.headers)
        self.finish()
        break_off(self.connection, self.stream, Code.OK, "", tuple(call.trailers))
