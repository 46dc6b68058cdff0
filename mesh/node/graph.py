"""A request for a pipeline whose models are all on this node: its steps run here, tensors handed over as arrays.

What runs when is `mesh.core.pipeline.run`'s; each step is an ordinary request of its copy (queue, batch, statistics).
Nothing here waits: steps end in callbacks. What is not here, a router does step by step.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from mesh.api.carried import TYPED, Carried, read_tensors, response_message, wants_typed
from mesh.api.messages import ModelInferRequest
from mesh.api.pipelines import check_inputs, wanted_outputs
from mesh.api.tensors import TensorError, decode_raw
from mesh.core.errors import MeshError, ModelFailed, NotHere, code_of
from mesh.core.pipeline.run import NEVER_BETTER, Action, Call, Fail, Finish, Graph, Graphs, Run, compare, of_step
from mesh.core.pipeline.signatures import pipeline_model
from mesh.core.pipeline.spec import Condition, Pipeline
from mesh.core.traffic.route import resolve
from mesh.core.types import TensorSpec
from mesh.core.view import ClusterView
from mesh.node.attempt import Attempt, Held, carried
from mesh.node.observe import Observed
from mesh.node.running import Asked, Reply, decode, queue_timeout_s, read_request
from mesh.node.served import Served

See = Callable[[Asked, Served], Observed]


class PipelineRuns:
    """Begins requests for pipelines. `find` returns the copy that serves a version here, `view` what the mesh holds."""

    def __init__(self, find: Callable[[str, str], Served | None], view: Callable[[], ClusterView], see: See) -> None:
        self._find = find
        self._view = view
        self.see = see
        self._graphs = Graphs()
        self._takes: dict[str, tuple[Pipeline, object, tuple[TensorSpec, ...]]] = {}

    def begin(self, asked: Asked, message: bytes, reply: Reply) -> GraphRunning:
        """Begin one request of the pipeline that the router named; `reply` hears its end.

        Raises `NotHere` when this node does not know this revision or lacks one of its models, and `InvalidRequest`.
        """
        view = self._view()
        pipeline = view.pipelines.get(asked.model)
        if pipeline is None or str(pipeline.revision) != asked.pipeline:
            raise NotHere(f"pipeline '{asked.model}' revision {asked.pipeline} is not known to this node (yet)")
        graph = self._graphs.of(pipeline)
        served = {key: self._copy(view, *key) for key in pipeline.models()}
        request = decode(message)
        given = read_tensors(request)
        check_inputs(pipeline.name, self._inputs(view, pipeline), given)
        running = GraphRunning(self, graph, served, asked, request, reply)
        running.begin(given)
        return running

    def _inputs(self, view: ClusterView, pipeline: Pipeline) -> tuple[TensorSpec, ...]:
        """Return what a pipeline takes; found out anew when it or any model of the mesh changed."""
        known = self._takes.get(pipeline.name)
        if known is None or known[0] is not pipeline or known[1] is not view.models:
            specs = pipeline_model(view, pipeline.name, "").inputs
            known = self._takes[pipeline.name] = (pipeline, view.models, specs)
        return known[2]

    def _copy(self, view: ClusterView, model: str, version: str) -> Served:
        try:
            found = resolve(view, model, version)
        except MeshError as error:
            raise NotHere(error.message) from error
        served = self._find(found.name, found.version)
        if served is None or served.model.decoupled:
            raise NotHere(f"model '{model}' is not at ready state on this node")
        return served

    def __repr__(self) -> str:
        """Show the pipelines that were asked for."""
        return f"<PipelineRuns {self._graphs!r}>"


class GraphRunning:
    """One request. Steps that still run when it is over are withdrawn."""

    def __init__(  # noqa: PLR0917 - one call of it
        self,
        runs: PipelineRuns,
        graph: Graph,
        served: Mapping[tuple[str, str], Served],
        asked: Asked,
        request: ModelInferRequest,
        reply: Reply,
    ) -> None:
        self.asked = asked
        self.see = runs.see
        self.served = tuple(dict.fromkeys(served.values()))
        """The copies that it may ask."""
        self._graph = graph
        self._copies = served
        self._request = request
        self._reply = reply
        self._wanted = wanted_outputs(graph.pipeline, request.outputs)
        self._parameters = {k: v for k, v in read_request(request).parameters.items() if k != TYPED}
        self._run: Run[Held]
        self.queue_timeout_s = queue_timeout_s(request)
        self._attempts: dict[str, Attempt] = {}
        self._todo: deque[Action[Held]] = deque()
        self._busy = False
        self.over = False

    def begin(self, given: Mapping[str, Carried]) -> None:
        """Start the first steps. Raises `InvalidRequest` for inputs that cannot be read."""
        held = {
            name: Held(tensor.dtype, decode_raw(tensor.raw, tensor.dtype, tensor.shape))
            for name, tensor in given.items()
        }
        self._run = Run(self._graph, held, _holds)
        self._take(self._run.begin())

    def withdraw(self, error: BaseException) -> None:
        """Leave: the caller is gone, and `error` is what is counted. The reply hears nothing."""
        self.over = True
        for attempt in list(self._attempts.values()):
            attempt.stop(error)
        self._attempts.clear()

    def ended(self, step: str, outputs: dict[str, Held]) -> None:
        """Hear that a step answered."""
        if not self.over:
            del self._attempts[step]
            self._take(self._run.done(step, outputs))

    def failed(self, step: str, error: Exception) -> None:
        """Hear that a step failed."""
        if not self.over:
            del self._attempts[step]
            late = self.asked.deadline_s is not None and time.monotonic() >= self.asked.deadline_s
            again = code_of(error) not in NEVER_BETTER and not late
            self._take(self._run.failed(step, error, again=again))

    def _take(self, actions: Iterable[Action[Held]]) -> None:
        """Do what is to be done; what that leads to at once is done here too, and not deeper in the stack."""
        self._todo.extend(actions)
        if self._busy:
            return
        self._busy = True
        try:
            while self._todo and not self.over:
                match self._todo.popleft():
                    case Call() as call:
                        model = self._copies[call.model, call.version]
                        attempt = self._attempts[call.step.name] = Attempt(self, call, model, self._parameters)
                        attempt.begin()
                    case Finish(outputs):
                        self._finish(outputs)
                    case Fail(step, error):
                        self._end(of_step(self._graph.pipeline.name, step, error))
        finally:
            self._busy = False

    def _finish(self, outputs: Mapping[str, Held]) -> None:
        request, pipeline = self._request, self._graph.pipeline
        try:
            tensors = {name: carried(outputs[name]) for name in self._wanted if name in outputs}
            answer = response_message(
                pipeline.name, str(pipeline.revision), request.id, tensors, typed=wants_typed(request)
            )
        except TensorError as error:
            self._end(ModelFailed(f"pipeline '{pipeline.name}' gave a bad output: {error.message}"))
            return
        self.withdraw(asyncio.CancelledError())
        self._reply.answer([answer.SerializeToString()])

    def _end(self, error: Exception) -> None:
        self.withdraw(asyncio.CancelledError())
        self._reply.fail(error)


def _holds(when: Condition, tensor: Held) -> bool:
    return compare(when, carried(tensor).item())
