"""The calls that the wire does not answer itself, passed on to the process's own grpcio server on a local socket.

Stream by stream and as bytes: health, reflection, control and metadata stay ordinary grpcio services, on one port with
the hot methods.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import grpc

from mesh.core.errors import Code, MeshError
from mesh.wire.connection import LOST, Connection
from mesh.wire.endpoint import Flusher
from mesh.wire.flow import Bounds
from mesh.wire.header_cache import Block
from mesh.wire.pool import Links
from mesh.wire.relay import Relay, raw_block
from mesh.wire.server_call import refuse
from mesh.wire.streams import Stream
from mesh.wire.transport import Limits

SOCKET: Final = "grpc.sock"


class Behind:
    """The grpcio server behind the wire, and the connections to it."""

    def __init__(self, services: Sequence[grpc.GenericRpcHandler[Any, Any]], limits: Limits, bounds: Bounds) -> None:
        self._services = services
        self._limits = limits
        self._bounds = bounds
        self._server: grpc.aio.Server | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._links: Links | None = None
        self._joining: set[asyncio.Task[None]] = set()

    async def start(self, flusher: Flusher) -> None:
        """Listen on a socket in a folder that only this user may enter."""
        self._folder = tempfile.TemporaryDirectory(prefix="mesh-")
        path = Path(self._folder.name) / SOCKET
        options = [
            ("grpc.max_receive_message_length", self._limits.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", self._bounds.max_header_list),
            # Our own keepalive and limits stand in front.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers(list(self._services))
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        self._server = server
        self._links = Links(f"unix:{path}", flusher=flusher, bounds=self._bounds)
        await self._links.connection()

    async def stop(self, grace_s: float) -> None:
        """Finish the calls in flight within `grace_s` seconds, then close."""
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None
        for task in self._joining:
            task.cancel()
        if self._links is not None:
            await self._links.close(0)
            self._links = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def splice(self, connection: Connection, stream: Stream, block: Block, *, end: bool) -> Spliced:
        """Return the receiver that passes this call on."""
        relay = Spliced(connection, stream)
        ready = self._links.ready() if self._links is not None else None
        if ready is not None:
            relay.join(ready, ready.open(raw_block(block), relay, end=end))
        else:
            task = asyncio.get_running_loop().create_task(self._later(relay, block, end=end))
            self._joining.add(task)
            task.add_done_callback(self._joining.discard)
        return relay

    async def _later(self, relay: Spliced, block: Block, *, end: bool) -> None:
        """Pass a call on once there is a connection again."""
        try:
            if self._links is None:
                refuse(relay.down_connection, relay.down, Code.UNAVAILABLE, "the server is stopping")
                return
            connection = await self._links.connection()
        except MeshError as error:
            refuse(relay.down_connection, relay.down, Code.UNAVAILABLE, error.message)
            return
        relay.catch_up(connection, connection.open(raw_block(block), relay, end=end))


class Spliced(Relay):
    """A call on its way to the services behind."""

    __slots__ = ("_early",)

    def __init__(self, down_connection: Connection, down: Stream) -> None:
        super().__init__(down_connection, down)
        self._early: list[tuple[bytes, bool]] = []

    def data(self, stream: Stream, data: bytes, end: bool) -> None:
        """Pass on a piece, or keep it until there is somebody: at most the stream's window."""
        if self.up is None:
            self._early.append((data, end))
        else:
            super().data(stream, data, end)

    def catch_up(self, connection: Connection, up: Stream) -> None:
        """Pass on what came before `up` was there."""
        self.join(connection, up)
        for data, end in self._early:
            super().data(self.down, data, end)
        self._early.clear()

    def reset(self, stream: Stream, code: int) -> None:
        """Tell the caller in gRPC's words when the services went away."""
        if stream is not self.down and code == LOST and not self.answered:
            refuse(self.down_connection, self.down, Code.UNAVAILABLE, "the server is stopping")
        else:
            super().reset(stream, code)
