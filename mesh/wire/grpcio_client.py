"""The grpcio engine, client side: calls on bytes over one `grpc.aio` channel per address."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc

from mesh.api.status import metadata_pairs, remote_error
from mesh.core.errors import Code, RemoteError
from mesh.wire.transport import LOAD_TRAILER, Leaves, Limits, Metadata, Reply, TlsConfig


class GrpcioChannel:
    """A `transport.Channel` on grpc.aio."""

    def __init__(self, address: str, *, limits: Limits, tls: TlsConfig | None = None) -> None:
        options = [
            ("grpc.max_receive_message_length", limits.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            # Retries are the router's, with the view and a budget: grpcio's own would hide a lost node from it.
            ("grpc.enable_retries", 0),
            # A node that comes back on its port is found within a second.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            # How long one attempt to connect may take, despite its name; refusals are tried again as above says.
            ("grpc.min_reconnect_backoff_ms", 10_000),
            # A peer that vanished without a FIN (power, network) is noticed within 30 s.
            ("grpc.keepalive_time_ms", 20_000),
            # grpcio 1.85 waits 60 s for a ping's answer unless both of these say less.
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.ping_timeout_ms", 10_000),
            # Channels to one address must not share one connection through grpcio's global pool.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self.address = address
        # Any: the published stubs of grpcio know neither bytes channels nor their defaults.
        self._channel: Any
        if tls is None:
            self._channel = grpc.aio.insecure_channel(address, options=options)
        else:
            self._channel = grpc.aio.secure_channel(address, _credentials(tls), options=options)
        self._unary: dict[str, Any] = {}

    async def unary(
        self, method: str, message: bytes, *, metadata: Metadata, timeout_s: float | None, leaves: Leaves | None = None
    ) -> Reply:
        """Call `method`. Raises `RemoteError`. Cancelling the task cancels the call at the peer. `leaves` is unused."""
        del leaves
        callable_ = self._unary.get(method)
        if callable_ is None:
            callable_ = self._unary[method] = self._channel.unary_unary(method)
        call = callable_(message, timeout=timeout_s, metadata=metadata or None)
        try:
            reply = await call
            return Reply(reply, metadata_pairs(await call.trailing_metadata()))
        except grpc.RpcError as error:
            raise remote_error(error, answered_key=LOAD_TRAILER) from error

    def stream(
        self, method: str, *, metadata: Metadata, timeout_s: float | None, leaves: Leaves | None = None
    ) -> _GrpcioDuplex:
        """Open a two-way stream. `leaves` is unused."""
        del leaves
        return _GrpcioDuplex(self._channel.stream_stream(method)(timeout=timeout_s, metadata=metadata or None))

    async def close(self, grace_s: float) -> None:
        """Take no more calls, wait at most `grace_s` seconds for those in flight, then close the connection."""
        await self._channel.close(grace_s)

    def __repr__(self) -> str:
        """Show the address."""
        return f"<GrpcioChannel {self.address}>"


class _GrpcioDuplex:
    def __init__(self, call: Any) -> None:
        self._call = call

    async def send(self, message: bytes) -> None:
        try:
            await self._call.write(message)
        except grpc.RpcError as error:
            raise remote_error(error, answered_key=LOAD_TRAILER) from error
        except asyncio.InvalidStateError as error:
            # grpcio's word for a write after the peer ended the stream; receive() tells the status.
            raise RemoteError(Code.CANCELLED, "the peer has ended this stream") from error

    def post(self, message: bytes) -> bool:
        return False

    async def half_close(self) -> None:
        await self._call.done_writing()

    async def receive(self) -> bytes | None:
        try:
            message = await self._call.read()
        except grpc.RpcError as error:
            raise remote_error(error, answered_key=LOAD_TRAILER) from error
        return message if isinstance(message, bytes) else None

    def cancel(self) -> None:
        self._call.cancel()


def _credentials(tls: TlsConfig) -> grpc.ChannelCredentials:
    def read(path: str | None) -> bytes | None:
        return Path(path).read_bytes() if path else None

    return grpc.ssl_channel_credentials(
        root_certificates=read(tls.ca), private_key=read(tls.key), certificate_chain=read(tls.cert)
    )
