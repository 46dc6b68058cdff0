"""A request for a pipeline: its steps, each an ordinary request of its model, as soon as what they need is there.

`mesh.core.pipeline.run` decides what runs when; this file carries tensors from answer to question and keeps deadlines.
A step of a request that is over (answered, failed, given up) is cancelled at its node.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mesh.api.carried import Carried, read_tensors, request_message, response_message, stacked
from mesh.api.messages import ModelInferRequest, ModelInferResponse
from mesh.core.errors import Code, DeadlineExceeded, InvalidRequest, MeshError, UnknownModel, code_of
from mesh.core.pipeline import run as graphs
from mesh.core.pipeline.check import Signature
from mesh.core.pipeline.run import Graph, Run
from mesh.core.pipeline.spec import Condition, Op, Pipeline
from mesh.core.types import ModelName, ModelVersion, Version
from mesh.core.view import ClusterView
from mesh.registry.mirror import Mirror
from mesh.router.observe import Observed
from mesh.router.signatures import signature
from mesh.wire.peek import Peeked
from mesh.wire.transport import Call, Metadata

Infer = Callable[[Call, bytes], Awaitable[bytes]]

TYPED = "mesh_typed_contents"
"""Request parameter: answer with typed contents, for people with grpcurl."""

EACH_AT_ONCE = 64
"""Elements that a step over each element asks for at a time: enough to fill batches, and bounded memory."""

_NEVER_BETTER = frozenset({Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.UNIMPLEMENTED, Code.PERMISSION_DENIED})
"""Codes that another attempt ends with again."""

_NOT_FOR_STEPS = ("mm-model-id", "mm-vmodel-id", "traceparent", "tracestate")


class Pipelines:
    """Answers requests for the pipelines of the view. `infer` answers one request of a model or of a pipeline."""

    def __init__(self, mirror: Mirror, infer: Infer) -> None:
        self._mirror = mirror
        self._infer = infer
        self._graphs: dict[str, Graph] = {}

    async def answer(self, call: Call, message: bytes, request: Peeked, seen: Observed) -> bytes:
        """Answer one request. Raises a `MeshError` that names the step; cancelling it cancels the steps that run."""
        view = self._mirror.view
        pipeline = _named(view, call, request)
        seen.model = as_model(view, pipeline)
        graph = self._graph(pipeline)
        asked = ModelInferRequest.FromString(message)
        given = read_tensors(asked)
        _check_inputs(pipeline.name, signature(view, pipeline.name, ""), given)
        wanted = _wanted(pipeline, [each.name for each in asked.outputs])
        parameters = {name: value for name, value in asked.parameters.items() if name != TYPED}
        run: Run[Carried] = Run(graph, given, holds)
        outputs = await self._drive(run, call, parameters, seen.headers())
        typed = TYPED in asked.parameters and asked.parameters[TYPED].bool_param
        answer = {name: outputs[name] for name in wanted if name in outputs}
        return response_message(
            pipeline.name, str(pipeline.revision), asked.id, answer, typed=typed
        ).SerializeToString()

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
                            raise _of_step(run, step, error)
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
                        again = code_of(failed) not in _NEVER_BETTER and _has_time(call)
                        actions += run.failed(step, failed, again=again)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _step(
        self, action: graphs.Call[Carried], call: Call, parameters: Mapping[str, Any], metadata: Metadata
    ) -> dict[str, Carried]:
        """Run one attempt of a step. Raises a `MeshError`."""
        step = action.step
        limit_s = time.monotonic() + step.timeout_s if step.timeout_s else None
        ends = [each for each in (limit_s, call.deadline_s) if each is not None]
        deadline_s = min(ends, default=None)

        async def ask(inputs: Mapping[str, Carried]) -> dict[str, Carried]:
            message = request_message(action.model, action.version, inputs, (), {**parameters, **step.parameters})
            own = Call(call.method, metadata, deadline_s, call.peer)
            answer = await self._infer(own, message.SerializeToString())
            return read_tensors(ModelInferResponse.FromString(answer))

        try:
            async with asyncio.timeout(None if limit_s is None else step.timeout_s):
                return await (_each(step.each, action.inputs, ask) if step.each else ask(action.inputs))
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within the step's timeout of {step.timeout_s:g} s") from None

    def _graph(self, pipeline: Pipeline) -> Graph:
        known = self._graphs.get(pipeline.name)
        if known is None or known.pipeline is not pipeline:
            known = self._graphs[pipeline.name] = Graph(pipeline)
        return known

    def __repr__(self) -> str:
        """Show the graphs that were used."""
        return f"<Pipelines {sorted(self._graphs)}>"


def as_model(view: ClusterView, pipeline: Pipeline) -> ModelVersion:
    """Return a pipeline as the protocol's calls about models show it: an ensemble, as Triton calls it."""
    found = signature(view, pipeline.name, "") or Signature({}, {})
    return ModelVersion(
        ModelName(pipeline.name),
        Version(str(pipeline.revision)),
        runtime="pipeline",
        source="",
        digest="",
        size_bytes=0,
        platform="ensemble",
        inputs=tuple(found.inputs.values()),
        outputs=tuple(found.outputs.values()),
    )


