"""A request for a pipeline: in one hop where a node holds all of its models, else in parts on several nodes.

Which parts, `spread` knows; how one attempt at a request goes, `attempt` does.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from mesh.api.carried import TYPED, literals, read_tensors, response_message, wants_typed
from mesh.api.messages import ModelInferRequest
from mesh.api.notes import begun
from mesh.api.pipelines import check_inputs, wanted_outputs
from mesh.core.errors import RemoteError
from mesh.core.pipeline.run import Graphs
from mesh.core.types import NodeId
from mesh.registry.mirror import Mirror
from mesh.router.attempt import Attempt, Elsewhere
from mesh.router.observe import Observed
from mesh.router.spread import Spread
from mesh.router.target import Target
from mesh.wire.transport import NOT_RUN_TRAILER, PIPELINE_HEADER, Call, Metadata

if TYPE_CHECKING:
    from mesh.router.dispatch import Dispatch


class Pipelines:
    """Answers requests for the pipelines of the view, with the parts of `dispatch`, which answers those of models."""

    def __init__(self, mirror: Mirror, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._graphs = Graphs()
        self.spread = Spread(mirror, dispatch.balancer, dispatch.channels)

    async def answer(self, call: Call, message: bytes, target: Target, seen: Observed) -> bytes:
        """Answer one request.

        Raises a `MeshError` that names the step; cancelling it cancels the steps that run.
        """
        seen.model = target.model
        answer = await self._in_one_hop(call, message, target, seen)
        return await self._in_parts(call, message, target, seen) if answer is None else answer

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

    async def _in_parts(self, call: Call, message: bytes, target: Target, seen: Observed) -> bytes:
        """Run the steps where their copies are; those that no node can run as asked are ordinary requests from here.

        A request whose place went away, or did not run it, is cut anew without that node, within the attempts and the
        deadline.
        """
        pipeline, model = target.pipeline, target.model
        assert pipeline is not None
        asked = ModelInferRequest.FromString(message)
        given = read_tensors(asked)
        check_inputs(pipeline.name, model.inputs, given)
        wanted = wanted_outputs(pipeline, asked.outputs)
        parameters = {name: value for name, value in literals(asked.parameters).items() if name != TYPED}
        graph, without = self._graphs.of(pipeline), list[NodeId]()
        trace = {key: str(value) for key, value in seen.headers() or _trace(call)}
        while True:
            # The state of a sequence is with one copy of each model, which the balancer knows of single requests alone.
            alone = "sequence_id" in parameters
            plan = self.spread.router_alone(graph)
            if not alone:
                plan = await self.spread.choose(graph, without, call.deadline_s)
            seen.asked(plan.nodes[0] if plan.nodes else NodeId(""))
            one = Attempt(self._dispatch, call, plan, parameters, tuple(trace.items()))
            try:
                outputs = await one.answer(
                    self.spread.begin(plan, given, begun(call.deadline_s, trace, parameters)), given
                )
                break
            except Elsewhere as moved:
                without.append(moved.node)
                late = call.deadline_s is not None and time.monotonic() >= call.deadline_s
                if late or len(without) >= self._dispatch.max_attempts:
                    raise moved.error from None
        answer = {name: outputs[name] for name in wanted if name in outputs}
        response = response_message(pipeline.name, str(pipeline.revision), asked.id, answer, typed=wants_typed(asked))
        return response.SerializeToString()

    async def close(self) -> None:
        """Give up the streams to nodes."""
        await self.spread.close()

    def __repr__(self) -> str:
        """Show the graphs that were used."""
        return f"<Pipelines {self._graphs!r} {self.spread!r}>"


def _trace(call: Call) -> Metadata:
    """Return the caller's own trace, for steps of a request that has no span here."""
    return tuple(pair for pair in call.metadata if pair[0] in {"traceparent", "tracestate"})
