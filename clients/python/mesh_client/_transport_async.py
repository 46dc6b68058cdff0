"""The async half of the pair that is written by hand: a channel and a two-way stream on grpc.aio."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from mesh.api.messages import ModelInferRequest, ModelStreamInferResponse

from ._common import STREAM_METHOD, Method, credentials, options
from ._errors import MeshClientError, closed, error_of
from ._values import Tls

Pairs = tuple[tuple[str, str | bytes], ...] | None


class AsyncTransport:
    """One channel."""

    def __init__(self, address: str, *, tls: Tls | None, max_message_bytes: int) -> None:
        self._address = address
        self._closed = False
        self._channel: Any
        if tls is None:
            self._channel = grpc.aio.insecure_channel(address, options=options(max_message_bytes))
        else:
            self._channel = grpc.aio.secure_channel(address, credentials(tls), options=options(max_message_bytes))

    async def call(self, method: Method, request: Any, *, metadata: Pairs, timeout_s: float | None) -> Any:
        """Return the answer. Raises `MeshClientError`. Cancelling it cancels the call at the server."""
        call = self._channel.unary_unary(
            method.path,
            request_serializer=type(request).SerializeToString,
            response_deserializer=method.response.FromString,
        )
        try:
            return await call(request, timeout=timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise _error(error, self._address) from error
        except grpc.aio.UsageError as error:
            raise closed(self._address) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                # The channel was closed under the call; nobody cancelled the caller.
                raise closed(self._address) from error
            raise

    def stream(self, *, metadata: Pairs, timeout_s: float | None) -> AsyncDuplex:
        """Open a two-way stream."""
        call = self._channel.stream_stream(
            STREAM_METHOD,
            request_serializer=ModelInferRequest.SerializeToString,
            response_deserializer=ModelStreamInferResponse.FromString,
        )
        return AsyncDuplex(call(timeout=timeout_s, metadata=metadata), self._address)

    async def close(self) -> None:
        """Close the channel."""
        self._closed = True
        await self._channel.close()


class AsyncDuplex:
    """One ModelStreamInfer call."""

    def __init__(self, call: Any, address: str) -> None:
        self._call = call
        self._address = address

    async def send(self, request: ModelInferRequest) -> None:
        """Send; waits for flow control."""
        try:
            await self._call.write(request)
        except grpc.aio.AioRpcError as error:
            raise _error(error, self._address) from error
        except grpc.aio.UsageError as error:
            raise MeshClientError(f"this stream is over: {error}") from error

    async def receive(self) -> ModelStreamInferResponse | None:
        """Return the next message; None at the end."""
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise _error(error, self._address) from error
        return message if isinstance(message, ModelStreamInferResponse) else None

    async def half_close(self) -> None:
        """Say that nothing more is sent."""
        await self._call.done_writing()

    def cancel(self) -> None:
        """Give it up."""
        self._call.cancel()


def _error(error: grpc.aio.AioRpcError, address: str) -> MeshClientError:
    return error_of(error.code().value[0], error.details() or "", address)
