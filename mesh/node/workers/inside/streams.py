"""The responses of a several-response model in a worker: made ahead of who takes them by a few, and no more.

A request's generator runs on a thread of its own, or with ``streams: 1`` on the thread that loaded the model, one
request at a time. An ``async def infer`` with ``yield`` runs its requests side by side on that thread's event loop.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from contextlib import aclosing
from typing import Any

from .hosted import Hosted, ModelRequest, failure
from .line import Line
from .values import BadValue


class _Stream:
    """One request: how many responses may still be made, and whether anybody waits for them."""

    def __init__(self, number: int, inputs: Any, request: ModelRequest, credits_: int) -> None:
        self.number = number
        self.inputs = inputs
        self.request = request
        self.left = threading.Semaphore(credits_)
        self.gone = False


class Streams:
    """The requests of one decoupled model."""

    def __init__(self, line: Line, hosted: Hosted, most: int) -> None:
        self._line = line
        self._hosted = hosted
        self._most = most
        self._live: dict[int, _Stream] = {}
        self._work: queue.SimpleQueue[_Stream | None] = queue.SimpleQueue()

    def run(self) -> None:
        """Return when the node wants the worker to close."""
        if self._most > 1:
            self._read()
            return
        threading.Thread(target=self._read, name="line", daemon=True).start()
        while (stream := self._work.get()) is not None:
            self._respond(stream)

    def _read(self) -> None:
        while (message := self._line.receive()) is not None and message[0] != "close":
            kind, number = message[0], message[1]
            if kind == "stream":
                stream = self._live[number] = _Stream(number, message[2], ModelRequest(*message[3]), message[4])
                if self._most > 1:
                    threading.Thread(target=self._respond, args=(stream,), name=f"stream-{number}", daemon=True).start()
                else:
                    self._work.put(stream)
            elif (live := self._live.get(number)) is not None:
                # It may end at this moment, on its own thread.
                live.gone = live.gone or kind == "cancel"
                live.left.release()
        self._work.put(None)

    def _respond(self, stream: _Stream) -> None:
        steps = self._hosted.stream(stream.inputs, stream.request)
        stream.inputs = None
        began_ns, step = time.perf_counter_ns(), None
        try:
            while True:
                stream.left.acquire()
                if stream.gone:
                    break
                step = next(steps, None)
                if step is None:
                    break
                self._line.send(["response", stream.number, step])
            steps.close()  # type: ignore[attr-defined] # a generator of ours
            step = None
            self._line.send(["done", stream.number, time.perf_counter_ns() - began_ns, {}])
        except BadValue as error:
            self._line.send(["failed", stream.number, f"answered what cannot be carried: {error}", ""])
        except Exception as error:  # noqa: BLE001 - what a model raises can be anything
            self._line.send(failure(stream.number, error))
        finally:
            self._live.pop(stream.number, None)


class AsyncStreams:
    """The requests of one decoupled model whose ``infer`` is an async generator."""

    def __init__(self, line: Line, hosted: Hosted) -> None:
        self._line = line
        self._hosted = hosted
        self._tasks: dict[int, tuple[asyncio.Task[None], asyncio.Semaphore]] = {}
        self._cancelled: set[int] = set()
        self._closing = asyncio.Event()

    def run(self) -> None:
        """Return when the node wants the worker to close."""
        self._hosted.loop.run_until_complete(self._until_closed())

    async def _until_closed(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._line.fileno(), self._read)
        await self._closing.wait()
        loop.remove_reader(self._line.fileno())

    def _read(self) -> None:
        message = self._line.receive()
        if message is None or message[0] == "close":
            self._closing.set()
            return
        kind, number = message[0], message[1]
        if kind == "stream":
            left = asyncio.Semaphore(message[4])
            work = self._respond(number, message[2], ModelRequest(*message[3]), left)
            self._tasks[number] = asyncio.get_running_loop().create_task(work), left
        elif number in self._tasks:
            task, left = self._tasks[number]
            left.release()
            if kind == "cancel":
                self._cancelled.add(number)
                task.cancel()

    async def _respond(self, number: int, inputs: Any, request: ModelRequest, left: asyncio.Semaphore) -> None:
        began_ns = time.perf_counter_ns()
        try:
            async with aclosing(self._hosted.stream_async(inputs, request)) as steps:
                async for step in steps:
                    await left.acquire()
                    self._line.send(["response", number, step])
                    del step  # What was sent is not held while the next is made.
            self._line.send(["done", number, time.perf_counter_ns() - began_ns, {}])
        except BadValue as error:
            self._line.send(["failed", number, f"answered what cannot be carried: {error}", ""])
        except BaseException as error:  # noqa: BLE001 - what a model raises can be anything, and ends its request alone
            cancelled = isinstance(error, asyncio.CancelledError) and number in self._cancelled
            taken_ns = time.perf_counter_ns() - began_ns
            self._line.send(["done", number, taken_ns, {}] if cancelled else failure(number, error))
        finally:
            self._tasks.pop(number, None)
            self._cancelled.discard(number)
