"""ModelStreamInfer on the router: message by message, each to its own model.

Ordinary models answer in request order; several-response ("decoupled") models as their responses come. A failed
request is a message with its error, and the stream goes on, unless the caller asked for a real status by metadata
``triton_grpc_error: true`` (Triton's rule).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any

from mesh.api.stream import error_message, final_message
from mesh.core.errors import InvalidRequest, MeshError, let_go
from mesh.core.traffic.retry import Tries
from mesh.router.dispatch import Dispatch
from mesh.router.relay import relay
from mesh.router.several import Several
from mesh.router.target import Target
from mesh.telemetry.metrics import RouterMetrics
from mesh.wire.peek import Peeked, peek
from mesh.wire.step_front import StepFronts
from mesh.wire.stream_order import Answer, Interleaved, Ordered, answer_stream
from mesh.wire.transport import UNORDERED_HEADER, Call

WINDOW = 64
"""Requests of one stream being answered at a time. Enough to fill a batch of 64; beyond it the caller waits."""


class Streams:
    """Answers streams with the parts of `Dispatch`."""

    def __init__(self, dispatch: Dispatch, metrics: RouterMetrics) -> None:
        self.dispatch = dispatch
        self.metrics = metrics
        self._pipelines = Several(self)
        self.fronts = StepFronts()

    async def stream(self, call: Call, messages: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """Answer one ModelStreamInfer. Cancelling it cancels the requests in flight at their nodes."""
        strict, unordered = call.meta("triton_grpc_error") == "true", call.meta(UNORDERED_HEADER) == "true"
        turns: dict[tuple[str, str], asyncio.Event] = {}

        def answer(message: bytes) -> Answer:
            self.metrics.stream_message("request")
            try:
                request = peek(message)
                if unordered:
                    check_id(request)
                target = self.dispatch.target(call, request)
            except MeshError as error:
                return Ordered(_failed(error, _id(message), strict=strict))
            if target.model.decoupled:
                return Interleaved(self.several(call, message, request, target, strict=strict))
            sequence = str(request.parameters.get("sequence_id") or "")
            one: Callable[[], Coroutine[Any, Any, bytes]] = partial(self.one, call, message, request, strict=strict)
            if sequence:
                one = in_turn(turns, (target.model.name, sequence), one)
            return Interleaved(_alone(one())) if unordered else Ordered(one())

        self.metrics.stream_opened()
        try:
            async with aclosing(answer_stream(messages, answer, window=WINDOW)) as responses:
                async for response in responses:
                    self.metrics.stream_message("response")
                    yield response
        finally:
            self.metrics.stream_closed()

    async def one(
        self,
        call: Call,
        message: bytes,
        request: Peeked,
        *,
        strict: bool,
        traced: bool | None = None,
        tries: Tries | None = None,
    ) -> bytes:
        """Return the message that answers one request; `traced` and `tries` as in `Dispatch.observe`."""
        try:
            with self.dispatch.observe(call, traced=traced, tries=tries) as seen:
                return final_message(await self.dispatch.answer(call, message, request, seen))
        except MeshError as error:
            return await _failed(error, request.id, strict=strict)

    async def several(
        self, call: Call, message: bytes, request: Peeked, target: Target, *, strict: bool
    ) -> AsyncGenerator[bytes]:
        """Yield the messages that answer one request of a several-response version or pipeline."""
        try:
            async with aclosing(self.responses(call, message, request, target)) as responses:
                async for response in responses:
                    yield response
        except MeshError as error:
            yield await _failed(error, request.id, strict=strict)

    async def responses(
        self, call: Call, message: bytes, request: Peeked, target: Target, tries: Tries | None = None
    ) -> AsyncGenerator[bytes]:
        """Yield what `several` does, but raise a `MeshError` for a request that failed."""
        with self.dispatch.observe(call, tries=tries) as seen:
            seen.model = target.model
            found = (
                relay(self.dispatch, call, message, request, seen)
                if target.pipeline is None
                else self._pipelines.responses(call, message, target, seen)
            )
            async with aclosing(found) as responses:
                async for response in responses:
                    yield response


def in_turn(
    turns: dict[tuple[str, str], asyncio.Event], key: tuple[str, str], one: Callable[[], Awaitable[bytes]]
) -> Callable[[], Coroutine[Any, Any, bytes]]:
    """Return `one`, to be called and awaited after the request of the same sequence before it, which is in `turns`.

    The order of a sequence's requests is its meaning, while requests of a stream are otherwise answered side by side.
    """
    before, done = turns.get(key), asyncio.Event()
    turns[key] = done

    async def wait_and_answer() -> bytes:
        try:
            if before is not None:
                await before.wait()
            return await one()
        finally:
            done.set()
            if turns.get(key) is done:
                del turns[key]

    return wait_and_answer


async def _alone(one: Awaitable[bytes]) -> AsyncGenerator[bytes]:
    """Yield one answer."""
    yield await one


def check_id(request: Peeked) -> None:
    """Raise `InvalidRequest` for a request of an unordered stream whose answer nobody could tell from others."""
    if not request.id:
        raise InvalidRequest(f"expected an id in each request of a stream with {UNORDERED_HEADER}, got none")


def _id(message: bytes) -> str:
    """Return the id of a request that could not be routed, empty when it cannot be read either."""
    try:
        return peek(message).id
    except MeshError:
        return ""


async def _failed(error: MeshError, request_id: str, *, strict: bool) -> bytes:
    """Return the error as a stream message, or raise it where the caller asked for a status."""
    if strict:
        raise error
    let_go(error)
    return error_message(error, request_id)
