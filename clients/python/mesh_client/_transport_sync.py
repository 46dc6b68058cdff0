"""The sync half of the pair that is written by hand: a channel and a two-way stream on grpc."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import grpc

from mesh.api.messages import ModelInferRequest, ModelStreamInferResponse

from ._common import STREAM_METHOD, Method, credentials, options
from ._errors import MeshClientError, closed, error_of
from ._values import Tls

Pairs = tuple[tuple[str, str | bytes], ...] | None

UNSENT = 64
"""Requests that `send` hands over before the connection took them; then it waits."""

_LOOK_S = 0.1
"""How often a waiting `send` looks whether the stream is still open."""


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
        """Open a two-way stream."""
        call = self._channel.stream_stream(
            STREAM_METHOD,
            request_serializer=ModelInferRequest.SerializeToString,
            response_deserializer=ModelStreamInferResponse.FromString,
        )
        return SyncDuplex(call, metadata, timeout_s, self._address)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class SyncDuplex:
    """One ModelStreamInfer call. grpc reads the requests from a queue in a thread of its own."""

    def __init__(self, call: Any, metadata: Pairs, timeout_s: float | None, address: str) -> None:
        self._address = address
        self._requests: queue.Queue[ModelInferRequest | None] = queue.Queue(UNSENT)
        self._call = call(self._feed(), timeout=timeout_s, metadata=metadata)

    def _feed(self) -> Iterator[ModelInferRequest]:
        while (request := self._requests.get()) is not None:
            yield request

    def send(self, request: ModelInferRequest) -> None:
        """Send; waits while `UNSENT` requests are on their way."""
        while True:
            if not self._call.is_active():
                raise MeshClientError("this stream is over")
            try:
                return self._requests.put(request, timeout=_LOOK_S)
            except queue.Full:
                continue

    def receive(self) -> ModelStreamInferResponse | None:
        """Return the next message; None at the end."""
        try:
            message: ModelStreamInferResponse | None = next(self._call, None)
        except grpc.RpcError as error:
            raise _error(error, self._address) from error
        return message

    def half_close(self) -> None:
        """Say that nothing more is sent."""
        self._end()

    def cancel(self) -> None:
        """Give it up."""
        self._call.cancel()
        self._end()

    def _end(self) -> None:
        """Let the feeding thread end; a full queue belongs to a stream that is over, and is emptied."""
        while True:
            try:
                return self._requests.put(None, timeout=_LOOK_S)
            except queue.Full:
                if not self._call.is_active():
                    while not self._requests.empty():
                        self._requests.get_nowait()


def _error(error: Any, address: str) -> MeshClientError:
    return error_of(error.code().value[0], error.details() or "", address)
