"""One attempt at a request for a pipeline by one plan: the router's own steps, and what the nodes tell of theirs.

`mesh.core.pipeline.run` decides what runs when; this file carries tensors from answer to question and keeps deadlines.
A step of a request that is over (answered, failed, given up) is cancelled at its node.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from mesh.api.carried import Carried, read_tensors, request_message, stacked
from mesh.api.messages import ModelInferResponse
from mesh.core.errors import DeadlineExceeded, MeshError, RemoteError, code_of, let_go
from mesh.core.forwarding import NOTHING
from mesh.core.pipeline import run as graphs
from mesh.core.pipeline.cut import ROUTER
from mesh.core.pipeline.run import EACH_AT_ONCE, NEVER_BETTER, Action, Run, compare, count_of, of_step
from mesh.core.pipeline.spec import Condition, Literal
from mesh.core.traffic.retry import Fate, Tries
from mesh.core.types import NodeId
from mesh.router.ends import fate_told
from mesh.router.plans import Plan
from mesh.router.spread import Away, Broke, Ended, Event
from mesh.telemetry.statistics import StepStatistics
from mesh.wire.transport import Call, Metadata

if TYPE_CHECKING:
    from mesh.router.dispatch import Dispatch

_TRACE = frozenset({"traceparent", "tracestate"})
_NOT_FOR_STEPS = _TRACE | {"mm-model-id", "mm-vmodel-id"}


def trace_of(metadata: Metadata) -> dict[str, str]:
    """Return the trace context in metadata (W3C)."""
    return {name: value for name, value in metadata if name in _TRACE and isinstance(value, str)}


def call_of_step(call: Call, trace: Mapping[str, str]) -> Call:
    """Return the call of a step's model on behalf of a caller, under this trace."""
    kept = tuple(pair for pair in call.metadata if pair[0] not in _NOT_FOR_STEPS)
    # What is forwarded of the headers is among the request's parameters already.
    return Call(call.method, (*kept, *trace.items()), call.deadline_s, call.peer, forwarded=NOTHING)


class Elsewhere(Exception):
    """Another cut, without `node`, may end better than with `error`."""

    def __init__(self, node: NodeId, error: MeshError, fate: Fate) -> None:
        super().__init__(error.message)
        self.node = node
        self.error = error
        self.fate = fate


