"""Pipelines of tiny steps as one model: one queue, one batch, and the steps one after another on arrays.

A queue of its own costs a step more than a small model's run takes. Where nothing speaks against it (no conditions, no
text, every copy idle, every run measured to be short) requests that came together go through all steps together, on the
event loop, and each step's statistics count them. Anything else goes the way of `graph`, step by step through the
models' queues; a request that finds a copy busy does so too. Both ways give the same answers: tests compare them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

import numpy as np

from mesh.api.question import decode, is_long
from mesh.api.tensors import NUMPY
from mesh.core.batching import Run as RunTogether
from mesh.core.batching import next_batch
from mesh.core.errors import MeshError
from mesh.core.pipeline.run import Graph, Share
from mesh.core.pipeline.spec import Ref, Step
from mesh.core.types import Dtype, ModelVersion, TensorSpec
from mesh.node.asked import Asked
from mesh.node.batcher import Batcher
from mesh.node.gauge import ON_LOOP_S
from mesh.node.item import Item, Ran
from mesh.node.labor import Begun
from mesh.node.plan import Part
from mesh.node.plans import Plans
from mesh.node.running import NOBODY, Reply, Running
from mesh.node.runtimes.base import Array, Request, Tensors
from mesh.node.served import Served
from mesh.node.steps import Copies
from mesh.telemetry.metrics import NodeMetrics
from mesh.telemetry.statistics import StepStatistics

LONG_WAY: Final = frozenset({Dtype.BYTES, Dtype.BF16})
"""Types that are not the same between models as they are in arrays."""
MOST_WAITING: Final = 65_536
"""Requests in a chain's queue, which is emptied in every turn of the loop."""
AT_MOST_S: Final = 2 * ON_LOOP_S
"""All steps of a request together, on the event loop."""


class NotNow(MeshError):
    """A copy is busy, or a step failed: the request goes through the models' own queues. Nobody outside sees this."""

    reruns = False


@dataclass(frozen=True, slots=True)
class _Step:
    name: str
    served: Served
    queue: Batcher
    """The copy's own."""
    inputs: tuple[tuple[TensorSpec, int], ...]
    """What it takes, and the slots it is in."""
    outputs: tuple[tuple[TensorSpec, int], ...]
    """Those that somebody wants, and their slots."""
    request: Request
    most_rows: int
    """0: the first axis is not a batch."""


@dataclass(frozen=True, slots=True)
class Ends:
    """What goes into a chain and comes out of it."""

    takes: tuple[tuple[TensorSpec, Ref], ...]
    """Named as the chain's callers name them."""
    gives: tuple[tuple[str, Ref], ...]
    specs: tuple[TensorSpec, ...] = ()
    """What is known of what it gives."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What counts the steps of chains."""

    metrics: NodeMetrics
    steps: StepStatistics


class Chain:
    """The steps in an order in which each has what it needs: a `runtimes.base.Loaded`."""

    apart = None
    executor = None
    parallel = 1
    steady = True
    steps = None

    def __init__(self, ends: Ends, graph: Graph, steps: Collection[str], copies: Copies) -> None:
        self.inputs = tuple(spec for spec, _ in ends.takes)
        self.outputs = ends.specs
        self.copies = tuple(dict.fromkeys(copies.values()))
        self._pipeline = graph.pipeline.name
        slots: dict[Ref, int] = {ref: at for at, (_, ref) in enumerate(ends.takes)}
        self._steps = [_step(graph, graph.steps[name], copies, slots) for name in graph.order if name in steps]
        self._answers = [(name, slots[ref]) for name, ref in ends.gives]
        self._slots = len(slots)
        self.max_rows = min(step.most_rows for step in self._steps)
        """Of requests that run together; 0: none do."""
        self.batches = self.max_rows > 0
        self.ran_s = [0.0] * len(self._steps)
        """Seconds of each step's latest run."""

    def is_free(self, size: int) -> bool:
        """Tell whether inputs of `size` bytes may run through all steps here and now."""
        scale = self._steps[0].queue.scale(size)
        work_s = 0.0
        for step in self._steps:
            if step.served.gone or not step.queue.is_free(scale):
                return False
            work_s += step.queue.work_s
        return work_s * max(1.0, scale) < AT_MOST_S

    def admit(self, inputs: Tensors) -> Tensors:
        """Return the inputs: models that look at values are no part of chains."""
        return inputs

    def run(self, inputs: Tensors, request: Request) -> Tensors:
        """Return the outputs. Raises `NotNow` for whatever goes wrong: the other way finds the words for it."""
        held: list[Array | None] = [None] * self._slots
        for at, spec in enumerate(self.inputs):
            held[at] = inputs[spec.name]
        for at, step in enumerate(self._steps):
            try:
                self.ran_s[at] = _ran(step, held)
            except Exception as error:
                raise NotNow(f"step '{step.name}': {error}") from error
        return {name: held[slot] for name, slot in self._answers}  # type: ignore[misc] # every step has run

    def count(self, requests: int, rows: int, counters: Counters) -> None:
        """Count the latest run for requests with `rows` rows in all."""
        for step, ran_s in zip(self._steps, self.ran_s, strict=True):
            served, ran_ns = step.served, int(ran_s * 1e9)
            served.used(requests)
            served.statistics.stepped(requests, rows, ran_ns)
            counters.steps.of(self._pipeline, step.name).stepped(requests, rows, ran_ns)
            counters.metrics.steps_done(served.model.name, served.model.version, requests, compute_s=ran_s)

    def stream(self, inputs: Tensors, request: Request) -> Any:
        """Chains have one response."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is held."""


