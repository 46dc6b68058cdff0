"""Requests for pipelines with steps that answer several times: each response flows on through the steps behind it.

The pipeline is split around such a step (`mesh.core.pipeline.split`). What is before it runs once; it is asked as a
stream of its own, by this router; and for each of its responses what is behind it runs, some responses side by side, in
their order. Both halves run wherever their copies are, as pipelines do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mesh.api.carried import Carried, read_tensors, request_message
from mesh.api.messages import ModelInferResponse, ModelStreamInferResponse
from mesh.api.stream import read_error
from mesh.core.errors import MeshError, ModelFailed
from mesh.core.pipeline.run import Call as Asks
from mesh.core.pipeline.run import Fail, Graph, Run, of_step
from mesh.core.pipeline.spec import Literal, Pipeline, Step
from mesh.core.pipeline.split import Split, first_of, split
from mesh.core.traffic.retry import Tries
from mesh.router.attempt import call_of_step, holds, trace_of
from mesh.router.observe import Observed
from mesh.router.pipelines import question
from mesh.router.target import Target
from mesh.wire.peek import peek
from mesh.wire.transport import Call

if TYPE_CHECKING:
    from mesh.router.streams import Streams

SIDE_BY_SIDE: Final = 16
"""Responses of one step that are on their way through the steps behind it; then the step waits."""

Tensors = Mapping[str, Carried]
_Following = Tensors | asyncio.Task[Tensors] | Exception | None
"""What follows from a response: tensors to go on with, or what is being made of them; None and an error are the end."""


@dataclass(frozen=True, slots=True)
class _One:
    """One request."""

    call: Call
    seen: Observed
    parameters: Mapping[str, Literal]
    pipeline: Pipeline
    """The whole."""


class Several:
    """Answers requests for such pipelines, with the parts of `streams`."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._dispatch = streams.dispatch
        self._splits: dict[tuple[str, str], tuple[Pipeline, str, Split]] = {}

    async def responses(self, call: Call, message: bytes, target: Target, seen: Observed) -> AsyncGenerator[bytes]:
        """Yield the messages that answer one request. Raises a `MeshError` that names the step."""
        asked = await question(message, target)
        parameters = {**asked.parameters, **self._dispatch.forwarded(call)}
        one = _One(call, seen, parameters, asked.pipeline)
        async with aclosing(self._outputs(one, asked.pipeline, "", asked.given)) as found:
            async for outputs in found:
                yield _message(asked.answer(outputs), is_final=False)
        if asked.wants_final:
            yield _message(asked.final(), is_final=True)

    async def _outputs(self, one: _One, pipeline: Pipeline, path: str, given: Tensors) -> AsyncGenerator[Tensors]:
        """Yield what a pipeline gives, once for each response of its first step with several."""
        step = self._first(pipeline)
        pipelines = self._dispatch.pipelines
        if step is None:
            graph = pipelines.graph(one.pipeline, path)
            yield await pipelines.outputs(one.call, graph, given, one.parameters, one.seen)
            return
        parts = self._split(pipeline, path, step.name)
        known = dict(given)
        if parts.before.steps:
            graph = pipelines.graph(one.pipeline, f"{path}{step.name}<")
            known.update(await pipelines.outputs(one.call, graph, given, one.parameters, one.seen))
        asks = self._asks(parts.asked, known)
        after = f"{path}{step.name}>"
        if asks is None:
            async with aclosing(self._outputs(one, parts.after, after, known)) as found:
                async for outputs in found:
                    yield outputs
            return
        async with aclosing(self._each(one, parts, after, known, asks)) as found:
            async for outputs in found:
                yield outputs

    async def _each(
        self, one: _One, parts: Split, path: str, known: Tensors, asks: Asks[Carried]
    ) -> AsyncGenerator[Tensors]:
        """Yield what follows from each response of a step, in their order and as soon as it is there."""
        several = self._first(parts.after) is not None
        graph = None if several else self._dispatch.pipelines.graph(one.pipeline, path)
        following: asyncio.Queue[_Following] = asyncio.Queue(SIDE_BY_SIDE)
        asking = asyncio.create_task(self._follow(one, parts, graph, known, asks, following))
        begun: Tensors | asyncio.Task[Tensors] | Exception | None = None
        try:
            while (begun := await following.get()) is not None:
                if isinstance(begun, Exception):
                    raise begun
                if isinstance(begun, asyncio.Task):
                    yield await begun
                    continue
                async with aclosing(self._outputs(one, parts.after, path, begun)) as found:
                    async for outputs in found:
                        yield outputs
        finally:
            asking.cancel()
            left = [begun] if isinstance(begun, asyncio.Task) else []
            while not following.empty():
                each = following.get_nowait()
                left += [each] if isinstance(each, asyncio.Task) else []
            for task in left:
                task.cancel()
            await asyncio.gather(asking, *left, return_exceptions=True)

    async def _follow(  # noqa: PLR0917 - one call of it
        self,
        one: _One,
        parts: Split,
        graph: Graph | None,
        known: Tensors,
        asks: Asks[Carried],
        following: asyncio.Queue[_Following],
    ) -> None:
        """Ask the step, and begin what follows from each response; without a `graph` that is split itself."""
        wanted, name = parts.asked.outputs, asks.step.name
        last: Exception | None = None
        try:
            async with aclosing(self._ask(one, asks)) as responses:
                async for tensors in responses:
                    missing = [each for each in wanted if each.removeprefix(f"{name}.") not in tensors]
                    if missing:
                        last = ModelFailed(f"step '{name}' did not answer with {', '.join(missing)}")
                        break
                    given = {**known, **{each: tensors[each.removeprefix(f"{name}.")] for each in wanted}}
                    if graph is None:
                        await following.put(given)
                        continue
                    work = self._dispatch.pipelines.outputs(one.call, graph, given, one.parameters, one.seen)
                    task = asyncio.create_task(work)
                    try:
                        await following.put(task)
                    except BaseException:
                        task.cancel()
                        raise
        except Exception as error:  # noqa: BLE001 - it is told behind what came before
            last = error
        await following.put(last)

    async def _ask(self, one: _One, asks: Asks[Carried]) -> AsyncGenerator[Tensors]:
        """Yield the responses of a step."""
        step = asks.step
        parameters = {**one.parameters, **step.parameters}
        message = request_message(asks.model, asks.version, asks.inputs, parameters).SerializeToString()
        target = self._dispatch.targets.find(asks.model, asks.version)
        own = call_of_step(one.call, trace_of(one.seen.headers() or one.call.metadata))
        began_ns = time.monotonic_ns()
        statistics = self._dispatch.pipelines.steps.of(one.pipeline.name, step.name)
        counted = statistics.fail
        try:
            async with aclosing(
                self._streams.responses(own, message, peek(message), target, Tries(one.seen.tries))
            ) as responses:
                async for response in responses:
                    tensors = _read(response)
                    if tensors:
                        statistics.inferences += 1
                        yield tensors
            counted = statistics.success
        except Exception as error:
            raise of_step(one.pipeline.name, step.name, error) from error
        finally:
            counted.add(time.monotonic_ns() - began_ns)

    def _asks(self, asked: Pipeline, known: Tensors) -> Asks[Carried] | None:
        """Return what a step is asked, None when it is skipped."""
        run: Run[Carried] = Run(Graph(asked), known, holds)
        (action, *_) = run.begin()
        if isinstance(action, Fail):
            raise of_step(asked.name, action.step, action.error)
        return action if isinstance(action, Asks) else None

    def _first(self, pipeline: Pipeline) -> Step | None:
        """Return the step with several responses that has all others of them behind it."""
        return first_of(pipeline, [step for step in pipeline.steps if self._is_several(step)])

    def _is_several(self, step: Step) -> bool:
        try:
            return self._dispatch.targets.find(step.model, step.version).model.decoupled
        except MeshError:
            return False  # Its own request will say so.

    def _split(self, pipeline: Pipeline, path: str, name: str) -> Split:
        known = self._splits.get((pipeline.name, path))
        if known is None or known[0] is not pipeline or known[1] != name:
            known = self._splits[pipeline.name, path] = (pipeline, name, split(pipeline, name))
        return known[2]

    def __repr__(self) -> str:
        """Show the pipelines that were asked for."""
        return f"<Several {sorted(self._splits)}>"


def _read(response: bytes) -> Tensors:
    """Return the tensors of a response, none for the empty one behind the last. Raises what a message with one says."""
    error = read_error(response)
    if error is not None:
        raise error[0]
    return read_tensors(ModelStreamInferResponse.FromString(response).infer_response)


def _message(response: ModelInferResponse, *, is_final: bool) -> bytes:
    response.parameters["triton_final_response"].bool_param = is_final
    return ModelStreamInferResponse(infer_response=response).SerializeToString()
