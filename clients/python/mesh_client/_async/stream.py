"""A two-way stream: many requests, to any models, over one call."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from mesh_client._errors import MeshClientError, StreamError
from mesh_client._transport_async import AsyncDuplex
from mesh_client._values import InferResult, Inputs, Parameter, request_of, result_of


class AsyncStream:
    """Send requests and receive results in request order; models with several responses interleave theirs.

    A request that fails comes back as a raised `StreamError` from `receive` or `infer`, and the stream goes on: the
    next `receive` gives the next result. A request that raises `InvalidInput` was not sent. Other errors say what ended
    the stream. Use it as a context: leaving it gives up what was not received, and so does cancelling a method that
    waits.
    """

    def __init__(self, duplex: AsyncDuplex) -> None:
        self._duplex = duplex
        self._ids = itertools.count(1)
        self._ended = False

    async def send(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str = "",
        id: str = "",  # noqa: A002 - the protocol's word
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Parameter] | None = None,
    ) -> str:
        """Send one request and return its id, which its results carry; without `id` one is made.

        Waits while the mesh is behind. Raises `InvalidInput` before anything is sent.
        """
        id = id or f"mesh-{next(self._ids)}"  # noqa: A001 - the protocol's word
        request = request_of(model, inputs, version=version, id=id, outputs=outputs, parameters=parameters)
        await self._duplex.send(request)
        return id

    async def receive(self) -> InferResult | None:
        """Return the next result, None after the last one of a stream that was half-closed.

        Raises `StreamError` for a request that failed; the stream goes on.
        """
        if self._ended:
            return None
        message = await self._duplex.receive()
        if message is None:
            self._ended = True
            return None
        if message.error_message:
            raise StreamError(message.error_message, message.infer_response.id)
        return result_of(message.infer_response)

    async def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str = "",
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Parameter] | None = None,
    ) -> InferResult:
        """Send one request and return its result: for conversations, where each request needs the answer before it.

        Every earlier request must have been received. Raises `StreamError` when it failed.
        """
        sent = await self.send(model, inputs, version=version, outputs=outputs, parameters=parameters)
        result = await self.receive()
        if result is None:
            raise MeshClientError("the stream ended before this request was answered")
        if result.id != sent:
            raise MeshClientError(
                f"expected the result of request {sent}, got {result.id}: receive earlier results first"
            )
        return result

    async def half_close(self) -> None:
        """Say that nothing more is sent; results still arrive."""
        await self._duplex.half_close()

    async def __aiter__(self) -> AsyncIterator[InferResult]:
        """Iterate over the results that are left. A failed request raises `StreamError`; iterate again to go on."""
        while (result := await self.receive()) is not None:
            yield result

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give up what was not received."""
        self._duplex.cancel()