def whole(model: ModelVersion, graph: Graph) -> Ends | None:
    """Return the ends of a whole pipeline, as its callers know it; None when it cannot be a chain."""
    sources = graph.pipeline.outputs
    if any(len(source) > 1 for source in sources.values()) or not _plain(model.inputs):
        return None
    return Ends(
        tuple((spec, Ref("", spec.name)) for spec in model.inputs),
        tuple((name, source[0]) for name, source in sources.items()),
        model.outputs,
    )


def part(graph: Graph, share: Share, copies: Copies) -> Ends | None:
    """Return the ends of one node's share, with tensors named as they are written; None when it cannot be a chain.

    A chain begins when all it needs is there: steps that could begin earlier, or whose outputs come back as inputs by
    way of other places, are none.
    """
    begins = {ref.step for name in share.mine for ref in graph.steps[name].refs() if ref.step not in share.mine}
    if len(share.mine) > 1 and len(begins) > 1:
        return None
    takes: dict[Ref, TensorSpec] = {}
    for name in sorted(share.mine):
        step = graph.steps[name]
        wanted = {spec.name: spec for spec in copies[step.model, step.version].inputs}
        for each, source in step.inputs.items():
            if source[0].step not in share.mine and each in wanted:
                takes[source[0]] = replace(wanted[each], name=str(source[0]), optional=False)
    if not _plain(takes.values()):
        return None
    gives = {Ref(name, each) for name, to in share.gives.items() for tensors in to.values() for each in tensors}
    return Ends(tuple((spec, ref) for ref, spec in takes.items()), tuple((str(ref), ref) for ref in gives))


def _plain(specs: Collection[TensorSpec]) -> bool:
    return bool(specs) and not any(spec.optional or spec.dtype in LONG_WAY for spec in specs)


def _may_fuse(step: Step, served: Served, known: Collection[Ref], needed: Collection[str]) -> bool:
    """Tell whether a step plainly asks one steady model for numbers."""
    plain = step.when is None and not (step.each or step.timeout_s or step.retries or step.use_on_error) and step.inputs
    named = {spec.name for spec in served.inputs}
    single = all(len(source) == 1 and (source[0].step or source[0] in known) for source in step.inputs.values())
    wanted = all(spec.optional or spec.name in step.inputs for spec in served.inputs)
    numbers = not any(spec.dtype in LONG_WAY for spec in (*served.inputs, *served.outputs.values()))
    ours = named >= step.inputs.keys() and served.outputs.keys() >= set(needed)
    alone = served.model.sequence is None and not served.model.decoupled
    return bool(plain) and single and wanted and numbers and ours and served.loaded.steady and alone


def _step(graph: Graph, step: Step, copies: Copies, slots: dict[Ref, int]) -> _Step:
    served = copies[step.model, step.version]
    outputs = []
    for name in sorted(graph.needed[step.name]):
        slots[Ref(step.name, name)] = len(slots)
        outputs.append((served.outputs[name], slots[Ref(step.name, name)]))
    inputs = tuple((spec, slots[step.inputs[spec.name][0]]) for spec in served.inputs if spec.name in step.inputs)
    most_rows = served.model.max_batch_size if served.loaded.batches else 0
    assert isinstance(served.batcher, Batcher)
    return _Step(
        step.name, served, served.batcher, inputs, tuple(outputs), Request(parameters=dict(step.parameters)), most_rows
    )


def _ran(step: _Step, held: list[Array | None]) -> float:
    """Run one step on what its slots hold and fill its own; return the seconds.

    Raises what the model raises, and `NotNow` for a tensor that is not what the signatures say.
    """
    given: dict[str, Array] = {}
    rows = 0
    for spec, slot in step.inputs:
        array = _checked(held[slot], spec)
        if step.most_rows:
            if array.shape[0] > step.most_rows or rows not in (0, array.shape[0]):
                raise NotNow(f"input '{spec.name}' has {array.shape[0]} rows")
            rows = array.shape[0]
        given[spec.name] = array
    outputs, ran_s = step.queue.run_at_once(given, step.request, rows or 1)
    for spec, slot in step.outputs:
        held[slot] = _checked(outputs.get(spec.name), spec, shaped=False)
    return ran_s


def _checked(array: Any, spec: TensorSpec, *, shaped: bool = True) -> Array:
    fits = array.__class__ is np.ndarray and array.dtype == NUMPY[spec.dtype]
    if fits and shaped:
        fits = len(array.shape) == len(spec.shape)
        for size, want in zip(array.shape, spec.shape, strict=False):
            fits = fits and want in (-1, size)
    if not fits:
        raise NotNow(f"'{spec.name}' is not as its signature says")
    found: Array = array
    return found


