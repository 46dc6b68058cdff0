"""A request for a pipeline whose models are all on this node: its steps run here, tensors handed over as arrays.

What runs when is `mesh.core.pipeline.run`'s; each step is an ordinary request of its copy (queue, batch, statistics).
Nothing here waits: steps end in callbacks. What is not here, a router does step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from mesh.api.question import Question, decode, is_long
from mesh.api.tensors import TensorError
from mesh.core.errors import MeshError, ModelFailed, NotHere
from mesh.core.pipeline.run import Graph, Graphs, of_step
from mesh.core.pipeline.signatures import pipeline_model
from mesh.core.traffic.route import resolve
from mesh.core.types import Dtype, ModelVersion
from mesh.core.view import ClusterView
from mesh.node.asked import Asked
from mesh.node.attempt import Held, carried
from mesh.node.fused import Counters, Ends, FusedRunning, fuse, whole
from mesh.node.labor import LONG_ELEMENTS, Later
from mesh.node.running import NOBODY, Beginner, Reply
from mesh.node.served import Served
from mesh.node.steps import Copies, See, Steps, Watch, held
from mesh.telemetry.statistics import StepStatistics

Described = Callable[[ClusterView, Copies], tuple[ModelVersion, Ends | None]]
"""Returns steps as a model, and the ends of a chain of them."""


class Kept:
    """The copies here that some steps of a pipeline ask, and the steps as a chain; until something changes."""

    __slots__ = ("_described", "_held", "_models", "_placements", "copies", "fused", "graph", "model", "steps")

    def __init__(self, graph: Graph, steps: Collection[str], described: Described) -> None:
        self.graph = graph
        self.steps = steps
        self.copies: Copies = {}
        self.model: ModelVersion
        """The steps as a model."""
        self.fused: Served | None = None
        """All steps as one copy, where that is possible."""
        self._described = described
        self._held: tuple[Served, ...] = ()
        self._models: object = None
        self._placements: object = None

    def refresh(self, view: ClusterView, runs: PipelineRuns) -> None:
        """Look again if anything changed. Raises `NotHere` when a copy is gone. O(steps) while nothing changes."""
        if (
            self._models is view.models
            and self._placements is view.placements
            and True not in [each.gone for each in self._held]
        ):
            return
        asked = {key for name in self.steps for key in self.graph.steps[name].models()}
        copies = {key: runs.copy(view, *key) for key in sorted(asked)}
        model, ends = self._described(view, copies)
        if copies != self.copies or model != self.model:
            self.fused = fuse(model, ends, self.graph, self.steps, copies, Counters(runs.metrics, runs.steps))
        self.copies, self.model, self._models, self._placements = copies, model, view.models, view.placements
        self._held = tuple(copies.values())

    def __repr__(self) -> str:
        """Show the copies."""
        return f"<Kept {self.graph!r} steps={sorted(self.steps)} fused={self.fused is not None}>"


class PipelineRuns:
    """Begins requests for pipelines. `view` returns what the mesh holds; `beginner` begins those of models."""

    def __init__(
        self, find: Callable[[str, str], Served | None], view: Callable[[], ClusterView], beginner: Beginner
    ) -> None:
        self.find = find
        self._view = view
        self._beginner = beginner
        self.see: See = beginner.seen
        self.metrics = beginner.metrics
        self.steps = StepStatistics()
        self.graphs = Graphs()
        self._kept: dict[str, Kept] = {}

    def begin(self, asked: Asked, message: bytes, reply: Reply) -> GraphRunning | FusedRunning | Later[Any]:
        """Begin one request of the pipeline that the router named; `reply` hears its end.

        Raises `NotHere` when this node does not know this revision or lacks one of its models, and `InvalidRequest`.
        """
        view = self._view()
        pipeline = view.pipelines.get(asked.model)
        if pipeline is None or str(pipeline.revision) != asked.pipeline:
            raise NotHere(f"pipeline '{asked.model}' revision {asked.pipeline} is not known to this node (yet)")
        kept = self._kept.get(pipeline.name)
        if kept is None or kept.graph.pipeline is not pipeline:
            graph = self.graphs.of(pipeline)
            kept = self._kept[pipeline.name] = Kept(graph, graph.order, lambda view, _: _as_model(graph, view))
        kept.refresh(view, self)
        if kept.fused is None or asked.forwarded or self.is_traced(asked.traceparent):
            return self._step_by_step(kept, asked, message, reply)
        fused = FusedRunning(kept.fused, asked, message, reply, lambda: self._step_by_step(kept, asked, message, reply))
        try:
            fused.begin(self._beginner.plans)
        except MeshError:
            # It is not for a chain, or makes no sense: what is wrong with it is told the other way.
            return self._step_by_step(kept, asked, message, reply)
        return fused

    def step_messages(self, pipeline: str) -> list[Any]:
        """Return the protocol's ModelStatistics of the steps of a pipeline that ran here."""
        return self.steps.messages(pipeline, self._view().pipelines)

    def is_traced(self, traceparent: str) -> bool:
        """Tell whether each step of a request is to have a span."""
        return self._beginner.is_traced(traceparent)

    def _step_by_step(
        self, kept: Kept, asked: Asked, message: bytes, reply: Reply
    ) -> GraphRunning | Later[tuple[Question, Mapping[str, Held]]]:
        request, copies = decode(message), kept.copies

        def read() -> tuple[Question, Mapping[str, Held]]:
            question = Question(request, kept.graph.pipeline, kept.model.inputs)
            return question, held(question.given)

        def begin(found: tuple[Question, Mapping[str, Held]]) -> GraphRunning:
            running = GraphRunning(self, kept.graph, copies, asked, found[0], reply)
            running.start(found[1])
            return running

        if is_long(len(message), request):
            return Later(tuple(dict.fromkeys(copies.values())), read, begin, reply.fail)
        return begin(read())

    def copy(self, view: ClusterView, model: str, version: str) -> Served:
        """Return the copy here that a step asks. Raises `NotHere`."""
        try:
            found = resolve(view, model, version)
        except MeshError as error:
            raise NotHere(error.message) from error
        served = self.find(found.name, found.version)
        if served is None or served.model.decoupled:
            raise NotHere(f"model '{model}' is not at ready state on this node")
        return served

    def __repr__(self) -> str:
        """Show the pipelines that were asked for."""
        return f"<PipelineRuns {self.graphs!r}>"


