"""A request for a pipeline: its steps, each an ordinary request of its model, as soon as what they need is there.

`mesh.core.pipeline.run` decides what runs when; this file carries tensors from answer to question and keeps deadlines.
A step of a request that is over (answered, failed, given up) is cancelled at its node.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from mesh.api.carried import TYPED, Carried, read_tensors, request_message, response_message, stacked, wants_typed
from mesh.api.messages import ModelInferRequest, ModelInferResponse
from mesh.api.pipelines import check_inputs, wanted_outputs
from mesh.core.errors import DeadlineExceeded, RemoteError, code_of
from mesh.core.pipeline import run as graphs
from mesh.core.pipeline.run import EACH_AT_ONCE, NEVER_BETTER, Run, compare, count_of, of_step
from mesh.core.pipeline.spec import Condition
from mesh.registry.mirror import Mirror
from mesh.router.observe import Observed
from mesh.router.target import Target
from mesh.wire.transport import NOT_RUN_TRAILER, PIPELINE_HEADER, Call, Metadata

if TYPE_CHECKING:
    from mesh.router.dispatch import Dispatch

_NOT_FOR_STEPS = ("mm-model-id", "mm-vmodel-id", "traceparent", "tracestate")


class Pipelines:
    """Answers requests for the pipelines of the view, with the parts of `dispatch`, which answers those of models."""

    def __init__(self, mirror: Mirror, dispatch: Dispatch) -> None:
        self._mirror = mirror
        self._dispatch = dispatch
        self._graphs = graphs.Graphs()

    async def answer(self, call: Call, message: bytes, target: Target, seen: Observed) -> bytes:
        """Answer one request, in one hop where a node holds all of its models, else step by step.

        Raises a `MeshError` that names the step; cancelling it cancels the steps that run.
        """
        seen.model = target.model
        answer = await self._in_one_hop(call, message, target, seen)
        return await self._step_by_step(call, message, target, seen) if answer is None else answer

    async def _in_one_hop(self, call: Call, message: bytes, target: Target, seen: Observed) -> bytes | None:
        """Return a node's answer; None when there is no such node, or it went away or lacks a model after all."""
        dispatch, u = self._dispatch, random.random()  # noqa: S311 - a choice of two
        located = dispatch.balancer.pick(target.candidates, tried=(), now_s=time.monotonic(), u=u)
        if located is None:
            return None
        seen.asked(located.node.id)
        metadata = (*dispatch.metadata(call, target.model, seen), (PIPELINE_HEADER, str(target.model.version)))
        try:
            reply = await dispatch.send(call, located, message, metadata)
        except RemoteError as error:
            dispatch.metrics.attempt_failed(located.node.id, error.status.name)
            if error.transport_failed or any(key == NOT_RUN_TRAILER for key, _ in error.trailers):
                return None
            raise
        return reply.message

    async def _step_by_step(self, call: Call, message: bytes, target: Target, seen: Observed) -> bytes:
        pipeline, model = target.pipeline, target.model
        assert pipeline is not None
        asked = ModelInferRequest.FromString(message)
        given = read_tensors(asked)
        check_inputs(pipeline.name, model.inputs, given)
        wanted = wanted_outputs(pipeline, asked.outputs)
        parameters = {name: value for name, value in asked.parameters.items() if name != TYPED}
        run: Run[Carried] = Run(self._graphs.of(pipeline), given, _holds)
        outputs = await self._drive(run, call, parameters, seen.headers())
        answer = {name: outputs[name] for name in wanted if name in outputs}
        response = response_message(pipeline.name, str(pipeline.revision), asked.id, answer, typed=wants_typed(asked))
        return response.SerializeToString()

    async def _drive(
        self, run: Run[Carried], call: Call, parameters: Mapping[str, Any], trace: Metadata
    ) -> Mapping[str, Carried]:
        running: dict[asyncio.Task[dict[str, Carried]], graphs.Call[Carried]] = {}
        metadata = (*(pair for pair in call.metadata if pair[0] not in _NOT_FOR_STEPS), *(trace or _trace(call)))
        try:
            actions = run.begin()
            while True:
                for action in actions:
                    match action:
                        case graphs.Finish(outputs):
                            return outputs
                        case graphs.Fail(step, error):
                            raise of_step(run.pipeline.name, step, error)
                        case graphs.Call():
                            one = self._step(action, call, parameters, metadata)
                            running[asyncio.create_task(one)] = action
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                actions = []
                for task in done:
                    step = running.pop(task).step.name
                    failed = task.exception()
                    if failed is None:
                        actions += run.done(step, task.result())
                    elif isinstance(failed, Exception):
                        error = _alone(failed)
                        again = code_of(error) not in NEVER_BETTER and _has_time(call)
                        actions += run.failed(step, error, again=again)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _step(
        self, action: graphs.Call[Carried], call: Call, parameters: Mapping[str, Any], metadata: Metadata
    ) -> dict[str, Carried]:
        """Run one attempt of a step. Raises a `MeshError`."""
        step = action.step

        async def ask(inputs: Mapping[str, Carried]) -> dict[str, Carried]:
            message = request_message(action.model, action.version, inputs, (), {**parameters, **step.parameters})
            own = Call(call.method, metadata, call.deadline_s, call.peer)
            answer = await self._dispatch.infer(own, message.SerializeToString())
            return read_tensors(ModelInferResponse.FromString(answer))

        try:
            async with asyncio.timeout(step.timeout_s or None):
                return await (_each(step.each, action.inputs, ask) if step.each else ask(action.inputs))
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within the step's timeout of {step.timeout_s:g} s") from None

    def __repr__(self) -> str:
        """Show the graphs that were used."""
        return f"<Pipelines {self._graphs!r}>"


def _holds(when: Condition, tensor: Carried) -> bool:
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


def _alone(error: Exception) -> Exception:
    """Return the first of what went wrong at once."""
    return error.exceptions[0] if isinstance(error, ExceptionGroup) else error


def _trace(call: Call) -> Metadata:
    """Return the caller's own trace, for steps of a request that has no span here."""
    return tuple(pair for pair in call.metadata if pair[0] in {"traceparent", "tracestate"})


def _has_time(call: Call) -> bool:
    return call.deadline_s is None or time.monotonic() < call.deadline_s
