"""The async transport on the mesh's own HTTP/2 instead of grpc.aio: several times less CPU per call, asyncio alone.

Chosen by ``AsyncClient(transport="wire")``; needs the package `hpack` (the extra ``wire``).
"""

from __future__ import annotations

from typing import Any

from mesh.api.messages import ModelInferRequest, ModelStreamInferResponse
from mesh.core.errors import Code, RemoteError
from mesh.wire.client import WireChannel, WireDuplex
from mesh.wire.transport import Limits, TlsConfig

from ._common import STREAM_METHOD, Method
from ._errors import MeshClientError, closed, error_of, half_closed, left
from ._values import Tls

Pairs = tuple[tuple[str, str | bytes], ...] | None


class WireTransport:
    """One channel. It belongs to the event loop of its first call."""

    def __init__(self, address: str, *, tls: Tls | None, max_message_bytes: int) -> None:
        self._address = address
        self._tls = None if tls is None else TlsConfig(cert=tls.cert, key=tls.key, ca=tls.ca)
        self._limits = Limits(max_message_bytes=max_message_bytes)
        self._channel: WireChannel | None = None
        self._closed = False

    def _open(self) -> WireChannel:
        if self._closed:
            raise closed(self._address)
        if self._channel is None:
            self._channel = WireChannel(self._address, limits=self._limits, tls=self._tls)
        return self._channel

    async def call(self, method: Method, request: Any, *, metadata: Pairs, timeout_s: float | None) -> Any:
        """Return the answer. Raises `MeshClientError`. Cancelling it cancels the call at the server."""
        try:
            reply = await self._open().unary(
                method.path, request.SerializeToString(), metadata=metadata or (), timeout_s=timeout_s
            )
        except RemoteError as error:
            if self._closed:
                raise closed(self._address) from error
            raise _error(error, self._address) from error
        return method.response.FromString(reply.message)

    def stream(self, *, metadata: Pairs, timeout_s: float | None) -> WireStream:
        """Open a two-way stream. Raises `Cancelled` on a closed channel."""
        duplex = self._open().stream(STREAM_METHOD, metadata=metadata or (), timeout_s=timeout_s)
        return WireStream(duplex, self._address)

    async def close(self) -> None:
        """Close the channel."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close(0)


class WireStream:
    """One ModelStreamInfer call."""

    def __init__(self, duplex: WireDuplex, address: str) -> None:
        self._duplex = duplex
        self._address = address
        self._half_closed = False
        self._left = False

    async def send(self, request: ModelInferRequest) -> None:
        """Send; waits for flow control. Raises what ended the call, if it ended."""
        if self._half_closed:
            raise half_closed(self._address)
        try:
            await self._duplex.send(request.SerializeToString())
        except RemoteError as error:
            raise self._told(error) from error

    async def receive(self) -> ModelStreamInferResponse | None:
        """Return the next message; None at the end."""
        try:
            message = await self._duplex.receive()
        except RemoteError as error:
            raise self._told(error) from error
        return None if message is None else ModelStreamInferResponse.FromString(message)

    async def half_close(self) -> None:
        """Say that nothing more is sent."""
        self._half_closed = True
        try:
            await self._duplex.half_close()
        except RemoteError as error:
            if error.status is not Code.CANCELLED:
                raise self._told(error) from error
            # How a call ended is for `receive` to tell.

    def cancel(self) -> None:
        """Give it up."""
        self._left = True
        self._duplex.cancel()

    def _told(self, error: RemoteError) -> MeshClientError:
        return left(self._address) if self._left else _error(error, self._address)


def _error(error: RemoteError, address: str) -> MeshClientError:
    return error_of(int(error.status), error.message, address, error.trailers)
