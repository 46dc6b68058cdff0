"""The wire's client side: calls on bytes over the connections to one address."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from mesh.core.errors import Code, MeshError, RemoteError
from mesh.core.traffic.held import COUNTED
from mesh.wire.connection import LOST, OVERSIZED, Connection
from mesh.wire.deadlines import Bucket, Deadlines
from mesh.wire.endpoint import Flusher
from mesh.wire.fields import Block
from mesh.wire.flow import Bounds
from mesh.wire.frames import ErrorCode
from mesh.wire.grpc_framing import Deframer, Packed, code_of_reset, framed, pack_prefix
from mesh.wire.heads import AnswerHead, answer_head, metadata_block, request_block, timeout_field
from mesh.wire.inflate import inflate
from mesh.wire.pool import Links
from mesh.wire.streams import State, Stream
from mesh.wire.tls import client_context
from mesh.wire.transport import Leaves, Limits, Metadata, Reply, TlsConfig

CLIENT_BOUNDS: Final = Bounds(stream_window=1024 * 1024, max_stream_window=16 * 1024 * 1024)
"""A caller reads into memory what it asked for: a window of its own size is no risk to it."""

SEND_BUFFER: Final = 64 * 1024
"""Bytes of one stream waiting for the peer's window above which `send` waits."""


