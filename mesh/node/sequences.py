"""Running the steps of sequences, and generations step by step: the queue of a copy whose requests have state.

`mesh.core.sessions.schedule` says whose turn it is; this file waits, runs the batch on the event loop or in a thread,
keeps each sequence's state, and tells it to routers that keep it too. It stands in for `batcher.Batcher`.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import Any, cast

from mesh.core.batching import Waiting, WaitUntil, enough_rows
from mesh.core.errors import DeadlineExceeded, MeshError, Overloaded, UnknownSequence, let_go
from mesh.core.sessions.schedule import Schedule, Sequence, SequenceId, Step, unknown
from mesh.core.types import ModelVersion
from mesh.node.gauge import ON_LOOP_S, Gauge
from mesh.node.item import Item, Ran, Waiter, any_waits, kind_of, model_failed
from mesh.node.runtimes.base import Loaded, Request, Tensors, Turn
from mesh.node.sequence_item import Generating, SequenceItem
from mesh.node.sequence_request import GENERATING, Flags, flags_of, restored
from mesh.node.telling import Telling
from mesh.node.turns import Errors, in_worker, one_by_one, refuse, run_turns, together, turn_of
from mesh.telemetry.statistics import Statistics

TAKEN_S = 2.0
"""How long a copy on its way out keeps the sequences that are live: routers hear of it within a fraction of that."""

LOOKS = 4
"""How often within `idle_s` idle sequences are looked for."""


class SequenceBatcher:
    """The queue of one copy. Nobody waits while a run could begin; a sequence has at most one step running."""

    def __init__(
        self,
        model: ModelVersion,
        loaded: Loaded,
        executor: Executor,
        statistics: Statistics,
        *,
        default_queue_size: int,
    ) -> None:
        steps = loaded.steps
        assert steps is not None
        self._steps = steps
        self._name = model.name
        self._digest = model.digest
        self._sequencing = model.sequence or GENERATING
        self._loaded = loaded
        self._apart = loaded.apart
        self._executor = executor
        self._statistics = statistics
        sized = all(-1 not in spec.shape[1:] for spec in loaded.inputs)
        self._mixed = steps.most_rows > 1 and not steps.generates and not sized
        """Whether steps may have shapes that cannot be joined."""
        self._delay_s = model.max_queue_delay_us / 1e6
        self._enough = enough_rows(steps.most_rows, self._sequencing.minimum_slot_utilization)
        self.schedule: Schedule[Item] = Schedule(
            model.name,
            max_live=self._sequencing.max_live,
            max_waiting=model.max_queue_size or default_queue_size,
            idle_s=self._sequencing.idle_s,
            on_line=self._look_soon,
        )
        self._gauge = Gauge(steady=loaded.steady)
        self._reruns = model.rerun_failed_batches and self._sequencing.replayable
        self.running = 0
        """Runs that go on."""
        self.steps_done = 0
        self._telling = Telling(self._sequencing, steps, model.digest)
        self._serial = itertools.count(1)
        self._since_s = time.monotonic()
        self._emptied = asyncio.Event()
        self._soon = False
        self._timer: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        if self._apart is not None:
            self._apart.on_free = self._freed

    @property
    def _parallel(self) -> int:
        """Runs that may go on at once."""
        return min(1, self._loaded.parallel) if self._steps.generates else self._loaded.parallel

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
    ) -> SequenceItem:
        """Put a step into its sequence, or begin a generation; `waiter` hears how it ended, never from within this.

        Raises `InvalidRequest` in Triton's words for flags that make no sense, `UnknownSequence` for a step of a
        sequence that is not here, `SessionLost` for a state of other files, and `Overloaded`. The rest is as with
        `Batcher.submit`.
        """
        if self._apart is not None and (refused := self._apart.refused) is not None:
            raise refused
        now_s = time.monotonic()
        size = size or sum([array.nbytes for array in inputs.values()]) or 1
        waiting = Waiting(1, kind_of(inputs) if self._mixed else None, now_s)
        item = SequenceItem(
            waiting,
            inputs,
            request,
            waiter,
            size,
            deadline_s,
            None if queue_timeout_s is None else now_s + queue_timeout_s,
        )
        id_, start, end = self._named(request, rows)
        item.step = step = Step(cast("Item", item), waiting, start, end)
        if request.restored:
            found = restored(request.restored, self._digest, self._name)
            step.restored, step.steps_before = self._steps.unpacked(found.state), found.count
            if found.done and self._steps.generates:
                self._loop.call_soon(self._was_done, item)
                return item
        try:
            item.sequence = self.schedule.arrive(id_, step, now_s, request.caller)
        except UnknownSequence as error:
            error.copy_age_s = now_s - self._since_s
            raise
        if gone := self.schedule.displaced:
            self.schedule.displaced = []
            self._refuse(gone, f"Exceeds maximum queue size: others have less of that of model '{self._name}'")
        if queue_timeout_s is not None and not item.sequence.live:
            item.impatient = self._loop.call_later(queue_timeout_s, self._give_up, item)
        if self._sweeper is None and not self._steps.generates:
            self._sweeper = self._loop.call_later(self._sequencing.idle_s / LOOKS, self._sweep)
        return item

    def withdraw(self, item: Item) -> None:
        """Leave: a step that waits is not run; one that runs is, and a generation ends there. Idempotent."""
        assert isinstance(item, SequenceItem)
        if item.end() and item.sequence is not None and item.step is not None:
            if item.paused:
                self.schedule.ended(item.sequence, time.monotonic())
                item.step = None
            elif self.schedule.withdraw(item.sequence, item.step, time.monotonic()):
                item.step = None

    def resume(self, item: SequenceItem) -> None:
        """Let a generation go on whose caller reads again. Idempotent."""
        if item.paused and not item.over:
            item.paused = False
            assert item.sequence is not None
            self.schedule.again(item.sequence, time.monotonic())

    async def drained(self) -> None:
        """Return when no run goes on in a thread."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def take(self, id_: SequenceId) -> bytes | None:
        """Give an idle sequence away: return its state and forget it; None when it is not here, or at work."""
        found = self.schedule.find(id_)
        if found is None or found.steps or not found.begun:
            return None
        state = self._telling.encoded(found)
        self.schedule.remove(found, time.monotonic())
        if not self.schedule.live:
            self._emptied.set()
        return state

    async def given_away(self) -> None:
        """Return when every sequence was taken, or when nobody takes those that are left."""
        self._emptied.clear()
        if self.schedule.live:
            with suppress(TimeoutError):
                async with asyncio.timeout(TAKEN_S):
                    await self._emptied.wait()

    def _named(self, request: Request, rows: int) -> Flags:
        if self._steps.generates:
            return Flags(f"generation {next(self._serial)}", start=True, end=True)
        return flags_of(request, rows, self._name)

    def _was_done(self, item: SequenceItem) -> None:
        if item.end():
            item.waiter.ran(Ran({}, 0.0, 0.0, 1))

    def _freed(self) -> None:
        if self._apart is not None and (refused := self._apart.refused) is not None:
            refuse(self.schedule, lambda item: self._failed(item, refused), time.monotonic())
        self._look_soon()

    def _look_soon(self) -> None:
        if not self._soon and self.running < self._parallel:
            # At the end of this turn of the loop: what arrived together runs together.
            self._soon = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        # What joins the line meanwhile is seen below: nobody need look again for it.
        self._soon = True
        try:
            self._run_line()
        finally:
            self._soon = False

    def _run_line(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self.running < self._parallel:
            now_s = time.monotonic()
            most, enough = self._steps.most_rows, self._enough
            found = self.schedule.next(max_rows=most, delay_s=self._delay_s, now_s=now_s, enough=enough)
            if isinstance(found, WaitUntil):
                if found.at_s is not None:
                    self._timer = self._loop.call_later(max(0.0, found.at_s - now_s), self._look)
                return
            batch = [each for each in found if self._may_run(each, now_s)]
            if not batch:
                continue
            self.running += 1
            size = sum([each.steps[0].what.size for each in batch])
            turns = [turn_of(each) for each in batch]
            if self._apart is not None and self._apart.takes_turns:
                self._keep(self._in_worker(batch, turns, size))
            elif self._gauge.predicted_s(size) < ON_LOOP_S:
                states = [turn.state for turn in turns]
                errors, run_s, work_s = self._gauge.run_here(partial(together, self._steps, turns, self._reruns))
                if errors:
                    self._finish(batch, turns, errors, run_s, work_s, size)
                else:
                    run = partial(one_by_one, self._steps, turns, states)
                    self._keep(self._in_thread(batch, turns, size, run))
            else:
                self._keep(self._in_thread(batch, turns, size, partial(run_turns, self._steps, turns, self._reruns)))

    def _keep(self, run: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(run)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _may_run(self, sequence: Sequence[Item], now_s: float) -> bool:
        """Tell whether the turn of a sequence may begin; else its step was answered, and the next takes its place."""
        item = sequence.steps[0].what
        error: DeadlineExceeded | UnknownSequence | None = None
        if item.deadline_s is not None and item.deadline_s <= now_s:
            error = DeadlineExceeded(f"the deadline passed in the queue of model '{self._name}'")
        elif not sequence.begun:
            error = unknown(sequence.id, self._name)
            error.copy_age_s = now_s - self._since_s
        if error is None and not item.over:
            assert isinstance(item, SequenceItem)
            item.began_s = item.began_s or now_s
            if item.impatient is not None:
                item.impatient.cancel()
            return True
        self.schedule.skipped(sequence, now_s)
        cast("SequenceItem", item).step = None
        if error is not None and item.end():
            item.waiter.failed(error)
        return False

    async def _in_thread(
        self, batch: list[Sequence[Item]], turns: list[Turn], size: int, run: Callable[[], Errors]
    ) -> None:
        ran = await self._loop.run_in_executor(self._executor, self._gauge.run, run)
        self._finish(batch, turns, *ran, size)
        if not self._soon:
            self._look()

    async def _in_worker(self, batch: list[Sequence[Item]], turns: list[Turn], size: int) -> None:
        assert self._apart is not None
        items = [each.steps[0].what for each in batch]
        waited = partial(any_waits, items)
        errors, run_s = await in_worker(self._apart, turns, waited, reruns=self._reruns)
        self._finish(batch, turns, errors, run_s, -1.0, size)
        if not self._soon:
            self._look()

    def _finish(  # noqa: PLR0917 - what a run gives
        self,
        batch: list[Sequence[Item]],
        turns: list[Turn],
        errors: Errors,
        run_s: float,
        work_s: float,
        size: int,
    ) -> None:
        self.running -= 1
        self._gauge.measured(work_s, size)
        self._statistics.executed(len(batch), int(run_s * 1e9))
        self.steps_done += len(batch)
        now_s = time.monotonic()
        for sequence, turn, error in zip(batch, turns, errors, strict=True):
            item = sequence.steps[0].what
            assert isinstance(item, SequenceItem)
            item.run_s += run_s
            if error is None:
                sequence.state = turn.state
                sequence.count += len(turn.outputs) if self._steps.generates else 1
            if self._steps.generates:
                self._responded(sequence, item, turn, error, now_s, len(batch))
                continue
            self.schedule.ended(sequence, now_s, failed=error is not None)
            if error is not None:
                self._failed(item, error)
            elif not turn.outputs:
                self._failed(item, TypeError("a step was not answered"))
            else:
                state, told = self._telling.behind(sequence, item)
                if told is not None:
                    self._failed(item, told)
                elif item.end():
                    queue_s = item.began_s - item.waiting.enqueued_s
                    item.waiter.ran(Ran(turn.outputs[0], queue_s, run_s, len(batch), state))
            item.step = None  # It knows this item as this item knows it.

    def _responded(  # noqa: PLR0917 - what a turn gives
        self,
        sequence: Sequence[Item],
        item: SequenceItem,
        turn: Turn,
        error: Exception | None,
        now_s: float,
        rows: int,
    ) -> None:
        """Tell what a generation made, and let it go on."""
        waiter = cast("Generating", item.waiter)
        more = True
        if error is None and not item.over and turn.outputs:
            state, error = self._telling.behind(sequence, item, done=turn.done)
            for at, outputs in enumerate(turn.outputs):
                more = waiter.response(outputs, state if at == len(turn.outputs) - 1 else b"")
        if error is None and not turn.done and not item.over:
            if more:
                self.schedule.again(sequence, now_s)
            else:
                item.paused = True
            return
        self.schedule.ended(sequence, now_s)
        item.step = None
        if error is not None:
            self._failed(item, error)
        elif item.end():
            waiter.ran(Ran({}, item.began_s - item.waiting.enqueued_s, item.run_s, rows))

    def _failed(self, item: Item, error: Exception) -> None:
        told = error if isinstance(error, MeshError) else model_failed(self._name, error)
        let_go(error)
        if item.end():
            item.waiter.failed(told)

    def _give_up(self, item: SequenceItem) -> None:
        """Refuse a sequence whose step waited too long for its sequence's place."""
        if item.sequence is None:
            return
        steps = self.schedule.waited_too_long(item.sequence, time.monotonic())
        self._refuse(steps, f"Request timeout expired in the queue of model '{self._name}'")

    def _refuse(self, steps: list[Step[Item]], why: str) -> None:
        for step in steps:
            late = cast("SequenceItem", step.what)
            late.step = None
            if late.impatient is not None:
                late.impatient.cancel()
            self._failed(late, Overloaded(why))

    def _sweep(self) -> None:
        self.schedule.expire(time.monotonic())
        again_s = self._sequencing.idle_s / LOOKS
        self._sweeper = self._loop.call_later(again_s, self._sweep) if self.schedule.live else None

    @property
    def live(self) -> int:
        """Sequences or generations that are live."""
        return self.schedule.live

    @property
    def state_bytes(self) -> int:
        """About what the states of all take."""
        return self._telling.bytes * self.schedule.live

    def close(self) -> None:
        """Stop looking for idle sequences."""
        if self._sweeper is not None:
            self._sweeper.cancel()

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<SequenceBatcher {self._name} running={self.running} {self.schedule!r}>"