def holds(when: Condition, tensor: Carried) -> bool:
    """Tell whether a condition is true of a tensor. Raises `InvalidRequest` where they cannot be compared."""
    value, wanted = tensor.item(), when.value
    if isinstance(value, str) is not isinstance(wanted, str):
        raise InvalidRequest(f"expected {when.of} to compare with {wanted!r}, it is {tensor.dtype.value}")
    match when.op:
        case Op.EQUAL:
            return value == wanted
        case Op.NOT_EQUAL:
            return value != wanted
        case Op.LESS:
            return value < wanted  # type: ignore[operator] # both are text or both are numbers
        case Op.AT_MOST:
            return value <= wanted  # type: ignore[operator] # as above
        case Op.MORE:
            return value > wanted  # type: ignore[operator] # as above
    return value >= wanted  # type: ignore[operator] # as above


def _named(view: ClusterView, call: Call, request: Peeked) -> Pipeline:
    name = call.meta("mm-vmodel-id") or call.meta("mm-model-id") or request.model_name
    pipeline = view.pipelines.get(name)
    version = request.model_version
    if pipeline is None or version not in {"", str(pipeline.revision)}:
        told = f" version {version}" if version else ""
        raise UnknownModel(f"Request for unknown model: '{name}'{told} is not found")
    return pipeline


def _check_inputs(name: str, found: Signature | None, given: Mapping[str, Carried]) -> None:
    if found is None:
        return
    required = [each for each, spec in found.inputs.items() if not spec.optional]
    missing = [each for each in required if each not in given]
    if missing:
        got, lacks = ",".join(f"'{each}'" for each in given), ",".join(f"'{each}'" for each in missing)
        raise InvalidRequest(
            f"expected {len(required)} inputs but got {len(given)} inputs for model '{name}'. "
            f"Got input(s) [{got}], but missing required input(s) [{lacks}]. Please provide all required input(s)."
        )
    for each, tensor in given.items():
        spec = found.inputs.get(each)
        if spec is None:
            takes = ", ".join(sorted(found.inputs))
            raise InvalidRequest(f"unexpected inference input '{each}' for model '{name}', which takes {takes}")
        if tensor.dtype is not spec.dtype:
            raise InvalidRequest(
                f"inference input '{each}' data-type is '{tensor.dtype.value}', "
                f"but model '{name}' expects '{spec.dtype.value}'"
            )
        fits = len(tensor.shape) == len(spec.shape) and all(
            want in {-1, size} for size, want in zip(tensor.shape, spec.shape, strict=True)
        )
        if not fits:
            expected, got = (f"[{','.join(map(str, shape))}]" for shape in (spec.shape, tensor.shape))
            raise InvalidRequest(
                f"unexpected shape for input '{each}' for model '{name}'. Expected {expected}, got {got}"
            )


def _wanted(pipeline: Pipeline, named: list[str]) -> list[str]:
    for name in named:
        if name not in pipeline.outputs:
            there = ", ".join(pipeline.outputs)
            raise InvalidRequest(
                f"unexpected inference output '{name}' for model '{pipeline.name}', which answers {there}"
            )
    return named or list(pipeline.outputs)


async def _each(
    names: tuple[str, ...], inputs: Mapping[str, Carried], ask: Callable[[Mapping[str, Carried]], Awaitable[Any]]
) -> dict[str, Carried]:
    """Ask for every element of the inputs `names`, some at a time, and stack the answers in their order."""
    parts = {name: inputs[name].elements() for name in names}
    counts = {name: len(part) for name, part in parts.items()}
    if len(set(counts.values())) != 1 or not all(counts.values()):
        raise InvalidRequest(f"expected inputs with the same number of elements, at least one, got {counts}")
    room = asyncio.Semaphore(EACH_AT_ONCE)

    async def one(at: int) -> dict[str, Carried]:
        async with room:
            found: dict[str, Carried] = await ask({**inputs, **{name: part[at] for name, part in parts.items()}})
            return found

    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(one(at)) for at in range(next(iter(counts.values())))]
    answers = [task.result() for task in asked]
    return {name: stacked([answer[name] for answer in answers if name in answer]) for name in answers[0]}


def _of_step(run: Run[Carried], step: str, error: Exception) -> Exception:
    """Return the failure of a step as the caller reads it: of the same kind, with the step's name before its words."""
    if isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, MeshError):
        return error
    # A copy: callers that wait for one load share its failure.
    told = type(error).__new__(type(error))
    told.__dict__.update(error.__dict__)
    told.message = f"step '{step}' of pipeline '{run.pipeline.name}': {error.message}"
    told.args = (told.message,)
    return told


def _trace(call: Call) -> Metadata:
    """Return the caller's own trace, for steps of a request that has no span here."""
    return tuple(pair for pair in call.metadata if pair[0] in {"traceparent", "tracestate"})


def _has_time(call: Call) -> bool:
    return call.deadline_s is None or time.monotonic() < call.deadline_s