class WireChannel:
    """A `transport.Channel` on the wire. Belongs to the loop it was first used on."""

    def __init__(
        self,
        address: str,
        *,
        limits: Limits,
        tls: TlsConfig | None = None,
        bounds: Bounds = CLIENT_BOUNDS,
        flusher: Flusher | None = None,
        deadlines: Deadlines | None = None,
        on_silence: Callable[[bool], None] | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.address = address
        self.deadlines = deadlines or Deadlines(loop)
        self.max_message_bytes = limits.max_message_bytes
        context = client_context(tls) if tls is not None else None
        self.links = Links(address, flusher=flusher or Flusher(loop), bounds=bounds, tls=context, on_silence=on_silence)
        self._scheme = "https" if tls is not None else "http"
        self._authority = "localhost" if address.startswith("unix:") else address
        self._blocks: dict[str, bytes] = {}

    def block(self, method: str) -> bytes:
        """Return the HPACK bytes that begin every call of `method`."""
        found = self._blocks.get(method)
        if found is None:
            found = self._blocks[method] = request_block(method, self._authority, self._scheme)
        return found

    async def unary(
        self, method: str, message: bytes, *, metadata: Metadata, timeout_s: float | None, leaves: Leaves | None = None
    ) -> Reply:
        """Call `method`. Raises `RemoteError`. Cancelling the task cancels the call at the peer."""
        call = _Call(self, timeout_s, leaves)
        block = self.block(method)
        try:
            connection = await call.connect()
            if timeout_s is not None:
                block += timeout_field(call.left_s())
            if metadata:
                block += metadata_block(metadata)
            if len(message) < COUNTED:
                call.begin(connection, connection.call(block, call, framed(message)))
            else:
                # A large message goes out as it is: to copy it for its prefix would hold up the loop.
                stream = connection.open(block, call)
                call.begin(connection, stream)
                connection.send_data(stream, pack_prefix(0, len(message)))
                connection.send_data(stream, message, end=True)
            reply = await call.next()
            if reply is None:
                raise call.failed(Code.INTERNAL, "the peer answered OK without a message")
            if await call.next() is not None:
                raise call.failed(Code.INTERNAL, "the peer answered a unary call with several messages")
            return Reply(reply, call.trailers)
        finally:
            call.cancel()

    def stream(
        self, method: str, *, metadata: Metadata, timeout_s: float | None, leaves: Leaves | None = None
    ) -> WireDuplex:
        """Open a two-way stream."""
        return WireDuplex(self, method, metadata, timeout_s, leaves)

    async def close(self, grace_s: float) -> None:
        """Take no more calls, wait at most `grace_s` seconds for those in flight, then close the connections."""
        await self.links.close(grace_s)

    def __repr__(self) -> str:
        """Show the connections."""
        return f"<WireChannel {self.links!r}>"


class _Call:
    """The receiver of one call's stream: its messages in a queue, its status as the end of it."""

    def __init__(self, channel: WireChannel, timeout_s: float | None, leaves: Leaves | None) -> None:
        self._channel = channel
        self._leaves = leaves
        self._connection: Connection | None = None
        self.stream: Stream | None = None
        self._deframer = Deframer(channel.max_message_bytes)
        self._messages: deque[bytes] = deque()
        self._owed = 0
        self._end: RemoteError | bool = False
        """True after OK, an error after anything else."""
        self._head: AnswerHead | None = None
        self.trailers: Metadata = ()
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._bucket: Bucket | None = None
        if self._deadline_s is not None:
            self._bucket = channel.deadlines.add(self._deadline_s, self)

    def left_s(self) -> float:
        """Return the seconds until the deadline, 0 after it."""
        return max(0.0, (self._deadline_s or 0.0) - time.monotonic())

    async def connect(self) -> Connection:
        """Return a connection to call on, within the deadline. Raises `RemoteError` when the call is over before."""
        connection = self._channel.links.ready()
        if connection is None:
            try:
                async with asyncio.timeout_at(self._deadline_s):
                    connection = await self._channel.links.connection()
            except TimeoutError:
                text = f"the deadline passed while connecting to {self._channel.address}"
                raise RemoteError(Code.DEADLINE_EXCEEDED, text, unsent=True) from None
        if isinstance(self._end, RemoteError):
            raise _again(self._end)
        return connection

    def begin(self, connection: Connection, stream: Stream) -> None:
        """Note what the call runs on."""
        self._connection, self.stream = connection, stream

    # -- `Receiver` ----------------------------------------------------------------------------------------------

    def headers(self, stream: Stream, block: Block, end: bool) -> None:
        """Take the head or the status."""
        head = answer_head(block)
        if not end and head.status is None:
            self._head = head
            if head.compression:
                self._deframer = Deframer(self._channel.max_message_bytes, compression=head.compression)
            return
        if not end:
            assert self._connection is not None
            self._connection.reset(stream, ErrorCode.CANCEL)
        if self._deframer.held:
            self._finish(self.failed(Code.INTERNAL, "the answer ended in the middle of a message"))
            return
        self.trailers = head.metadata
        if head.status == Code.OK:
            self._finish(None)
        elif head.status is None:
            self._finish(self.failed(Code.UNKNOWN, "the peer ended the call without a status", transport_failed=True))
        else:
            self._finish(RemoteError(head.status, head.message, trailers=head.metadata))

    def data(self, stream: Stream, data: bytes, end: bool) -> None:
        """Take a piece of the messages."""
        try:
            self._messages.extend(self._deframer.feed(data))
        except MeshError as error:
            self._finish(RemoteError(error.code, error.message))
            assert self._connection is not None
            self._connection.reset(stream, ErrorCode.CANCEL)
            return
        self._owed += len(data)
        if not self._messages:
            self._give_back()
        if end:
            self._finish(self.failed(Code.INTERNAL, "the peer ended the call without a status", transport_failed=True))
        self._wake()

    def reset(self, stream: Stream, code: int) -> None:
        """Take the end of the stream or connection as the status."""
        address = self._channel.address
        if code == LOST:
            assert self._connection is not None
            why = self._connection.broken.why if self._connection.broken is not None else "lost"
            self._finish(self.failed(Code.UNAVAILABLE, f"{address}: {why}", transport_failed=True))
            return
        if code == OVERSIZED:
            # The answer's, not the peer's: asking another for the same would bring the same.
            text = f"{address} answered with more headers or trailers than are taken"
            self._finish(RemoteError(Code.RESOURCE_EXHAUSTED, text))
            return
        name = ErrorCode(code).name if code in ErrorCode._value2member_map_ else str(code)
        error = RemoteError(
            code_of_reset(code),
            f"{address} reset the call: {name}",
            transport_failed=True,
            unsent=code == ErrorCode.REFUSED_STREAM,
        )
        self._finish(error)

    def silent(self, stream: Stream, *, long: bool) -> None:
        """End the call where its caller would rather ask another."""
        if self._end is False and self._leaves is not None and self._leaves(long):
            self._stop(self.failed(Code.UNAVAILABLE, f"{self._channel.address} does not answer", transport_failed=True))

    def drained(self, stream: Stream) -> None:
        """Let `send` go on."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    # -- the caller's side ---------------------------------------------------------------------------------------

    def expired(self) -> None:
        """End the call: its deadline passed."""
        self._bucket = None
        if self._end is False:
            self._stop(RemoteError(Code.DEADLINE_EXCEEDED, "Deadline Exceeded", unsent=self.stream is None))

    def _stop(self, error: RemoteError) -> None:
        self._finish(error)
        self._let_go()

    def _let_go(self) -> None:
        """Close the stream where the peer ended its side first: what still waits to be sent is for nobody."""
        if self._connection is not None and self.stream is not None and self.stream.state is not State.CLOSED:
            self._connection.reset(self.stream, ErrorCode.CANCEL)

    def cancel(self) -> None:
        """Give the call up if it still goes on; idempotent."""
        if self._bucket is not None:
            self._bucket.pop(self, None)
            self._bucket = None
        if self._end is False:
            self._stop(RemoteError(Code.CANCELLED, "the caller cancelled this call", unsent=self.stream is None))
        else:
            self._let_go()

    def failed(self, code: Code, text: str, *, transport_failed: bool = False) -> RemoteError:
        """Return an error that this side found."""
        return RemoteError(code, text, transport_failed=transport_failed)

    def _finish(self, error: RemoteError | None) -> None:
        if self._end is False:
            self._end = True if error is None else error
            self._wake()
            self.drained_all()
            self._channel.links.freed()

    def drained_all(self) -> None:
        """Let a waiting `send` see the end."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _give_back(self) -> None:
        if self._owed and self._connection is not None and self.stream is not None:
            self._connection.consumed(self.stream, self._owed)
            self._owed = 0

    async def next(self) -> bytes | None:
        """Return the next message, None after the last of a call that ended OK. Raises `RemoteError`."""
        while not self._messages:
            if self._end is not False:
                self._let_go()
                if self._end is True:
                    return None
                raise _again(self._end)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message = self._messages.popleft()
        if message.__class__ is Packed:
            message = await self._inflated(message)
        if not self._messages:
            self._give_back()
        return message

    async def _inflated(self, packed: bytes) -> bytes:
        assert self._connection is not None
        try:
            return await inflate(self._deframer.inflation(packed), self._connection.caller)
        except MeshError as error:
            self._stop(RemoteError(error.code, error.message))
            raise RemoteError(error.code, error.message) from None

    def _check_open(self) -> None:
        if self._end is not False:
            raise RemoteError(Code.CANCELLED, "the peer has ended this stream")

    def post(self, data: bytes) -> bool:
        """Send a piece if nothing waits before it and the call goes on."""
        if self._end is not False or self.stream is None or self._connection is None or self.stream.pending_bytes:
            return False
        self._connection.send_data(self.stream, data)
        return True

    async def send(self, data: bytes, *, end: bool) -> None:
        """Send a piece; waits while much waits for the peer. Raises `RemoteError` when the call is over."""
        assert self._connection is not None
        assert self.stream is not None
        self._check_open()
        if not self._connection.send_data(self.stream, data, end=end) and self.stream.pending_bytes > SEND_BUFFER:
            self._room = asyncio.get_running_loop().create_future()
            await self._room
            self._check_open()


def _again(error: RemoteError) -> RemoteError:
    """Return `error` for a caller. Raised itself it would keep the caller's frames, and these this call."""
    return RemoteError(
        error.status,
        error.message,
        transport_failed=error.transport_failed,
        unsent=error.unsent,
        trailers=error.trailers,
    )


class WireDuplex:
    """A `transport.Duplex` on the wire. The stream is opened by the first use."""

    def __init__(
        self,
        channel: WireChannel,
        method: str,
        metadata: Metadata,
        timeout_s: float | None,
        leaves: Leaves | None,
    ) -> None:
        self._channel = channel
        self._method = method
        self._metadata = metadata
        self._call = _Call(channel, timeout_s, leaves)
        self._timed = timeout_s is not None
        self._opening: asyncio.Lock = asyncio.Lock()

    async def _open(self) -> None:
        if self._call.stream is not None:
            return
        async with self._opening:
            if self._call.stream is not None:
                return
            connection = await self._call.connect()
            block = self._channel.block(self._method)
            if self._timed:
                block += timeout_field(self._call.left_s())
            self._call.begin(connection, connection.open(block + metadata_block(self._metadata), self._call))

    async def send(self, message: bytes) -> None:
        """Send one message; waits for flow control. Raises `RemoteError` when the stream is over."""
        await self._open()
        await self._call.send(framed(message), end=False)

    def post(self, message: bytes) -> bool:
        """Send one message at once; False when that would have to wait, and nothing was sent."""
        return self._call.post(framed(message))

    async def half_close(self) -> None:
        """Say that no more messages follow."""
        await self._open()
        await self._call.send(b"", end=True)

    async def receive(self) -> bytes | None:
        """Return the next message, None after the last one of a stream that ended OK. Raises `RemoteError`."""
        await self._open()
        return await self._call.next()

    def cancel(self) -> None:
        """Give the stream up; idempotent."""
        self._call.cancel()
