"""Running requests on a loaded version: the queue, the batches, and where a run happens.

`mesh.core.batching` says which requests run together and when. This file keeps the queue, joins and splits arrays, and
decides by measured time whether a run stays on the event loop (a thread hop costs more than a tiny run) or goes to a
thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from functools import partial
from itertools import islice
from operator import methodcaller
from typing import Any

from mesh.core.batching import Run, Waiting, next_batch
from mesh.core.errors import DeadlineExceeded, MeshError, ModelFailed, Overloaded, let_go
from mesh.core.ordering import Ordering
from mesh.core.types import ModelVersion
from mesh.node.gauge import ON_LOOP_S, Gauge
from mesh.node.heard import heard
from mesh.node.item import (
    Item,
    Ran,
    Waiter,
    any_waits,
    bytes_of,
    is_late,
    joined,
    joined_there,
    kind_of,
    may_rerun,
    model_failed,
)
from mesh.node.runtimes.base import Loaded, Request, Tensors
from mesh.telemetry.statistics import Statistics

Measured = tuple[Tensors, float, float]
"""Outputs, the seconds a run took, and the CPU seconds of them (below 0: not asked for)."""


class _Awaited:
    """A `Waiter` for a coroutine."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Ran] = asyncio.get_running_loop().create_future()

    def ran(self, ran: Ran) -> None:
        if not self.future.done():
            self.future.set_result(ran)

    def failed(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Batcher:
    """The queue of one copy. 0 <= running <= loaded.parallel; nobody waits while a run could begin."""

    def __init__(
        self,
        model: ModelVersion,
        loaded: Loaded,
        executor: Executor,
        statistics: Statistics,
        *,
        default_queue_size: int,
    ) -> None:
        self._name = model.name
        self._loaded = loaded
        self._apart = loaded.apart
        self._executor = executor
        self._statistics = statistics
        self._max_rows = model.max_batch_size if loaded.batches and model.max_batch_size else 1
        self._joins = self._max_rows > 1
        self._reruns = model.rerun_failed_batches
        self._delay_s = model.max_queue_delay_us / 1e6 if self._joins else 0.0
        self._max_queue = model.max_queue_size or default_queue_size
        self._queue: deque[Item] = deque()
        self.running = 0
        """Runs that go on, also those whose callers left."""
        self._soon = False
        self._timer: asyncio.TimerHandle | None = None
        self._gauge = Gauge(steady=loaded.steady)
        self._tasks: set[asyncio.Task[None]] = set()
        self._order: Ordering[Item, Callable[[Waiter], None]] | None = Ordering() if model.preserve_ordering else None
        """What runs, and answers that wait for those of earlier requests; None: each goes out when it is there."""
        self._in_threads: dict[tuple[Item, ...], float] = {}
        """Runs in threads, and since when nobody waits for them; 0: somebody did when it was looked at."""
        self._loop = asyncio.get_running_loop()
        if self._apart is not None:
            self._apart.on_free = self._freed

    async def run(
        self, inputs: Tensors, request: Request, rows: int, *, deadline_s: float | None, queue_timeout_s: float | None
    ) -> Ran:
        """Return the outputs for `inputs`, joined with others where that is allowed.

        Raises what `submit` says. A cancelled caller leaves the queue; the batch it may be in runs for the others.
        """
        waiter = _Awaited()
        item = self.submit(inputs, request, rows, waiter, deadline_s=deadline_s, queue_timeout_s=queue_timeout_s)
        try:
            return await waiter.future
        finally:
            self.withdraw(item)

    def submit(
        self,
        inputs: Tensors,
        request: Request,
        rows: int,
        waiter: Waiter,
        *,
        deadline_s: float | None,
        queue_timeout_s: float | None,
        size: int = 0,
    ) -> Item:
        """Put a request into the queue; `waiter` hears how it ended, never from within this call.

        It hears `Overloaded` when `queue_timeout_s` passed in the queue, `DeadlineExceeded` when `deadline_s`
        (monotonic) passed in it, `ModelFailed` when the model raised. `size` is the inputs' bytes, where they are known
        already. Raises `Overloaded` when the queue is full.
        """
        if len(self._queue) >= self._max_queue:
            raise Overloaded(f"Exceeds maximum queue size: {self._max_queue} requests wait for model '{self._name}'")
        if self._apart is not None and (refused := self._apart.refused) is not None:
            raise refused
        now_s = time.monotonic()
        kind = kind_of(inputs) if self._joins else None
        give_up_s = None if queue_timeout_s is None else now_s + queue_timeout_s
        size = size or sum([array.nbytes for array in inputs.values()]) or 1
        item = Item(Waiting(rows, kind, now_s), inputs, request, waiter, size, deadline_s, give_up_s)
        self._queue.append(item)
        if queue_timeout_s is not None:
            # While the copy is busy nobody looks at the queue, and that may be longer than this caller cares to wait.
            item.impatient = self._loop.call_later(queue_timeout_s, self._give_up, item)
        if not self._soon and self.running < self._loaded.parallel:
            # At the end of this turn of the loop: what arrived together runs together.
            self._soon = True
            self._loop.call_soon(self._look)
        return item

    def withdraw(self, item: Item) -> None:
        """Leave the queue, or the batch without its others; its waiter hears nothing more. Idempotent."""
        if item.end() and item in self._queue:
            self._queue.remove(item)

    async def drained(self) -> None:
        """Return when no run goes on in a thread; new requests may have begun others."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _give_up(self, item: Item) -> None:
        if item in self._queue:
            self._queue.remove(item)
            if item.end():
                item.waiter.failed(Overloaded(f"Request timeout expired in the queue of model '{self._name}'"))

    def _look(self) -> None:
        self._soon = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = self._loop
        while self._queue and self.running < self._loaded.parallel:
            now_s = time.monotonic()
            self._drop_late(now_s)
            if not self._queue:
                return
            count = 1
            if self._joins:
                step = next_batch(
                    [item.waiting for item in islice(self._queue, self._max_rows + 1)],
                    max_rows=self._max_rows,
                    delay_s=self._delay_s,
                    now_s=now_s,
                )
                if not isinstance(step, Run):
                    if step.at_s is not None:
                        self._timer = loop.call_later(max(0.0, step.at_s - now_s), self._look)
                    return
                count = step.count
            batch = [self._queue.popleft() for _ in range(count)]
            self.running += 1
            if self._order is not None:
                self._order.begin_all(batch)
            if self._apart is not None:
                self._run_apart(batch, now_s)
            elif self._gauge.predicted_s(bytes_of(batch)) < ON_LOOP_S:
                self._run_now(batch, now_s)
            else:
                self._start(self._run_in_thread(batch, now_s))

    def _start(self, run: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(run)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _drop_late(self, now_s: float) -> None:
        """Answer the late requests at the front. Those behind are looked at when they get there. O(batch)."""
        if not self._joins and not is_late(self._queue[0], now_s):
            return
        for item in [each for each in islice(self._queue, self._max_rows + 1) if is_late(each, now_s)]:
            if item.deadline_s is not None and item.deadline_s <= now_s and item.end():
                item.waiter.failed(DeadlineExceeded(f"the deadline passed in the queue of model '{self._name}'"))
            self._give_up(item)

    def _freed(self) -> None:
        """Begin what can begin since a worker is there, or answer all who wait that none is."""
        assert self._apart is not None
        if (refused := self._apart.refused) is not None:
            waiting, self._queue = list(self._queue), deque()
            self._fail(waiting, refused)
        elif not self._soon:
            self._look()

    def _run_apart(self, batch: list[Item], began_s: float) -> None:
        """Begin a run in another process."""
        assert self._apart is not None

        def finished(outputs: Tensors, run_s: float, error: MeshError | None) -> None:
            if error is not None and self._may_rerun(batch, error):
                self._start(self._run_each(batch))
                return
            self.running -= 1
            if error is not None:
                self._fail(batch, error)
            else:
                self._try_to_finish(batch, began_s, outputs, run_s)
            if not self._soon:
                self._look()

        try:
            inputs = joined_there(batch)
        except ValueError as error:
            self._loop.call_soon(finished, {}, 0.0, model_failed(self._name, error))
            return
        self._apart.begin(inputs, batch[0].request, waited=partial(any_waits, batch), finished=finished)

    def _try_to_finish(self, batch: list[Item], began_s: float, outputs: Tensors, run_s: float) -> None:
        try:
            self._finish(batch, began_s, outputs, run_s, -1.0)
        except Exception as error:  # noqa: BLE001 - what a model answers can be anything
            self._fail(batch, error)

    def _run_now(self, batch: list[Item], began_s: float) -> None:
        try:
            self._finish(batch, began_s, *self._call(batch, self._run_here))
        except Exception as error:  # noqa: BLE001 - what a model raises can be anything
            if self._may_rerun(batch, error):
                self.running += 1
                self._start(self._run_each(batch))
            else:
                self._fail(batch, error)
        finally:
            self.running -= 1

    def stuck(self, now_s: float, alone_s: float) -> bool:
        """Tell whether a run in a thread has gone on for `alone_s` since everybody who waited for it left."""
        for batch, alone_since_s in self._in_threads.items():
            if any_waits(list(batch)):
                self._in_threads[batch] = 0.0
            elif not alone_since_s:
                self._in_threads[batch] = now_s
            elif now_s - alone_since_s > alone_s:
                return True
        return False

    async def _run_in_thread(self, batch: list[Item], began_s: float) -> None:
        runs = tuple(batch)
        self._in_threads[runs] = 0.0
        try:
            ran = await self._loop.run_in_executor(self._executor, self._call, batch, self._run)
            self._finish(batch, began_s, *ran)
        except Exception as error:  # noqa: BLE001 - what a model raises can be anything
            if self._may_rerun(batch, error):
                self.running += 1
                await self._run_each(batch)
            else:
                self._fail(batch, error)
        finally:
            del self._in_threads[runs]
            self.running -= 1
            if not self._soon:
                self._look()

    def _may_rerun(self, batch: list[Item], error: Exception) -> bool:
        return self._reruns and len(batch) > 1 and may_rerun(error)

    async def _run_each(self, batch: list[Item]) -> None:
        """Run requests whose joined run failed once more, one by one in threads: each gets its own answer or error."""
        try:
            for item in batch:
                began_s = time.monotonic()
                if item.over or (item.deadline_s is not None and item.deadline_s <= began_s):
                    self._fail([item], DeadlineExceeded(f"the deadline passed in the queue of model '{self._name}'"))
                    continue
                try:
                    self._finish([item], began_s, *await self._run_alone(item))
                except Exception as error:  # noqa: BLE001 - what a model raises can be anything
                    self._fail([item], error)
        finally:
            self.running -= 1
            if not self._soon:
                self._look()

    async def _run_alone(self, item: Item) -> Measured:
        if self._apart is None:
            return await self._loop.run_in_executor(self._executor, self._call, [item], self._run)
        ended, finished = heard()
        self._apart.begin(item.inputs, item.request, waited=partial(any_waits, [item]), finished=finished)
        outputs, run_s = await ended
        return outputs, run_s, -1.0

    def is_free(self, scale: float) -> bool:
        """Tell whether a run may go on here and now: nobody waits and it is short. `scale` is its size in mean ones."""
        if self._queue or self.running >= self._loaded.parallel or (self._order is not None and self._order.waits):
            return False
        return self._gauge.is_short(scale)

    @property
    def work_s(self) -> float:
        """Seconds of CPU that a mean run takes."""
        return self._gauge.work_s

    def scale(self, size: int) -> float:
        """Return inputs of `size` bytes in mean ones."""
        return self._gauge.scale(size)

    def run_at_once(self, inputs: Tensors, request: Request, rows: int) -> tuple[Tensors, float]:
        """Run past the queue of a copy that `is_free`; return outputs and seconds. Raises what the model raises."""
        outputs, run_s, work_s = self._run_here(inputs, request)
        if work_s >= 0:
            self._gauge.measured(work_s, sum([array.nbytes for array in inputs.values()]))
        self._statistics.executed(rows, int(run_s * 1e9))
        return outputs, run_s

    def _call(self, batch: list[Item], run: Callable[[Tensors, Request], Measured]) -> Measured:
        """Return the outputs, the seconds the run took, and the CPU seconds of them (below 0: not asked for)."""
        return run(joined(batch), batch[0].request)

    def _run(self, inputs: Tensors, request: Request) -> Measured:
        return self._gauge.run(lambda: self._loaded.run(inputs, request))

    def _run_here(self, inputs: Tensors, request: Request) -> Measured:
        return self._gauge.run_here(lambda: self._loaded.run(inputs, request))

    def _finish(self, batch: list[Item], began_s: float, outputs: Tensors, run_s: float, work_s: float) -> None:
        if work_s >= 0:
            self._gauge.measured(work_s, bytes_of(batch))
        rows = batch[0].waiting.rows if len(batch) == 1 else sum(item.waiting.rows for item in batch)
        self._statistics.executed(rows, int(run_s * 1e9))
        if len(batch) > 1:
            for name, array in outputs.items():
                if array.ndim == 0 or array.shape[0] != rows:
                    shape = list(array.shape)
                    raise ModelFailed(f"model '{self._name}' answered '{name}' {shape} for a batch of {rows} rows")
        start = 0
        for item in batch:
            end = start + item.waiting.rows
            mine = outputs if len(batch) == 1 else {name: array[start:end] for name, array in outputs.items()}
            start = end
            ran = Ran(mine, began_s - item.waiting.enqueued_s, run_s, rows)
            if self._order is not None:
                self._in_order(item, methodcaller("ran", ran))
            elif item.end():
                item.waiter.ran(ran)

    def _fail(self, batch: list[Item], error: Exception) -> None:
        told = error if isinstance(error, MeshError) else model_failed(self._name, error)
        let_go(error)
        for item in batch:
            if self._order is not None:
                self._in_order(item, methodcaller("failed", told))
            elif item.end():
                item.waiter.failed(told)

    def _in_order(self, item: Item, tell: Callable[[Waiter], None]) -> None:
        """Answer those whose turn it is now that this one has its answer."""
        assert self._order is not None
        for each, told in self._order.answered(item, tell):
            if each.end():
                told(each.waiter)

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Batcher {self._name} waiting={len(self._queue)} running={self.running}>"
