"""A request for a pipeline: in one hop where a node holds all of its models, else in parts on several nodes.

Which parts, `spread` knows; how one attempt at a request goes, `attempt` does.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mesh.api.carried import Carried
from mesh.api.messages import ModelInferRequest, control
from mesh.api.notes import begun
from mesh.api.question import Question, decode, is_long
from mesh.core.errors import Code, MeshError, RemoteError, code_of
from mesh.core.pipeline.run import Graph, Graphs
from mesh.core.pipeline.spec import Literal, Pipeline
from mesh.core.traffic.retry import Fate, Tries
from mesh.core.types import NodeId
from mesh.registry.mirror import Mirror
from mesh.router.attempt import Attempt, Elsewhere, trace_of
from mesh.router.describe import cut_message
from mesh.router.ends import fate_told
from mesh.router.observe import Observed
from mesh.router.plans import Plan
from mesh.router.spread import Spread
from mesh.router.target import Target
from mesh.telemetry.statistics import StepStatistics
from mesh.wire.transport import PIPELINE_HEADER, Call

if TYPE_CHECKING:
    from mesh.router.dispatch import Dispatch


class Pipelines:
    """Answers requests for the pipelines of the view, with the parts of `dispatch`, which answers those of models."""

    def __init__(self, mirror: Mirror, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._graphs = Graphs()
        self.spread = Spread(mirror, dispatch.balancer, dispatch.channels)
        self.steps = StepStatistics()
        """Of steps that this router asked for."""

    def graph(self, pipeline: Pipeline, path: str = "") -> Graph:
        """Return the graph of a pipeline, or of the half of it that `path` names."""
        return self._graphs.of(pipeline, path)

    async def answer(self, call: Call, message: bytes, target: Target, seen: Observed) -> bytes:
        """Answer one request.

        Raises a `MeshError` that names the step; cancelling it cancels the steps that run.
        """
        lost: MeshError | None = None
        try:
            answer = await self._in_one_hop(call, message, target, seen)
            if answer is not None:
                return answer
        except Elsewhere as moved:
            lost = moved.error
        try:
            return await self._in_parts(call, message, target, seen)
        except MeshError as error:
            raise after(lost, error) from error

    async def _in_one_hop(self, call: Call, message: bytes, target: Target, seen: Observed) -> bytes | None:
        """Return a node's answer, None when there is no such node or it lacks a model after all.

        Raises `Elsewhere` when it went away.
        """
        dispatch, u = self._dispatch, random.random()  # noqa: S311 - a choice of two
        tried = seen.tries.tried
        located = dispatch.balancer.pick(target.candidates, tried=tried, now_s=time.monotonic(), u=u)
        if located is None:
            return None
        node = located.node.id
        seen.asked(node)

        def leaves(long: bool) -> bool:
            return dispatch.stalled.leaves(located.node, target.model, seen.tries, target.pipeline, long=long)

        metadata = (*dispatch.metadata(call, target.model, seen), (PIPELINE_HEADER, str(target.model.version)))
        try:
            reply = await dispatch.send(call, located, message, metadata, leaves=leaves)
        except RemoteError as error:
            dispatch.metrics.attempt_failed(node, error.status.name)
            fate = fate_told(error)
            again = dispatch.retries.may_follow(seen.tries, node, fate, target.model, target.pipeline)
            if error.transport_failed:
                told = (
                    f"node '{node}' went away while it ran pipeline '{target.model.name}' ({error.message}); call again"
                )
                error = RemoteError(Code.UNAVAILABLE, told, transport_failed=True, trailers=error.trailers)
            if not again:
                raise error from None
            if fate is Fate.NOT_RUN:
                return None
            raise Elsewhere(node, error, fate) from None
        return reply.message

    async def _in_parts(self, call: Call, message: bytes, target: Target, seen: Observed) -> bytes:
        """Run the steps where their copies are; those that no node can run as asked are ordinary requests from here."""
        asked = await question(message, target)
        graph, tries = self.graph(asked.pipeline), seen.tries
        parameters = {**asked.parameters, **self._dispatch.forwarded(call)}
        outputs = await self.outputs(call, graph, asked.given, parameters, seen, tries=tries)
        return asked.answer(outputs).SerializeToString()

    async def outputs(
        self,
        call: Call,
        graph: Graph,
        given: Mapping[str, Carried],
        parameters: Mapping[str, Literal],
        seen: Observed,
        *,
        tries: Tries | None = None,
    ) -> Mapping[str, Carried]:
        """Return what a graph gives for its inputs.

        A request whose place went away, or did not run it, is cut anew without that node, within the attempts and the
        deadline. `tries` is what was tried for it already; without, it is one of several that answer a request.
        """
        tries = Tries(seen.tries) if tries is None else tries
        trace = trace_of(seen.headers() or call.metadata)
        without: list[NodeId] = []
        lost: MeshError | None = None
        while True:
            plan = await self._plan(call, graph, without, parameters)
            seen.asked(plan.nodes[0] if plan.nodes else NodeId(""))
            one = Attempt(self._dispatch, call, plan, parameters, trace, self.steps, tries)
            try:
                away = self.spread.begin(plan, given, begun(call.deadline_s, trace, parameters))
                return await one.answer(away, given)
            except Elsewhere as moved:
                if isinstance(moved.error, RemoteError) and moved.error.transport_failed:
                    lost = moved.error
                without.append(moved.node)
                late = call.deadline_s is not None and time.monotonic() >= call.deadline_s
                assert seen.model is not None
                again = self._dispatch.retries.may_follow(tries, moved.node, moved.fate, seen.model, graph.pipeline)
                if late or not again:
                    raise after(lost, moved.error) from None
            except MeshError as error:
                raise after(lost, error) from error

    async def _plan(self, call: Call, graph: Graph, without: list[NodeId], parameters: Mapping[str, Literal]) -> Plan:
        if "sequence_id" in parameters:
            # The state of a sequence is with one copy of each model, which the balancer knows of single requests alone.
            return self.spread.plans.router_alone(graph)
        return await self.spread.choose(graph, without, call.deadline_s)

    def explain(self, name: str, version: str) -> control.PipelineCut:
        """Return where the steps of a pipeline run now, and why. Raises `UnknownModel` for another revision."""
        target = self._dispatch.targets.find(name, version)
        assert target.pipeline is not None
        return cut_message(
            self.graph(target.pipeline), self.spread.plans, [located.node.id for located in target.candidates]
        )

    async def close(self) -> None:
        """Give up the streams to nodes."""
        await self.spread.close()

    def __repr__(self) -> str:
        """Show the graphs that were used."""
        return f"<Pipelines {self._graphs!r} {self.spread!r}>"


async def question(message: bytes, target: Target) -> Question:
    """Return a request for a pipeline, read in a thread when it is long. Raises `InvalidRequest`."""
    request = decode(message)
    if is_long(len(message), request):
        return await asyncio.to_thread(asked_of, request, target)
    return asked_of(request, target)


def asked_of(request: ModelInferRequest, target: Target) -> Question:
    """Return a request for a pipeline. Raises `InvalidRequest`."""
    assert target.pipeline is not None
    return Question(request, target.pipeline, target.model.inputs)


_UNFIT = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED})


def after(lost: MeshError | None, error: MeshError) -> MeshError:
    """Return what the caller reads when a request failed again, of which a node was lost before."""
    if lost is None or error is lost or code_of(error) not in _UNFIT:
        return error
    return RemoteError(Code.UNAVAILABLE, f"{lost.message}; tried again: {error.message}", transport_failed=True)
