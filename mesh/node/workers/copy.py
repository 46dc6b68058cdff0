"""A copy whose runs go on in worker processes: one per instance, started again when one ends.

It is the `Loaded` of such a copy, and its `Apart`: runs are begun on the event loop and heard of later, no thread waits
for them. Steps of sequences carry their state along, so that a worker that ends takes no sequence with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mesh.core.errors import MeshError, ModelFailed, NotReady
from mesh.core.types import ModelVersion, TensorSpec
from mesh.node.heard import heard
from mesh.node.runtimes.base import Array, Finished, Request, Steps, Tensors, Turn
from mesh.node.runtimes.python_steps import as_dict, most_rows, tensor_steps
from mesh.node.runtimes.stateful import TensorSteps
from mesh.node.runtimes.text import TextSteps
from mesh.node.workers.inside.port import Rows
from mesh.node.workers.inside.values import BadValue, decode_state, encode_state
from mesh.node.workers.memory import rss_bytes
from mesh.node.workers.texts import finish_text, has_held, is_long, travelling, whole
from mesh.node.workers.worker import Asked, Over, Worker, all_tensors

ALONE_S: Final = 30.0
"""A run that nobody waits for any more for so long counts as stuck."""

AHEAD: Final = 4
"""Responses that a stream may be ahead of who takes them."""

FIRST_AGAIN_S: Final = 1.0
LONGEST_AGAIN_S: Final = 60.0
"""Between two tries to start an instance beside others that are there."""

RELEASED_S: Final = 1.0
"""How often a copy in a pause looks whether its model was released."""

SHORT_S: Final = 0.2
"""A pause that callers wait for in the queue; before a longer one ends they are told to ask another copy."""

Start = Callable[[], Awaitable[Worker]]


class WorkerCopy:
    """`on_death` hears of a worker that the model ended and returns the seconds until it may be started again.

    `pause_left_s` says what is left of them: none as soon as an operator released the model.
    """

    steady = False
    executor = None

    def __init__(
        self,
        model: ModelVersion,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        workers: Sequence[Worker],
        facts: dict[str, Any],
        start: Start,
        on_death: Callable[[ModelVersion, str], float],
        pause_left_s: Callable[[ModelVersion], float],
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.outputs = outputs
        self.apart = self
        self.batches = not facts["sees_request"] and not model.decoupled
        self.steps: Steps | None = None
        self._instances = len(workers)
        self._workers = list(workers)
        self._start = start
        self._on_death = on_death
        self._pause_left_s = pause_left_s
        self._closed = False
        self._restarts: set[asyncio.Task[None]] = set()
        self._texts: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self.takes_turns = False
        self._refusal = ""
        """Why no run can begin for now, while no worker is there."""
        self._again_s = 0.0
        self._lost = False
        self.on_free: Callable[[], None] = lambda: None
        """Called when a run may begin that could not, or when `refused` changed."""
        self.on_lost: Callable[[str], None] = lambda _: None
        """Called when its workers cannot be started again: the copy is gone."""
        for each in workers:
            each.on_over = self._over
            if each.over is not None:
                self._loop.call_soon(self._over, each)

    def uses(self, facts: dict[str, Any], folder: Path, specs: Sequence[TensorSpec]) -> None:
        """Take steps of sequences or generations, where the model has them. `specs` are all inputs of a file.

        Raises `LoadFailed`.
        """
        model = self.model
        if facts["generates"] or facts["sees_sequences"]:
            self.takes_turns = True
            self.steps = _TurnSteps(self, generates=bool(facts["generates"]))
        elif model.generation is not None:
            self.steps = TextSteps(model, folder, {each.name: each for each in specs}, self.run_from_thread)
        elif model.sequence is not None and model.runtime == "python":
            self.steps = tensor_steps(model, folder, self.run_from_thread)
        elif model.sequence is not None:
            self.steps = TensorSteps(model, folder, {each.name: each for each in specs}, self.run_from_thread)

    # -- `Loaded` ------------------------------------------------------------------------------------------------

    @property
    def parallel(self) -> int:
        """Runs that may go on at once: instances that are there."""
        return len(self._workers)

    def admit(self, inputs: Tensors) -> Tensors:
        """Return one request's inputs: what is wrong with their values, the worker says."""
        return inputs

    def run(self, inputs: Tensors, request: Request) -> Tensors:
        """Not here: `begin`."""
        raise NotImplementedError("runs in workers are begun, not waited for")

    def stream(self, inputs: Tensors, request: Request) -> Iterator[Tensors]:
        """Not here: `responses`."""
        raise NotImplementedError("responses of workers come by themselves")

    def close(self) -> None:
        """Not here: `shut`."""
        raise NotImplementedError("workers are shut, which takes time")

    async def shut(self, within_s: float) -> str:
        """Let every instance close, within that time; return what a close raised, or empty."""
        self._give_up()
        raised = await asyncio.gather(*[each.close(within_s) for each in list(self._workers)])
        return next(filter(None, raised), "")

    # -- `Apart` -------------------------------------------------------------------------------------------------

    def begin(
        self, inputs: Mapping[str, Array | Rows], request: Request, *, waited: Callable[[], bool], finished: Finished
    ) -> None:
        """Begin a run; `finished` hears its end, never from within this call."""
        if any(is_long(array) for array in inputs.values()):
            self._keep(self._begin_text(inputs, request, waited, finished), self._texts)
            return
        self._ask("run", [inputs, _said(request)], request, waited, finished)

    async def turns(self, turns: Sequence[Turn], waited: Callable[[], bool]) -> float:
        """Run one turn of sequences or generations together: set what it leaves; return its seconds.

        Raises what it raised; then nothing has changed.
        """
        said = [_turn_said(each) for each in turns]
        ended, finished = heard()
        self._ask("turns", [said], turns[0].request, waited, finished)
        left, run_s = await ended
        if len(left) != len(turns):
            raise ModelFailed(f"the worker of model '{self.model.name}' answered {len(turns)} turns with {len(left)}")
        for turn, each in zip(turns, left, strict=True):
            turn.outputs, turn.state, turn.done = self._left(each)
        return run_s

    async def responses(self, inputs: Tensors, request: Request) -> AsyncGenerator[Tensors]:
        """Yield the responses of a several-response model. Closing it stops the model at its next one."""
        news: asyncio.Queue[Tensors | MeshError | None] = asyncio.Queue()

        def ended(message: list[Any] | None, error: MeshError | None) -> None:
            if message is not None and message[0] == "response":
                news.put_nowait(message[2])
            else:
                news.put_nowait(error)

        asked = Asked(ended, lambda: True, time.monotonic(), request.id, AHEAD)
        given = await travelling(inputs)
        if not self._workers:
            raise self._not_there()
        worker = min(self._workers, key=lambda each: each.runs)
        number = worker.run("stream", given, _said(request), AHEAD, asked=asked)
        try:
            while (found := await news.get()) is not None:
                if isinstance(found, MeshError):
                    raise found
                yield whole(found)
                worker.more(number)
        finally:
            asked.waited = lambda: False
            worker.cancel(number)

    @property
    def refused(self) -> NotReady | None:
        """Why no run can begin before a while."""
        if self._workers or (not self._lost and self._again_s - time.monotonic() <= SHORT_S):
            return None
        return self._not_there()

    def _not_there(self) -> NotReady:
        why = self._refusal or f"model '{self.model.name}' is being started again"
        return NotReady(why, retry_after_s=max(0.1, self._again_s - time.monotonic()))

    def run_from_thread(self, inputs: Tensors) -> Tensors:
        """Return the outputs of a run, in a thread that waits for them."""
        return asyncio.run_coroutine_threadsafe(self.run_alone(inputs, _PLAIN), self._loop).result()

    async def run_alone(self, inputs: Tensors, request: Request) -> Tensors:
        """Return the outputs of a run."""
        ended, finished = heard()
        self.begin(inputs, request, waited=lambda: not ended.done(), finished=finished)
        outputs: Tensors = (await ended)[0]
        return outputs

    def bytes_held(self) -> int:
        """Return what its workers hold, beyond what they share with the process that they were forked from.

        Blocks some 20 us a worker.
        """
        return sum(max(0, rss_bytes(each.pid) - each.shared_bytes) for each in self._workers)

    def pids(self) -> set[int]:
        """Return its processes."""
        return {each.pid for each in self._workers}

    def look(self, now_s: float) -> None:
        """End workers whose run takes too long. Called every second or so."""
        for each in list(self._workers):
            each.look(now_s, max_run_s=self.model.process.max_run_s, alone_s=ALONE_S)

    def end(self, why: str) -> None:
        """End its largest worker for `why`."""
        if self._workers:
            max(self._workers, key=lambda each: rss_bytes(each.pid)).kill(why)

    def _left(self, said: Any) -> tuple[list[Tensors], bytes, bool]:
        """Return what a worker says that a turn left. Raises `ModelFailed` for anything else."""
        if isinstance(said, list) and [type(each) for each in said] == [list, bytes, bool]:
            outputs, state, done = said
            if all(all_tensors(each) for each in outputs):
                return [whole(each) for each in outputs], state, done
        raise ModelFailed(f"the worker of model '{self.model.name}' answered a turn with something else")

    # -- inside --------------------------------------------------------------------------------------------------

    def _ask(
        self, kind: str, parts: list[Any], request: Request, waited: Callable[[], bool], finished: Finished
    ) -> None:
        worker = next((each for each in self._workers if not each.runs), None)
        if worker is None:
            self._loop.call_soon(finished, {}, 0.0, self._not_there())
            return

        def ended(message: list[Any] | None, error: MeshError | None) -> None:
            if message is None:
                finished({}, 0.0, error)
            elif kind == "turns" or not has_held(message[3]):
                finished(message[3], message[2] / 1e9, None)
            else:
                self._keep(finish_text(message, finished), self._texts)

        try:
            worker.run(kind, *parts, asked=Asked(ended, waited, time.monotonic(), request.id))
        except MeshError as error:
            self._loop.call_soon(finished, {}, 0.0, error)

    async def _begin_text(
        self, inputs: Mapping[str, Array | Rows], request: Request, waited: Callable[[], bool], finished: Finished
    ) -> None:
        try:
            given = await travelling(inputs)
        except ModelFailed as error:
            finished({}, 0.0, error)
            return
        self._ask("run", [given, _said(request)], request, waited, finished)

    def _keep(self, work: Any, among: set[asyncio.Task[None]]) -> None:
        task = self._loop.create_task(work)
        among.add(task)
        task.add_done_callback(among.discard)

    def _over(self, worker: Worker) -> None:
        if worker not in self._workers:
            return
        self._workers.remove(worker)
        over = worker.over
        assert over is not None
        if self._closed:
            return
        pause_s = self._on_death(self.model, over.why) if over.guilty else 0.0
        self._keep(self._again(over, pause_s), self._restarts)

    def _give_up(self) -> None:
        """Start nothing any more."""
        self._closed = True
        for task in self._restarts - {asyncio.current_task()}:
            task.cancel()

    async def _again(self, over: Over, pause_s: float) -> None:
        """Start an instance in the place of one that ended, after a pause."""
        name = self.model.name
        if not self._workers:
            self._refusal = f"model '{name}' is started again: its worker process {over.why}"
            self._again_s = time.monotonic() + pause_s
            if pause_s > SHORT_S:
                self.on_free()
        worker = None
        end_s = time.monotonic() + pause_s
        while (left_s := min(end_s - time.monotonic(), self._pause_left_s(self.model))) > 0:  # noqa: ASYNC110 - a clock's
            await asyncio.sleep(min(left_s, RELEASED_S))
        while worker is None:
            try:
                worker = await self._start()
            except MeshError as error:
                if not self._workers:
                    self._give_up()
                    self._refusal, self._lost = error.message, True
                    self.on_free()
                    self.on_lost(error.message)
                    return
                # The others answer meanwhile.
                pause_s = min(LONGEST_AGAIN_S, max(FIRST_AGAIN_S, pause_s * 2))
                await asyncio.sleep(pause_s)
        self._refusal = ""
        worker.on_over = self._over
        self._workers.append(worker)
        if worker.over is not None:
            self._over(worker)
        self.on_free()

    def __repr__(self) -> str:
        """Show the workers."""
        return f"<WorkerCopy {self.model.name} workers={len(self._workers)}/{self._instances}>"


class _TurnSteps:
    """A `Steps` whose turns run in a worker. A state is what the worker wrote, and read here only to be told."""

    def __init__(self, copy: WorkerCopy, *, generates: bool) -> None:
        self._copy = copy
        self.generates = generates
        self.most_rows = most_rows(copy.model, generates=generates)

    def step(self, turns: Sequence[Turn]) -> None:
        raise NotImplementedError("turns in workers are begun, not waited for")

    def packed(self, state: Any) -> Any:
        try:
            return decode_state(state) if state else None
        except BadValue as error:
            raise ModelFailed(f"the state that a worker left cannot be read: {error}") from error

    def unpacked(self, told: Any) -> Any:
        return encode_state(as_dict(told))


_PLAIN: Final = Request()
_NOTHING: Final[list[Any]] = ["", {}]


def _said(request: Request) -> list[Any]:
    return [request.id, dict(request.parameters)] if request.id or request.parameters else _NOTHING


def _turn_said(turn: Turn) -> list[Any]:
    return [dict(turn.inputs), _said(turn.request), turn.id, turn.start, turn.end, turn.state or b""]
