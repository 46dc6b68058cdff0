"""The responses of one request of a several-response version, as they are made: step by step, or by a generator."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from mesh.core.errors import MeshError
from mesh.node.item import Ran, model_failed
from mesh.node.runtimes.base import Request, Tensors
from mesh.node.sequence_item import SequenceItem
from mesh.node.sequences import SequenceBatcher
from mesh.node.served import Served

AHEAD: Final = 4
"""Responses that are made before the first of them is taken: enough to send and make at the same time."""

Response = tuple[Tensors, bytes]
"""Outputs, and the state behind them where that is told."""


async def responses(
    served: Served, inputs: Tensors, request: Request, deadline_s: float | None
) -> AsyncGenerator[Response]:
    """Yield the responses. Closing it stops the model at its next step. Raises `MeshError`."""
    made = _made(served, inputs, request, deadline_s)
    if served.in_order is not None:
        made = served.in_order.of(made)
    async with aclosing(made):
        async for response in made:
            yield response


async def _made(
    served: Served, inputs: Tensors, request: Request, deadline_s: float | None
) -> AsyncGenerator[Response]:
    queue = served.sequences
    if queue is None:
        apart = served.loaded.apart
        found = _by_generator(served, inputs, request) if apart is None else apart.responses(inputs, request)
        async with aclosing(found) as made:
            async for outputs in made:
                yield outputs, b""
        return
    steps = _Made(queue)
    steps.item = queue.submit(inputs, request, 1, steps, deadline_s=deadline_s, queue_timeout_s=None)
    try:
        while (response := await steps.next()) is not None:
            yield response
    finally:
        queue.withdraw(steps.item)


class _Made:
    """A `Generating` for a coroutine."""

    def __init__(self, queue: SequenceBatcher) -> None:
        self._queue = queue
        self.item: SequenceItem | None = None
        self._responses: deque[Response] = deque()
        self._news = asyncio.Event()
        self._over = False
        self._error: Exception | None = None

    def response(self, outputs: Tensors, state: bytes) -> bool:
        self._responses.append((outputs, state))
        self._news.set()
        return len(self._responses) < AHEAD

    def ran(self, ran: Ran) -> None:
        del ran
        self._over = True
        self._news.set()

    def failed(self, error: Exception) -> None:
        self._error = error
        self.ran(Ran({}, 0.0, 0.0, 1))

    async def next(self) -> Response | None:
        """Return the next response, None after the last. Raises what ended the generation."""
        while not self._responses:
            if self._error is not None:
                raise self._error
            if self._over:
                return None
            self._news.clear()
            await self._news.wait()
        found = self._responses.popleft()
        if self.item is not None and not self._responses:
            self._queue.resume(self.item)
        return found


async def _by_generator(served: Served, inputs: Tensors, request: Request) -> AsyncGenerator[Tensors]:
    """Yield what the version's generator yields, each step in a thread."""
    steps = served.loaded.stream(inputs, request)
    try:
        while True:
            step: Tensors | None = await served.in_thread(next, steps, None)
            if step is None:
                return
            yield step
    except MeshError:
        raise
    except Exception as error:
        raise model_failed(served.model.name, error) from error
