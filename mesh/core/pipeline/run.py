"""One request in a graph: which steps run next, what they get, and when it is over. Pure; tensors are opaque here.

| a step is | when |
|---|---|
| waiting | a tensor it needs may still come |
| skipped | its condition is false, or a tensor it needs can no longer come |
| running | everything is there; `Call` was returned for it |
| done | its outputs are there |

A tensor with several sources is the first of them that comes, in the order they are written, once those before it can
no longer come: so the answer does not depend on which branch is quicker.

One request may run in several places. Each has a `Run` of its own with its `Share` of the steps, and they tell each
other how steps ended (`End` there, `Run.heard` here); no place knows more than it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mesh.core.errors import Code, InvalidRequest, MeshError, ModelFailed
from mesh.core.pipeline.spec import Condition, Literal, Op, Pipeline, Ref, Source, Step
from mesh.core.pipeline.split import half

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """Run a step, then tell `Run.done` or `Run.failed`."""

    step: Step
    model: str
    """The step's own, or the one that stands in for it."""
    version: str
    inputs: Mapping[str, T]
    attempt: int
    """0 for the first."""


@dataclass(frozen=True, slots=True)
class End(Generic[T]):
    """Tell the places of `Share.gives` that a step ended."""

    step: str
    outputs: Mapping[str, T] | None
    """None: it was skipped."""


@dataclass(frozen=True, slots=True)
class Finish(Generic[T]):
    """The request is answered; what still runs is not needed. An output of steps that were skipped is left out.

    In a place that does not answer: its share is done, and there are no outputs.
    """

    outputs: Mapping[str, T]


@dataclass(frozen=True, slots=True)
class Fail:
    """The request failed with this step; what still runs may be given up."""

    step: str
    error: Exception


Action = Call[T] | End[T] | Finish[T] | Fail


@dataclass(frozen=True, slots=True)
class Share:
    """What one place does of a graph."""

    mine: frozenset[str]
    """The steps that run there."""
    inputs: frozenset[str] = frozenset()
    """The inputs of the pipeline that they use."""
    takes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By step elsewhere: the tensors wanted of it. A step that ends there without any is waited for too."""
    gives: Mapping[str, Mapping[str, frozenset[str]]] = field(default_factory=dict)
    """By own step: the tensors that other places want of it, by place."""
    answers: bool = False
    """Whether the outputs of the pipeline are wanted there."""


class Graph:
    """A checked pipeline, made ready for running: which steps wait for which. One for all requests."""

    def __init__(self, pipeline: Pipeline, path: str = "") -> None:
        self.pipeline = pipeline
        self.path = path
        """Which half of a larger one it is (`mesh.core.pipeline.split`); empty for a whole one."""
        self.steps = {step.name: step for step in pipeline.steps}
        self.waiting_for: dict[str, tuple[str, ...]] = {step.name: () for step in pipeline.steps}
        """By step: those that may run when it has ended."""
        for step in pipeline.steps:
            for before in sorted({ref.step for ref in step.refs() if ref.step}):
                self.waiting_for[before] = (*self.waiting_for[before], step.name)
        refs = [ref for step in pipeline.steps for ref in step.refs()]
        refs += [ref for source in pipeline.outputs.values() for ref in source]
        self.needed = {name: {ref.tensor for ref in refs if ref.step == name} for name in self.steps}
        """By step: those of its outputs that somebody wants."""
        self.order = self._sorted()
        """Every step after those it waits for."""
        self.whole = Share(frozenset(self.steps), answers=True)
        """All of it in one place."""

    def _sorted(self) -> tuple[str, ...]:
        waits = {step.name: len({ref.step for ref in step.refs() if ref.step}) for step in self.pipeline.steps}
        ready = [name for name, count in waits.items() if not count]
        for name in ready:
            for behind in self.waiting_for[name]:
                waits[behind] -= 1
                if not waits[behind]:
                    ready.append(behind)
        return tuple(ready)

    def __repr__(self) -> str:
        """Show the size."""
        return f"<Graph {self.pipeline.name}@{self.pipeline.revision} steps={len(self.steps)}>"


class Graphs:
    """The graphs of the pipelines that were asked for, each made once a revision."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[Pipeline, Graph]] = {}

    def of(self, pipeline: Pipeline, path: str = "") -> Graph:
        """Return the graph of a pipeline, or of the half of it that `path` names. O(1) until it changes.

        Raises KeyError for a path that names none.
        """
        known = self._known.get((pipeline.name, path))
        if known is None or known[0] is not pipeline:
            known = self._known[pipeline.name, path] = (pipeline, Graph(half(pipeline, path), path))
        return known[1]

    def __repr__(self) -> str:
        """Show whose they are."""
        return f"<Graphs {sorted(self._known)}>"