def _as_model(graph: Graph, view: ClusterView) -> tuple[ModelVersion, Ends | None]:
    model = pipeline_model(view, graph.pipeline.name, "")
    return model, whole(model, graph)


class GraphRunning(Steps):
    """One request for a pipeline that runs here as a whole."""

    def __init__(  # noqa: PLR0917 - its parts
        self, watch: Watch, graph: Graph, copies: Copies, asked: Asked, question: Question, reply: Reply
    ) -> None:
        self._question = question
        self._reply = reply
        self._later: Later[bytes] | None = None
        """What writes a long answer."""
        super().__init__(watch, graph, copies, asked, {**question.parameters, **asked.forwarded})

    def finished(self, outputs: Mapping[str, Held]) -> None:
        """Answer."""
        wanted = {name: outputs[name] for name in self._question.wanted if name in outputs}
        if any(each.dtype is Dtype.BYTES and each.array.size > LONG_ELEMENTS for each in wanted.values()):
            self._later = Later(
                self.copies, lambda: self._answered(wanted), self._answer, lambda error: self._told().fail(error)
            )
            return
        try:
            self._answer(self._answered(wanted))
        except ModelFailed as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._told().fail(error)

    def _answered(self, outputs: Mapping[str, Held]) -> bytes:
        question = self._question
        try:
            return question.answer({name: carried(each) for name, each in outputs.items()}).SerializeToString()
        except TensorError as error:
            name = question.pipeline.name
            raise ModelFailed(f"pipeline '{name}' gave a bad output: {error.message}") from error

    def _answer(self, response: bytes) -> GraphRunning:
        self._told().answer([response])
        return self

    def broke(self, step: str, error: Exception) -> None:
        """Answer what went wrong."""
        self._told().fail(of_step(self.graph.pipeline.name, step, error))

    def _told(self) -> Reply:
        """Return who hears of the end, and let go of it: it knows this as this knows it."""
        reply, self._reply = self._reply, NOBODY
        return reply