class ChainBatcher(Batcher):
    """The queue of a chain: what came in one turn of the loop runs at its end, or is told `NotNow`."""

    def __init__(self, model: ModelVersion, chain: Chain, like: Served, counters: Counters) -> None:
        super().__init__(model, chain, like.executor, like.statistics, default_queue_size=MOST_WAITING)
        self._chain = chain
        self._counters = counters

    def _look(self) -> None:
        self._soon = False
        while self._queue:
            now_s = time.monotonic()
            self._drop_late(now_s)
            waiting = [item.waiting for item in islice(self._queue, self._max_rows + 1)]
            together = next_batch(waiting, max_rows=self._max_rows, delay_s=0.0, now_s=now_s)
            if not isinstance(together, RunTogether):
                return
            count = together.count if self._joins else 1
            batch = [self._queue.popleft() for _ in range(count)]
            if self._chain.is_free(sum([item.size for item in batch])):
                self._run_now(batch, now_s)
            else:
                self._fail(batch, NotNow("a copy is busy"))

    def _finish(self, batch: list[Item], began_s: float, outputs: Tensors, run_s: float, work_s: float) -> None:
        super()._finish(batch, began_s, outputs, run_s, work_s)
        self._chain.count(len(batch), sum([item.waiting.rows for item in batch]), self._counters)


def fuse(  # noqa: PLR0917 - what a chain is made of
    model: ModelVersion,
    ends: Ends | None,
    graph: Graph,
    steps: Collection[str],
    copies: Copies,
    counters: Counters,
) -> Served | None:
    """Return steps as a copy that answers requests without parameters, None when they cannot be one."""
    known = {ref for _, ref in ends.takes} if ends is not None else set()
    specs = [graph.steps[name] for name in steps]
    fits = (_may_fuse(each, copies[each.model, each.version], known, graph.needed[each.name]) for each in specs)
    if ends is None or not all(fits):
        return None
    chain = Chain(ends, graph, steps, copies)
    like = next(iter(copies.values()))
    model = replace(model, max_batch_size=chain.max_rows)
    served = Served(model, chain, like.executor, bytes_held=0, default_queue_size=MOST_WAITING)
    served.batcher = ChainBatcher(model, chain, served, counters)
    return served


class _Unseen:
    """What is remembered of a request that only its steps count: nothing."""

    __slots__ = ("ran", "ran_ns", "read_ns", "rows")

    def __init__(self) -> None:
        self.rows = 1
        self.read_ns = 0
        self.ran: Ran | None = None
        self.ran_ns = 0

    def end(self, error: BaseException | None) -> None:
        """Count nothing."""


class FusedRunning:
    """One request for a chain, the `Reply` of its own run; `otherwise` begins it the other way."""

    __slots__ = ("_asked", "_message", "_otherwise", "_reply", "_running", "_served", "copies")

    def __init__(
        self, served: Served, asked: Asked, message: bytes, reply: Reply, otherwise: Callable[[], Begun]
    ) -> None:
        self._served = served
        self._asked = asked
        self._message = message
        self._reply = reply
        self._otherwise = otherwise
        self._running: Begun | None = None
        chain = served.loaded
        assert isinstance(chain, Chain)
        self.copies = chain.copies

    def begin(self, plans: Plans) -> None:
        """Put it into the chain's queue. Raises `MeshError` for one that is not for a chain."""
        served, message = self._served, self._message
        plan = plans.find(message)
        if plan is not None and plan.served is served:
            inputs = plan.read(message)
            if inputs is not None:
                self._running = running = Running(served, message, plan, self, _Unseen())
                running.submit_planned(inputs, plan, self._asked.deadline_s)
                return
        request = decode(message)
        if is_long(len(message), request):
            raise NotNow("a request that is read in a thread")
        if request.parameters or any(output.parameters for output in request.outputs):
            raise NotNow("a request with parameters")
        self._running = running = Running(served, message, None, self, _Unseen())
        running.submit(request, self._asked, plans)

    def answer(self, response: list[Part]) -> None:
        """Pass the answer on."""
        self._ended().answer(response)

    def _ended(self) -> Reply:
        """Return who hears of the end, and let go of it: it knows this as this knows it."""
        reply, self._reply, self._otherwise = self._reply, NOBODY, _over
        return reply

    def fail(self, error: BaseException) -> None:
        """Begin the other way, or pass on what went wrong."""
        if isinstance(error, NotNow):
            otherwise, reply = self._otherwise, self._ended()
            try:
                self._running = otherwise()
            except Exception as failed:  # noqa: BLE001 - the edge: every failure becomes a status
                reply.fail(failed)
        else:
            self._ended().fail(error)

    def withdraw(self, error: BaseException) -> None:
        """Leave: the caller is gone."""
        running, self._running = self._running, None
        self._ended()
        if running is not None:
            running.withdraw(error)


def _over() -> Begun:
    raise NotNow("this request is over")