EACH_AT_ONCE = 64
"""Elements that a step over each element asks for at a time: enough to fill batches, and bounded memory."""


def count_of(elements: Mapping[str, int]) -> int:
    """Return how often a step over each element runs. Raises `InvalidRequest` unless all inputs have as many."""
    if len(set(elements.values())) != 1 or not all(elements.values()):
        raise InvalidRequest(f"expected inputs with the same number of elements, at least one, got {elements}")
    return next(iter(elements.values()))


def compare(when: Condition, value: Literal) -> bool:
    """Tell whether a condition is true of `value`. Raises `InvalidRequest` where the two cannot be compared."""
    wanted = when.value
    if isinstance(value, str) is not isinstance(wanted, str):
        raise InvalidRequest(f"expected {when.of} to compare with {wanted!r}, got {value!r}")
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


def of_step(pipeline: str, step: str, error: Exception) -> Exception:
    """Return the failure of a step as the caller reads it: of the same kind, with the step's name before its words."""
    if not isinstance(error, MeshError):
        return error
    # A copy: callers that wait for one load share its failure.
    told = type(error).__new__(type(error))
    told.__dict__.update(error.__dict__)
    told.message = f"step '{step}' of pipeline '{pipeline}': {error.message}"
    told.args = (told.message,)
    return told


NEVER_BETTER = frozenset(
    {Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.UNIMPLEMENTED, Code.PERMISSION_DENIED, Code.FAILED_PRECONDITION}
)
"""Codes that another attempt at a step ends with again."""


class _Never:
    """What is looked up in vain: `PENDING` may still come, `SKIPPED` never will."""


PENDING = _Never()
SKIPPED = _Never()


