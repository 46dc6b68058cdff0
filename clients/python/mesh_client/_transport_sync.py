"""The sync half of the pair that is written by hand: a channel and a two-way stream on grpc."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc

from mesh.api.messages import ModelInferRequest, ModelStreamInferResponse

from ._common import STREAM_METHOD, Method, credentials, options
from ._errors import MeshClientError, closed, error_of, half_closed, left, over
from ._values import Tls

Pairs = tuple[tuple[str, str | bytes], ...] | None

UNSENT = 64
"""Requests that `send` hands over before the connection took them; then it waits."""

_LOOK_S = 0.1
"""How often a waiting `send` looks whether the stream is still open."""


def open_transport(transport: str, address: str, *, tls: Tls | None, max_message_bytes: int) -> SyncTransport:
    """Return the transport that is called so. Raises ValueError for another name than "grpcio"."""
    if transport != "grpcio":
        raise ValueError(f"expected transport 'grpcio', got {transport!r}: only AsyncClient has others")
    return SyncTransport(address, tls=tls, max_message_bytes=max_message_bytes)


def pause(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


class SyncTransport:
    """One channel."""

    def __init__(self, address: str, *, tls: Tls | None, max_message_bytes: int) -> None:
        self._address = address
        if tls is None:
            self._channel = grpc.insecure_channel(address, options=options(max_message_bytes))
        else:
            self._channel = grpc.secure_channel(address, credentials(tls), options=options(max_message_bytes))

    def call(self, method: Method, request: Any, *, metadata: Pairs, timeout_s: float | None) -> Any:
        """Return the answer. Raises `MeshClientError`."""
        call = self._channel.unary_unary(
            method.path,
            request_serializer=type(request).SerializeToString,
            response_deserializer=method.response.FromString,
        )
        try:
            return call(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise _error(error, self._address) from error
        except ValueError as error:
            # grpcio's word for a call on a closed channel.
            raise closed(self._address) from error

    def stream(self, *, metadata: Pairs, timeout_s: float | None) -> SyncDuplex:
        """Open a two-way stream. Raises `Cancelled` on a closed channel."""
        call = self._channel.stream_stream(
            STREAM_METHOD,
            request_serializer=ModelInferRequest.SerializeToString,
            response_deserializer=ModelStreamInferResponse.FromString,
        )
        try:
            return SyncDuplex(call, metadata, timeout_s, self._address)
        except ValueError as error:
            raise closed(self._address) from error

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class SyncDuplex:
    """One ModelStreamInfer call. grpc reads the requests from a queue in a thread of its own."""

    def __init__(self, call: Any, metadata: Pairs, timeout_s: float | None, address: str) -> None:
        self._address = address
        self._requests: queue.Queue[ModelInferRequest | None] = queue.Queue(UNSENT)
        self._half_closed = False
        self._left = False
        self._call = call(_feed(self._requests), timeout=timeout_s, metadata=metadata)
        # Whatever ends the call ends the feeding thread, also when nobody leaves the stream's context.
        if not self._call.add_callback(self._let_feed_end):
            self._let_feed_end()

    def send(self, request: ModelInferRequest) -> None:
        """Send; waits while `UNSENT` requests are on their way. Raises what ended the call, if it ended."""
        if self._half_closed:
            raise half_closed(self._address)
        while True:
            if not self._call.is_active():
                raise self._status()
            try:
                return self._requests.put(request, timeout=_LOOK_S)
            except queue.Full:
                continue

    def receive(self) -> ModelStreamInferResponse | None:
        """Return the next message; None at the end."""
        try:
            message: ModelStreamInferResponse | None = next(self._call, None)
        except grpc.RpcError as error:
            raise self._status() from error
        return message

    def half_close(self) -> None:
        """Say that nothing more is sent; waits as `send` does."""
        self._half_closed = True
        while self._call.is_active():
            with suppress(queue.Full):
                self._requests.put(None, timeout=_LOOK_S)
                break

    def cancel(self) -> None:
        """Give it up."""
        self._left = True
        self._call.cancel()

    def _let_feed_end(self) -> None:
        """Put the end into the queue; what is unsent belongs to a call that is over, and makes room for it."""
        while True:
            try:
                return self._requests.put_nowait(None)
            except queue.Full:
                with suppress(queue.Empty):
                    self._requests.get_nowait()

    def _status(self) -> MeshClientError:
        code = self._call.code()
        if code is grpc.StatusCode.OK:
            return over(self._address)
        if self._left and code is grpc.StatusCode.CANCELLED:
            return left(self._address)
        return _error(self._call, self._address)


def _feed(requests: queue.Queue[ModelInferRequest | None]) -> Iterator[ModelInferRequest]:
    """Yield what is to be sent. It knows the queue alone, so that a forgotten stream can be collected."""
    while (request := requests.get()) is not None:
        yield request


def _error(error: Any, address: str) -> MeshClientError:
    return error_of(error.code().value[0], error.details() or "", address, error.trailing_metadata())
