"""Answering a stream of requests: ordinary ones in request order, several-response ones interleaved, bounded in flight.

Router and node share this. What an answer is, they say; this file owns order, the window and cancellation.
(Triton's streams: ordinary models answer in request order, decoupled ones as their responses come.)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from mesh.core.errors import let_go


@dataclass(frozen=True, slots=True)
class Ordered:
    """One request, one response, in its turn."""

    response: Awaitable[bytes]


@dataclass(frozen=True, slots=True)
class Interleaved:
    """One request, any number of responses, in their own order but among the others as they come."""

    responses: AsyncGenerator[bytes]


Answer = Ordered | Interleaved


async def answer_stream(
    requests: AsyncIterator[bytes], answer: Callable[[bytes], Answer], *, window: int
) -> AsyncGenerator[bytes]:
    """Yield the responses to `requests` until the caller's half-close and the last response.

    At most `window` requests are being answered at a time: reading the stream pauses then, which flow control turns
    into back pressure on the caller. `answer` starts nothing: what it returns runs here, in tasks that end with this
    generator, also when it is closed or cancelled. An answer that raises ends the stream with that error.
    """
    out = _Out(window)
    feeder = asyncio.create_task(_feed(requests, answer, out, window))
    try:
        while (response := await out.take()) is not None:
            yield response
            response = b""  # What was sent must not stay until the next one comes.
        await feeder
    finally:
        feeder.cancel()
        await asyncio.gather(feeder, return_exceptions=True)


class _Out:
    """Responses on their way to the caller, at most `size` of them; `end` never waits."""

    def __init__(self, size: int) -> None:
        self._room = asyncio.Semaphore(size)
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def put(self, message: bytes) -> None:
        await self._room.acquire()
        self._queue.put_nowait(message)

    def end(self) -> None:
        self._queue.put_nowait(None)

    async def take(self) -> bytes | None:
        message = await self._queue.get()
        self._room.release()
        return message


async def _feed(requests: AsyncIterator[bytes], answer: Callable[[bytes], Answer], out: _Out, window: int) -> None:
    room = asyncio.Semaphore(window)
    last: asyncio.Event | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            async for request in requests:
                await room.acquire()
                what = answer(request)
                if isinstance(what, Ordered):
                    before, last = last, asyncio.Event()
                    task = tasks.create_task(_in_turn(what.response, before, last, out))
                else:
                    task = tasks.create_task(_as_they_come(what.responses, out))
                task.add_done_callback(lambda _: room.release())
                del request, what, task
    except asyncio.CancelledError as error:
        let_go(error)  # The group's frame has a name for it.
        raise
    except BaseExceptionGroup as group:
        first = group.exceptions[0]
        let_go(group)
        raise first from None
    finally:
        out.end()


async def _in_turn(response: Awaitable[bytes], before: asyncio.Event | None, done: asyncio.Event, out: _Out) -> None:
    message = await response
    if before is not None:
        await before.wait()
    await out.put(message)
    done.set()


async def _as_they_come(responses: AsyncGenerator[bytes], out: _Out) -> None:
    async with aclosing(responses):
        async for message in responses:
            await out.put(message)
            del message
