"""One call passed on from a stream to another, both ways, as the bytes it came in.

Nothing is kept: what the far side has no window for is not given back to the near side's, so the slowest side slows
the fastest.
"""

from __future__ import annotations

from mesh.core.errors import Code
from mesh.wire.connection import LOST, OVERSIZED, STOPPED, Connection
from mesh.wire.fields import Block
from mesh.wire.frames import ErrorCode
from mesh.wire.server_call import refuse
from mesh.wire.streams import MAY_SEND, State, Stream


def raw_block(block: Block) -> bytes:
    """Return HPACK bytes for the fields of `block`, which no table is needed for. Cached on the block."""
    kept = block.kept
    if kept.__class__ is not bytes:
        kept = block.kept = b"".join([field.raw for field in block.fields])
    return kept


class Relay:
    """The receiver of both streams: `down` is the caller's, `up` the one asked."""

    __slots__ = ("answered", "down", "down_connection", "owed_down", "owed_up", "up", "up_connection")

    def __init__(self, down_connection: Connection, down: Stream) -> None:
        self.down_connection = down_connection
        self.down = down
        self.up_connection: Connection | None = None
        self.up: Stream | None = None
        self.answered = False
        """Whether the caller has been sent anything."""
        self.owed_down = 0
        """Bytes of the caller's that wait for the far side."""
        self.owed_up = 0

    def join(self, connection: Connection, up: Stream) -> None:
        """Go on to `up`."""
        self.up_connection, self.up = connection, up

    def headers(self, stream: Stream, block: Block, end: bool) -> None:
        """Pass on headers or trailers."""
        if stream is self.down:
            self.data(stream, b"", end)
            return
        self.answered = True
        self.down_connection.send_headers(self.down, raw_block(block), end=end)
        if end:
            self.over()

    def data(self, stream: Stream, data: bytes, end: bool) -> None:
        """Pass on a piece of the body."""
        size = len(data)
        if stream is self.down:
            assert self.up is not None
            assert self.up_connection is not None
            if self.up_connection.send_data(self.up, data, end=end):
                self.down_connection.consumed(stream, size)
            else:
                self.owed_down += size
            return
        assert self.up_connection is not None
        self.answered = True
        if self.down_connection.send_data(self.down, data, end=end):
            self.up_connection.consumed(stream, size)
        else:
            self.owed_up += size
        if end:
            self.over()

    def drained(self, stream: Stream) -> None:
        """Give back what has gone on."""
        if stream is self.up:
            owed, self.owed_down = self.owed_down, 0
            self.down_connection.consumed(self.down, owed)
        elif self.up is not None and self.up_connection is not None:
            owed, self.owed_up = self.owed_up, 0
            self.up_connection.consumed(self.up, owed)

    def silent(self, stream: Stream, *, long: bool) -> None:
        """Wait: nobody else could answer."""

    def reset(self, stream: Stream, code: int) -> None:
        """Pass on a reset; a lost connection becomes one for the caller."""
        if stream is self.down:
            if self.up is not None and self.up_connection is not None:
                self.up_connection.reset(self.up, ErrorCode.CANCEL)
            if code == STOPPED:
                if self.answered:
                    self.down_connection.reset(self.down, ErrorCode.CANCEL)
                else:
                    refuse(self.down_connection, self.down, Code.UNAVAILABLE, "the server stopped before the answer")
        elif code == OVERSIZED and not self.answered:
            text = "the answer's headers or trailers were more than are taken"
            refuse(self.down_connection, self.down, Code.RESOURCE_EXHAUSTED, text)
        elif MAY_SEND[self.down.state]:
            code = ErrorCode.ENHANCE_YOUR_CALM if code == OVERSIZED else code
            self.down_connection.reset(self.down, ErrorCode.INTERNAL_ERROR if code == LOST else code)

    def over(self) -> None:
        """Both ways are done, or the answer came before the end of the question: stop the rest."""
        if self.up is not None and self.up_connection is not None and self.up.state is not State.CLOSED:
            self.up_connection.reset(self.up, ErrorCode.CANCEL)
        if self.down.state is State.HALF_CLOSED_LOCAL:
            self.down_connection.reset(self.down, ErrorCode.NO_ERROR)
