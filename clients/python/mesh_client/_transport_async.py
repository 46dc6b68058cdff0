"""The async half of the pair that is written by hand: a channel and a two-way stream on grpc.aio."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc

from mesh.api.messages import ModelInferRequest, ModelStreamInferResponse
from mesh.core.errors import Code

from ._common import STREAM_METHOD, Method, credentials, options
from ._errors import MeshClientError, closed, error_of, half_closed, left, over
from ._values import Tls

Pairs = tuple[tuple[str, str | bytes], ...] | None


def open_transport(transport: str, address: str, *, tls: Tls | None, max_message_bytes: int) -> Any:
    """Return the transport that is called so. Raises ValueError for another name, ImportError without its packages."""
    if transport == "grpcio":
        return AsyncTransport(address, tls=tls, max_message_bytes=max_message_bytes)
    if transport != "wire":
        raise ValueError(f"expected transport 'grpcio' or 'wire', got {transport!r}")
    try:
        from ._transport_wire import WireTransport  # noqa: PLC0415 - its packages are optional
    except ImportError as error:
        raise ImportError(f"transport='wire' needs the extra 'wire': pip install hpack ({error})") from error
    return WireTransport(address, tls=tls, max_message_bytes=max_message_bytes)


async def pause(seconds: float) -> None:
    """Wait."""
    await asyncio.sleep(seconds)


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
            if self._closed and not _cancelling():
                # The channel was closed under the call; nobody cancelled the caller.
                raise closed(self._address) from error
            raise

    def stream(self, *, metadata: Pairs, timeout_s: float | None) -> AsyncDuplex:
        """Open a two-way stream. Raises `Cancelled` on a closed channel."""
        call = self._channel.stream_stream(
            STREAM_METHOD,
            request_serializer=ModelInferRequest.SerializeToString,
            response_deserializer=ModelStreamInferResponse.FromString,
        )
        try:
            return AsyncDuplex(call(timeout=timeout_s, metadata=metadata), self._address)
        except grpc.aio.UsageError as error:
            raise closed(self._address) from error

    async def close(self) -> None:
        """Close the channel."""
        self._closed = True
        await self._channel.close()


_BROKEN = "Internal error from Core"
"""How grpc.aio words a write to a connection that broke a moment ago, as INTERNAL."""


class AsyncDuplex:
    """One ModelStreamInfer call. Cancelling any of its methods gives the whole call up: grpc.aio knows nothing less."""

    def __init__(self, call: Any, address: str) -> None:
        self._call = call
        self._address = address
        self._half_closed = False
        self._begun = False
        self._over = asyncio.Event()
        call.add_done_callback(lambda _: self._over.set())

    async def send(self, request: ModelInferRequest) -> None:
        """Send; waits for flow control. Raises what ended the call, if it ended."""
        if self._half_closed:
            raise half_closed(self._address)
        with self._errors():
            await self._begin()
            try:
                await self._call.write(request)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                # The call ended before or under the write: its own status says why, the write does not.
                raise await self._status() from error

    async def receive(self) -> ModelStreamInferResponse | None:
        """Return the next message; None at the end."""
        with self._errors():
            message = await self._call.read()
        return message if isinstance(message, ModelStreamInferResponse) else None

    async def half_close(self) -> None:
        """Say that nothing more is sent."""
        self._half_closed = True
        with self._errors(), suppress(grpc.aio.AioRpcError):
            # How a call ended is for `receive` to tell.
            await self._begin()
            await self._call.done_writing()

    def cancel(self) -> None:
        """Give it up."""
        self._call.cancel()

    async def _begin(self) -> None:
        """Wait until the call began or ended.

        grpc.aio fails inside when it half-closes what has not begun, and waits for ever to write to what was cancelled
        before it began.
        """
        if self._begun:
            return
        waits = [asyncio.ensure_future(self._call.wait_for_connection()), asyncio.ensure_future(self._over.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            self._begun = True
        except asyncio.CancelledError:
            self._call.cancel()
            raise
        finally:
            for each in waits:
                each.cancel()
            # Both are over now; what they raised is told by the call's status.
            await asyncio.gather(*waits, return_exceptions=True)

    async def _status(self) -> MeshClientError:
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            return over(self._address)
        if self._call.cancelled():
            return left(self._address)
        details = await self._call.details() or ""
        if details == _BROKEN:
            return error_of(Code.UNAVAILABLE, f"the connection to {self._address} was lost", self._address)
        return error_of(code.value[0], details, self._address, await self._call.trailing_metadata())

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise _error(error, self._address) from error
        except asyncio.CancelledError as error:
            if not _cancelling():
                # grpc.aio's word for a call that was given up; nobody cancelled the caller.
                raise left(self._address) from error
            raise


def _cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _error(error: grpc.aio.AioRpcError, address: str) -> MeshClientError:
    return error_of(error.code().value[0], error.details() or "", address, error.trailing_metadata())