class Run(Generic[T]):
    """One request. `truth` tells whether a condition holds for a tensor; it may raise, and the step then failed.

    Every `Call` returned is answered once, by `done` or by `failed`; what they return is to be done in that order, and
    nothing more comes after a `Finish` or a `Fail`. Without a `share` all runs in one place.
    """

    def __init__(
        self,
        graph: Graph,
        given: Mapping[str, T],
        truth: Callable[[Condition, T], bool],
        share: Share | None = None,
    ) -> None:
        self._graph = graph
        self._share = share or graph.whole
        self._given = given
        self._truth = truth
        self._outputs: dict[str, Mapping[str, T]] = {}
        self._skipped: set[str] = set()
        self._running: dict[str, Call[T]] = {}
        self.over = False

    @property
    def pipeline(self) -> Pipeline:
        """What is run."""
        return self._graph.pipeline

    def begin(self) -> list[Action[T]]:
        """Return what to do first."""
        return self._after(self._graph.steps)

    def heard(self, step: str, outputs: Mapping[str, T] | None) -> list[Action[T]]:
        """Take how a step ended elsewhere, None: skipped; return what to do next. O(steps that wait for it).

        Raises `InvalidRequest` when this share waits for no such step, or for more tensors of it.
        """
        if self.over:
            return []
        wanted = self._share.takes.get(step)
        if wanted is None or (outputs is not None and not wanted <= outputs.keys()):
            got = ", ".join(sorted(outputs or ()))
            raise InvalidRequest(f"expected the tensors {sorted(wanted or ())} of step '{step}', got: {got}")
        if outputs is None:
            self._skipped.add(step)
        else:
            self._outputs[step] = outputs
        return self._after(self._graph.waiting_for[step])

    def done(self, step: str, outputs: Mapping[str, T]) -> list[Action[T]]:
        """Take a step's outputs; return what to do next. O(steps that wait for it)."""
        if self.over:
            return []
        missing = self._graph.needed[step] - outputs.keys()
        if missing:
            model, names = self._running[step].model, ", ".join(sorted(missing))
            return self.failed(step, ModelFailed(f"model '{model}' of step '{step}' did not answer with {names}"))
        del self._running[step]
        self._outputs[step] = outputs
        told: list[Action[T]] = [End(step, outputs)] if step in self._share.gives else []
        return told + self._after(self._graph.waiting_for[step])

    def failed(self, step: str, error: Exception, *, again: bool = True) -> list[Action[T]]:
        """Take a step's failure; return another attempt, the model that stands in, or `Fail`.

        `again` says whether another attempt may end otherwise: a request that makes no sense is not repeated.
        """
        if self.over:
            return []
        call = self._running.pop(step)
        spec = call.step
        stands_in = bool(spec.use_on_error) and call.model == spec.use_on_error
        if again and not stands_in and call.attempt < spec.retries:
            following = Call(spec, call.model, call.version, call.inputs, call.attempt + 1)
        elif spec.use_on_error and not stands_in:
            following = Call(spec, spec.use_on_error, "", call.inputs, call.attempt + 1)
        else:
            self.over = True
            return [Fail(step, error)]
        self._running[step] = following
        return [following]

    def _after(self, names: Iterable[str]) -> list[Action[T]]:
        """Look at the steps that may be able to run now, and at those behind the ones that never will."""
        actions: list[Action[T]] = []
        share = self._share
        look = list(names)
        while look:
            name = look.pop(0)
            if name in self._running or name in self._outputs or name in self._skipped or name not in share.mine:
                continue
            step = self._graph.steps[name]
            try:
                found = self._inputs(step)
            except Exception as error:  # noqa: BLE001 - a condition over a tensor that it does not fit
                self.over = True
                return [Fail(name, error)]
            if found is SKIPPED:
                self._skipped.add(name)
                look.extend(self._graph.waiting_for[name])
                if name in share.gives:
                    actions.append(End(name, None))
            elif not isinstance(found, _Never):
                call = self._running[name] = Call(step, step.model, step.version, found, 0)
                actions.append(call)
        return self._finished(actions)

    def _finished(self, actions: list[Action[T]]) -> list[Action[T]]:
        """Return `actions`, or instead of new calls the end when nothing is waited for any more."""
        if not self._share.answers:
            ended = len(self._outputs) + len(self._skipped)
            if ended < len(self._share.mine) + len(self._share.takes):
                return actions
            self.over = True
            return [*actions, Finish({})]
        answer = {name: self._find(source) for name, source in self._graph.pipeline.outputs.items()}
        if any(found is PENDING for found in answer.values()):
            return actions
        self.over = True
        outputs = {name: found for name, found in answer.items() if not isinstance(found, _Never)}
        return [*(action for action in actions if isinstance(action, End)), Finish(outputs)]

    def _inputs(self, step: Step) -> Mapping[str, T] | _Never:
        """Return a step's inputs when all are there; else whether they may still come."""
        if step.when is not None:
            compared = self._find((step.when.of,))
            if isinstance(compared, _Never):
                return compared
            if not self._truth(step.when, compared):
                return SKIPPED
        found = {}
        pending = False
        for name, source in step.inputs.items():
            tensor = self._find(source)
            if tensor is SKIPPED:
                return SKIPPED
            if isinstance(tensor, _Never):
                pending = True
            else:
                found[name] = tensor
        return PENDING if pending else found

    def _find(self, source: Source) -> T | _Never:
        for ref in source:
            found = self._one(ref)
            if found is not SKIPPED:
                return found
        return SKIPPED

    def _one(self, ref: Ref) -> T | _Never:
        if not ref.step:
            return self._given.get(ref.tensor, SKIPPED)
        if ref.step in self._skipped:
            return SKIPPED
        outputs = self._outputs.get(ref.step)
        return PENDING if outputs is None else outputs[ref.tensor]

    def __repr__(self) -> str:
        """Show how far it is."""
        running = ",".join(sorted(self._running)) or "-"
        return f"<Run {self._graph!r} done={len(self._outputs)} skipped={len(self._skipped)} running={running}>"
