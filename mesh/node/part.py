"""One node's share of one request: collects what ended elsewhere, runs its steps, tells the places that wait for them.

`Part` runs any steps, `QuickPart` those that can be a chain (`fused`), in one go when all they need is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from mesh.api.carried import Carried
from mesh.api.notes import RunInfo, ended_note
from mesh.api.tensors import TensorError, dtype_of
from mesh.core.errors import InvalidRequest, MeshError, ModelFailed
from mesh.core.pipeline.run import Graph, Share, of_step
from mesh.core.pipeline.spec import Ref
from mesh.core.types import ModelName, ModelVersion, TensorSpec, Version
from mesh.core.view import ClusterView
from mesh.node.asked import Asked
from mesh.node.attempt import Held, carried
from mesh.node.fused import Ends, NotNow, part
from mesh.node.graph import Kept, PipelineRuns
from mesh.node.item import Item, Ran
from mesh.node.runtimes.base import Array, Request
from mesh.node.served import Served
from mesh.node.steps import Copies, Steps, held
from mesh.node.validate import check_rows
from mesh.wire.transport import MODEL_INFER, Metadata

_PLAIN = Request()


class Line(Protocol):
    """The ways out of one request."""

    def to(self, place: str, note: bytes) -> None:
        """Post a note to another place of it."""

    def failed(self, step: str, error: Exception) -> None:
        """Tell the router that it failed with a step, an empty one: with what came from elsewhere. It is over here."""

    def over(self) -> None:
        """Forget it: all that others want of it is on its way."""


class Planned:
    """A plan as this node sees it."""

    def __init__(self, graph: Graph, share: Share) -> None:
        self.graph = graph
        self.share = share
        self.kept = Kept(graph, sorted(share.mine), lambda _, copies: _as_model(graph, share, copies))
        self.gives = [
            (step, place, sorted(tensors)) for step, to in share.gives.items() for place, tensors in to.items()
        ]
        """(own step, place, the tensors that it wants)."""

    def begin(self, line: Line, run: RunInfo, view: ClusterView, runs: PipelineRuns) -> Part | QuickPart:
        """Return the part of a request. Raises `NotHere` when a copy is gone."""
        self.kept.refresh(view, runs)
        fused = self.kept.fused
        if fused is None or run.said.parameters or runs.is_traced(run.said.traceparent):
            return Part(line, run, self, runs)
        return QuickPart(line, run, self, fused, lambda: Part(line, run, self, runs))

    def __repr__(self) -> str:
        """Show the steps."""
        return f"<Planned {self.kept!r}>"


def _as_model(graph: Graph, share: Share, copies: Copies) -> tuple[ModelVersion, Ends | None]:
    pipeline = graph.pipeline
    name, version = ModelName(pipeline.name), Version(str(pipeline.revision))
    return ModelVersion(name, version, runtime="pipeline", source="", digest="", size_bytes=0), part(
        graph, share, copies
    )


class Part(Steps):
    """A share that runs step by step, as tensors come."""

    def __init__(self, line: Line, run: RunInfo, planned: Planned, runs: PipelineRuns) -> None:
        self._line = line
        self._info = run
        self._share = planned.share
        self._early: list[tuple[str, Mapping[str, Carried] | None]] = []
        """What ended elsewhere before the inputs were here."""
        self._begun = False
        said = run.said
        trace: Metadata = tuple(
            (key, value) for key, value in (("traceparent", said.traceparent), ("tracestate", said.tracestate)) if value
        )
        asked = Asked(MODEL_INFER, lambda: trace, run.deadline_s, "", "", said.traceparent, "")
        super().__init__(runs, planned.graph, planned.kept.copies, asked, run.parameters())

    def hear(self, step: str, tensors: Mapping[str, Carried] | None) -> None:
        """Take how a step ended elsewhere; with an empty name the inputs. Raises `InvalidRequest`."""
        if not step:
            if self._begun:
                raise InvalidRequest("the inputs of this request came twice")
            self._begin(tensors or {})
        elif self._begun or not self._share.inputs:
            if not self._begun:
                self._begin({})
            self.heard(step, tensors)
        else:
            self._early.append((step, tensors))

    def _begin(self, given: Mapping[str, Carried]) -> None:
        self._begun = True
        self.start(held(given), self._share)
        early, self._early = self._early, []
        for step, tensors in early:
            self.heard(step, tensors)

    def tell(self, step: str, outputs: Mapping[str, Held] | None) -> None:
        """Send to each place what it wants of a step, encoded once."""
        known: dict[str, Carried] = {}
        for place, wanted in self._share.gives[step].items():
            tensors: dict[str, Carried] | None = None
            if outputs is not None:
                try:
                    for name in wanted - known.keys():
                        known[name] = carried(outputs[name])
                except TensorError as error:
                    self.withdraw(asyncio.CancelledError())
                    self.broke(step, ModelFailed(f"step '{step}' gave a bad output: {error.message}"))
                    return
                tensors = {name: known[name] for name in wanted}
            self._line.to(place, ended_note(self._info, step, tensors))

    def finished(self, outputs: Mapping[str, Held]) -> None:
        """Forget it."""
        self._line.over()

    def broke(self, step: str, error: Exception) -> None:
        """Tell the router."""
        self._line.failed(step, of_step(self.graph.pipeline.name, step, error))


class QuickPart:
    """A share that runs as a chain: a `batcher.Waiter`. What it cannot do, a `Part` does from the start."""

    __slots__ = ("_fused", "_heard", "_held", "_info", "_item", "_line", "_planned", "_slow", "_slowly")

    def __init__(self, line: Line, run: RunInfo, planned: Planned, fused: Served, slowly: Callable[[], Part]) -> None:
        self._line = line
        self._info = run
        self._planned = planned
        self._fused = fused
        self._slowly = slowly
        self._slow: Part | None = None
        self._heard: list[tuple[str, Mapping[str, Carried] | None]] = []
        self._held: dict[str, Held] = {}
        """By the tensor as it is written."""
        self._item: Item | None = None

    def hear(self, step: str, tensors: Mapping[str, Carried] | None) -> None:
        """Take how a step ended elsewhere; with an empty name the inputs. Raises `InvalidRequest`."""
        if self._slow is not None:
            self._slow.hear(step, tensors)
            return
        self._heard.append((step, tensors))
        specs = self._fused.loaded.inputs
        try:
            if tensors is None:
                raise NotNow(f"step '{step}' was skipped")
            for name, each in held(tensors).items():
                self._held[str(Ref(step, name))] = each
            if all(spec.name in self._held for spec in specs):
                self._submit(specs)
        except MeshError:
            # Whatever is wrong with it is told the other way.
            self._go_slowly()

    def _submit(self, specs: tuple[TensorSpec, ...]) -> None:
        most, rows = self._fused.model.max_batch_size, 0
        given: dict[str, Array] = {}
        for spec in specs:
            tensor = self._held[spec.name]
            if tensor.dtype is not spec.dtype:
                raise NotNow(f"'{spec.name}' is {tensor.dtype}")
            given[spec.name] = tensor.array
            if most:
                rows = check_rows(tensor.array.shape, spec, self._fused.model.name, rows, most)
        self._item = self._fused.batcher.submit(
            given, _PLAIN, rows or 1, self, deadline_s=self._info.deadline_s, queue_timeout_s=None
        )

    def _go_slowly(self) -> None:
        """Begin again step by step. Raises `InvalidRequest`."""
        slow = self._slow = self._slowly()
        for step, tensors in self._heard:
            slow.hear(step, tensors)

    def ran(self, ran: Ran) -> None:
        """Tell the places that wait for them."""
        self._item = None
        try:
            for step, place, names in self._planned.gives:
                outputs = {name: ran.outputs[str(Ref(step, name))] for name in names}
                tensors = {name: carried(Held(dtype_of(array), array)) for name, array in outputs.items()}
                self._line.to(place, ended_note(self._info, step, tensors))
        except TensorError as error:
            self._line.failed("", ModelFailed(error.message))
            return
        self._line.over()

    def failed(self, error: Exception) -> None:
        """Begin again the other way, or tell the router."""
        self._item = None
        if not isinstance(error, NotNow):
            self._line.failed("", error)
            return
        try:
            self._go_slowly()
        except MeshError as failed:
            if self._slow is not None:
                self._slow.withdraw(asyncio.CancelledError())
            self._line.failed("", failed)

    def withdraw(self, error: BaseException) -> None:
        """Leave: nobody waits for it any more."""
        if self._slow is not None:
            self._slow.withdraw(error)
        item, self._item = self._item, None
        if item is not None and not item.over:
            self._fused.batcher.withdraw(item)