class Attempt:
    """One attempt at a request: the router's own steps, and what the nodes tell of theirs."""

    def __init__(  # noqa: PLR0917 - one call of it
        self,
        dispatch: Dispatch,
        call: Call,
        plan: Plan,
        parameters: Mapping[str, Literal],
        trace: Mapping[str, str],
        steps: StepStatistics,
        tries: Tries,
    ) -> None:
        self._dispatch = dispatch
        self._call = call
        self._plan = plan
        self._parameters = parameters
        self._steps = steps
        self._trace = trace
        self._tries = tries
        self._events: asyncio.Queue[Event | asyncio.Task[dict[str, Carried]]] = asyncio.Queue()
        self._running: dict[asyncio.Task[dict[str, Carried]], graphs.Call[Carried]] = {}

    async def answer(self, away: Away, given: Mapping[str, Carried]) -> Mapping[str, Carried]:
        """Return the outputs. Raises a `MeshError` that names the step, or `Elsewhere`."""
        run: Run[Carried] = Run(self._plan.graph, given, holds, self._plan.shares[ROUTER])
        away.listen(self._events.put_nowait)
        answered = False
        try:
            if self._call.deadline_s is None:
                outputs = await self._drive(run, away)
            else:
                # What only nodes wait for ends with the deadline, too.
                async with asyncio.timeout(self._call.deadline_s - time.monotonic()):
                    outputs = await self._drive(run, away)
            answered = True
        except TimeoutError:
            told = f"the deadline passed before pipeline '{run.pipeline.name}' answered; its steps run on "
            nodes = ", ".join(f"'{node}'" for node in self._plan.nodes) or "no node"
            raise DeadlineExceeded(told + nodes) from None
        finally:
            away.close(answered=answered)
            if self._running:
                for task in self._running:
                    task.cancel()
                await asyncio.gather(*self._running, return_exceptions=True)
        return outputs

    async def _drive(self, run: Run[Carried], away: Away) -> Mapping[str, Carried]:
        actions = run.begin()
        while True:
            for action in actions:
                match action:
                    case graphs.Finish(outputs):
                        return outputs
                    case graphs.End(step, outputs):
                        away.tell(step, outputs)
                    case graphs.Fail(step, error):
                        raise of_step(run.pipeline.name, step, error)
                    case graphs.Call():
                        self._begin(action)
            actions = self._take(run, await self._events.get())

    def _begin(self, action: graphs.Call[Carried]) -> None:
        task = asyncio.create_task(self._step(action))
        self._running[task] = action
        task.add_done_callback(self._events.put_nowait)

    def _take(self, run: Run[Carried], event: Event | asyncio.Task[dict[str, Carried]]) -> list[Action[Carried]]:
        """Return what follows from how a step ended, here or elsewhere."""
        match event:
            case Ended(step, outputs):
                return run.heard(step, outputs)
            case Broke(step, node, error, fate):
                pipeline = run.pipeline.name
                # Nodes name the step themselves.
                told = of_step(pipeline, step, error) if step and f"step '{step}'" not in error.message else error
                assert isinstance(told, MeshError)
                if fate is not Fate.ANSWERED:
                    raise Elsewhere(node, told, fate)
                raise told
        step = self._running.pop(event).step.name
        failed = event.exception()
        if failed is None:
            return run.done(step, event.result())
        alone = _alone(failed)
        let_go(failed)
        # What ended a process was asked of another one already, where that may be.
        again = code_of(alone) not in NEVER_BETTER and not _died(alone) and _has_time(self._call)
        return run.failed(step, alone, again=again)

    async def _step(self, action: graphs.Call[Carried]) -> dict[str, Carried]:
        """Run one attempt of a step. Raises a `MeshError`."""
        step, call = action.step, self._call
        parameters = {**self._parameters, **step.parameters}

        async def ask(inputs: Mapping[str, Carried]) -> dict[str, Carried]:
            message = request_message(action.model, action.version, inputs, parameters)
            own = call_of_step(call, self._trace)
            answer = await self._dispatch.infer(own, message.SerializeToString(), Tries(self._tries))
            return read_tensors(ModelInferResponse.FromString(answer))

        began_ns = time.monotonic_ns()
        statistics = self._steps.of(self._plan.graph.pipeline.name, step.name)
        counted = statistics.fail
        try:
            async with asyncio.timeout(step.timeout_s or None):
                answer = await (_each(step.each, action.inputs, ask) if step.each else ask(action.inputs))
            counted = statistics.success
            statistics.inferences += 1
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within the step's timeout of {step.timeout_s:g} s") from None
        finally:
            counted.add(time.monotonic_ns() - began_ns)
        return answer


def holds(when: Condition, tensor: Carried) -> bool:
    """Tell whether a condition is true. Raises `InvalidRequest` for a tensor that it does not fit."""
    return compare(when, tensor.item())


async def _each(
    names: tuple[str, ...], inputs: Mapping[str, Carried], ask: Callable[[Mapping[str, Carried]], Awaitable[Any]]
) -> dict[str, Carried]:
    """Ask for every element of the inputs `names`, some at a time, and stack the answers in their order."""
    parts = {name: inputs[name].elements() for name in names}
    count = count_of({name: len(part) for name, part in parts.items()})
    room = asyncio.Semaphore(EACH_AT_ONCE)

    async def one(at: int) -> dict[str, Carried]:
        async with room:
            found: dict[str, Carried] = await ask({**inputs, **{name: part[at] for name, part in parts.items()}})
            return found

    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(one(at)) for at in range(count)]
    answers = [task.result() for task in asked]
    return {name: stacked([answer[name] for answer in answers if name in answer]) for name in answers[0]}


def _alone(error: BaseException) -> Exception:
    """Return the first of what went wrong at once."""
    first = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error
    assert isinstance(first, Exception), "a step that this request did not cancel was cancelled"
    return first


def _died(error: Exception) -> bool:
    return isinstance(error, RemoteError) and fate_told(error) is Fate.DIED


def _has_time(call: Call) -> bool:
    return call.deadline_s is None or time.monotonic() < call.deadline_s
