"""A request for a pipeline whose models are all on this node: its steps run here, tensors handed over as arrays.

What runs when is `mesh.core.pipeline.run`'s; each step is an ordinary request of its copy (queue, batch, statistics).
Nothing here waits: steps end in callbacks. What is not here, a router does step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mesh.api.carried import TYPED, read_tensors, response_message, wants_typed
from mesh.api.messages import ModelInferRequest
from mesh.api.pipelines import check_inputs, wanted_outputs
from mesh.api.tensors import TensorError
from mesh.core.errors import MeshError, ModelFailed, NotHere
from mesh.core.pipeline.run import Graph, Graphs, of_step
from mesh.core.pipeline.signatures import pipeline_model
from mesh.core.pipeline.spec import Pipeline
from mesh.core.traffic.route import resolve
from mesh.core.types import TensorSpec
from mesh.core.view import ClusterView
from mesh.node.attempt import Held, carried
from mesh.node.running import Asked, Reply, decode, read_request
from mesh.node.served import Served
from mesh.node.steps import Copies, See, Steps


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
        copies = {key: self.copy(view, *key) for key in pipeline.models()}
        request = decode(message)
        given = read_tensors(request)
        check_inputs(pipeline.name, self._inputs(view, pipeline), given)
        running = GraphRunning(self.see, graph, copies, asked, request, reply)
        running.start(given)
        return running

    def _inputs(self, view: ClusterView, pipeline: Pipeline) -> tuple[TensorSpec, ...]:
        """Return what a pipeline takes; found out anew when it or any model of the mesh changed."""
        known = self._takes.get(pipeline.name)
        if known is None or known[0] is not pipeline or known[1] is not view.models:
            specs = pipeline_model(view, pipeline.name, "").inputs
            known = self._takes[pipeline.name] = (pipeline, view.models, specs)
        return known[2]

    def copy(self, view: ClusterView, model: str, version: str) -> Served:
        """Return the copy here that a step asks. Raises `NotHere`."""
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


class GraphRunning(Steps):
    """One request for a pipeline that runs here as a whole."""

    def __init__(  # noqa: PLR0917 - one call of it
        self,
        see: See,
        graph: Graph,
        copies: Copies,
        asked: Asked,
        request: ModelInferRequest,
        reply: Reply,
    ) -> None:
        self._wanted = wanted_outputs(graph.pipeline, request.outputs)
        self._request = request
        self._reply = reply
        parameters = {name: value for name, value in read_request(request).parameters.items() if name != TYPED}
        super().__init__(see, graph, copies, asked, parameters)

    def finished(self, outputs: Mapping[str, Held]) -> None:
        """Answer."""
        request, pipeline = self._request, self.graph.pipeline
        try:
            tensors = {name: carried(outputs[name]) for name in self._wanted if name in outputs}
            answer = response_message(
                pipeline.name, str(pipeline.revision), request.id, tensors, typed=wants_typed(request)
            )
        except TensorError as error:
            self._reply.fail(ModelFailed(f"pipeline '{pipeline.name}' gave a bad output: {error.message}"))
            return
        self._reply.answer([answer.SerializeToString()])

    def broke(self, step: str, error: Exception) -> None:
        """Answer what went wrong."""
        self._reply.fail(of_step(self.graph.pipeline.name, step, error))
