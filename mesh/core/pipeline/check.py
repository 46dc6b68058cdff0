"""Whether a pipeline makes sense, and what it takes and gives as a model.

Every problem has the place in the pipeline that it is about, so that it can be found in a file, and one sentence: what
was expected, what came, what to do. All problems are told at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from itertools import chain, islice
from typing import Final

from mesh.core.pipeline import text
from mesh.core.pipeline.spec import Condition, Pipeline, Ref, Source, Step
from mesh.core.pipeline.split import first_of, split
from mesh.core.types import Dtype, TensorSpec

MOST_RETRIES: Final = 100

MOST_PROBLEMS: Final = 100
"""That are told of one pipeline."""

Path = tuple[str | int, ...]
"""Such as ("steps", 2, "inputs", "a")."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and where."""

    path: Path
    message: str

    def __str__(self) -> str:
        """Return it as one line."""
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path)
        return f"{where.lstrip('.')}: {self.message}"


@dataclass(frozen=True, slots=True)
class Signature:
    """The tensors of a model by name. One without outputs takes and gives whatever it likes."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    decoupled: bool = False
    """Whether one request may have any number of responses."""


Lookup = Callable[[str, str], Signature | None]
"""From the name and version of a model to its signature; None when there is no such model."""


def check(pipeline: Pipeline, lookup: Lookup) -> list[Problem]:
    """Return what is wrong with a pipeline, in the order of its parts; empty when nothing is. O(steps x tensors).

    At most `MOST_PROBLEMS`: to find what was meant by each name that is wrong takes a look at all that are right.
    """
    problems = list(islice(_names(pipeline), MOST_PROBLEMS))
    if problems:
        # Where names clash or nothing is there, the rest would only say so again.
        return problems
    checked = _Checked(pipeline, lookup)
    cycle = _cycle(pipeline)
    if cycle:
        at = next(index for index, step in enumerate(pipeline.steps) if step.name == cycle[0])
        told = " -> ".join([*cycle, cycle[0]])
        problems.append(Problem(("steps", at), f"steps wait for each other: {told}; take one of these inputs away"))
    found = chain(
        chain.from_iterable(checked.step(index, step) for index, step in enumerate(pipeline.steps)),
        chain.from_iterable(checked.source(("outputs", name), source) for name, source in pipeline.outputs.items()),
    )
    problems += islice(found, MOST_PROBLEMS - len(problems))
    if not problems:
        problems += _unused(pipeline)
        problems += checked.side_by_side()
    return problems


def signature_of(pipeline: Pipeline, lookup: Lookup) -> Signature:
    """Return what a checked pipeline takes and gives: what it declares, else what its models want and give."""
    checked = _Checked(pipeline, lookup)
    inputs = dict(checked.given)
    for step in pipeline.steps:
        for name, source in step.inputs.items():
            wanted = checked.wanted(step, name)
            for ref in source:
                if not ref.step and ref.tensor not in inputs and wanted is not None:
                    shape = (-1, *wanted.shape) if name in step.each else wanted.shape
                    inputs[ref.tensor] = TensorSpec(ref.tensor, wanted.dtype, shape, optional=wanted.optional)
    outputs = {}
    for name, source in pipeline.outputs.items():
        found = next((spec for ref in source if (spec := checked.spec(ref)) is not None), None)
        found = found or next((inputs[ref.tensor] for ref in source if not ref.step and ref.tensor in inputs), None)
        if found is not None:
            outputs[name] = TensorSpec(name, found.dtype, found.shape)
    return Signature(inputs, outputs, decoupled=any(checked.decoupled(step) for step in pipeline.steps))


class _Checked:
    """A pipeline with the signatures of its models."""

    def __init__(self, pipeline: Pipeline, lookup: Lookup) -> None:
        self._pipeline = pipeline
        self._lookup = lookup
        self._steps = {step.name: step for step in pipeline.steps}
        self._found = {step.name: lookup(step.model, step.version) for step in pipeline.steps}
        self.given = {spec.name: spec for spec in pipeline.inputs}

    def step(self, index: int, step: Step) -> Iterator[Problem]:
        at: Path = ("steps", index)
        for name, source in step.inputs.items():
            yield from self.source((*at, "inputs", name), source)
        if step.when is not None:
            yield from self._condition((*at, "when"), step.when)
        if self.decoupled(step) and (step.each or step.timeout_s or step.retries or step.use_on_error):
            told = (
                f"model '{step.model}' answers several times, which goes with no each, timeout_s, retries or on_error"
            )
            yield Problem(at, told)
        for name in step.each:
            if name not in step.inputs:
                yield Problem((*at, "each"), f"expected inputs of this step, {_told(name, step.inputs)}")
        found = self._found[step.name]
        if found is None:
            version = f" version {step.version}" if step.version else ""
            yield Problem((*at, "model"), f"expected a model of this mesh, '{step.model}'{version} is none")
        elif found.outputs:
            yield from self._inputs(at, step, found)
        if step.use_on_error:
            yield from self._stand_in(at, step)

    def decoupled(self, step: Step) -> bool:
        """Tell whether a step may answer several times."""
        found = self._found[step.name]
        return found is not None and found.decoupled

    def side_by_side(self) -> Iterator[Problem]:
        """Yield each step with several responses that is not behind the one before it."""
        rest = self._pipeline
        while several := [step for step in rest.steps if self.decoupled(step)]:
            first = first_of(rest, several)
            assert first is not None
            after = split(rest, first.name).after
            behind = {step.name for step in after.steps}
            for other in several:
                if other is not first and other.name not in behind:
                    at = next(at for at, step in enumerate(self._pipeline.steps) if step.name == other.name)
                    told = (
                        f"steps '{first.name}' and '{other.name}' both answer several times; put one behind the other"
                    )
                    yield Problem(("steps", at), told)
                    return
            rest = after

    def source(self, at: Path, source: Source) -> Iterator[Problem]:
        for ref in source:
            yield from self._ref(at, ref)

    def wanted(self, step: Step, name: str) -> TensorSpec | None:
        found = self._found[step.name]
        return found.inputs.get(name) if found is not None else None

    def spec(self, ref: Ref) -> TensorSpec | None:
        """Return what is known of a tensor."""
        if not ref.step:
            return self.given.get(ref.tensor)
        step, found = self._steps.get(ref.step), self._found.get(ref.step)
        known = found.outputs.get(ref.tensor) if found is not None else None
        if known is None or step is None or not step.each:
            return known
        return TensorSpec(known.name, known.dtype, (-1, *known.shape))

    def _ref(self, at: Path, ref: Ref) -> Iterator[Problem]:
        if not ref.step:
            if self.given and ref.tensor not in self.given:
                told = _told(str(ref), (f"${name}" for name in self.given))
                yield Problem(at, f"expected an input of this pipeline, {told}")
            return
        if ref.step not in self._steps:
            yield Problem(at, f"expected a step of this pipeline, {_told(ref.step, self._steps)}")
            return
        found = self._found[ref.step]
        if found is not None and found.outputs and ref.tensor not in found.outputs:
            model = self._steps[ref.step].model
            yield Problem(at, f"expected an output of model '{model}', {_told(ref.tensor, found.outputs)}")

    def _condition(self, at: Path, when: Condition) -> Iterator[Problem]:
        problems = list(self._ref(at, when.of))
        yield from problems
        spec = self.spec(when.of)
        if problems or spec is None:
            return
        is_text = isinstance(when.value, str)
        if is_text is not (spec.dtype is Dtype.BYTES):
            kind = "a text in quotes" if spec.dtype is Dtype.BYTES else "a number"
            yield Problem(at, f"expected {kind} to compare with {when.of}, which is {_shown(spec)}, got {when.value!r}")

    def _inputs(self, at: Path, step: Step, found: Signature) -> Iterator[Problem]:
        for name, spec in found.inputs.items():
            if name not in step.inputs and not spec.optional:
                yield Problem((*at, "inputs"), f"model '{step.model}' wants input '{name}' {_shown(spec)}; give it one")
        for name, source in step.inputs.items():
            wanted = found.inputs.get(name)
            if wanted is None:
                message = f"expected an input of model '{step.model}', {_told(name, found.inputs)}"
                yield Problem((*at, "inputs", name), message)
                continue
            if name in step.each:
                wanted = TensorSpec(wanted.name, wanted.dtype, (-1, *wanted.shape))
            for ref in source:
                given = self.spec(ref)
                if given is not None and not _fits(given, wanted):
                    message = f"model '{step.model}' wants '{name}' {_shown(wanted)}, {ref} is {_shown(given)}"
                    yield Problem((*at, "inputs", name), message)

    def _stand_in(self, at: Path, step: Step) -> Iterator[Problem]:
        other, own = self._lookup(step.use_on_error, ""), self._found[step.name]
        if other is None:
            yield Problem((*at, "on_error"), f"expected a model of this mesh, '{step.use_on_error}' is none")
            return
        if own is None or not other.outputs:
            return
        for name in sorted(_used(self._pipeline, step.name) - other.outputs.keys()):
            message = f"expected a model with the outputs that are used, '{step.use_on_error}' has no '{name}'"
            yield Problem((*at, "on_error"), message)
        for name in sorted(step.inputs.keys() - other.inputs.keys()):
            message = f"expected a model that takes the same inputs, '{step.use_on_error}' has no '{name}'"
            yield Problem((*at, "on_error"), message)


def _names(pipeline: Pipeline) -> Iterator[Problem]:
    yield from _named(("name",), pipeline.name)
    if not pipeline.steps:
        yield Problem(("steps",), "expected at least one step")
    if not pipeline.outputs:
        yield Problem(("outputs",), "expected at least one output, such as {label: last-step.label}")
    seen: set[str] = set()
    for index, step in enumerate(pipeline.steps):
        yield from _named(("steps", index, "name"), step.name)
        if step.name in seen:
            yield Problem(("steps", index, "name"), f"expected a name of its own, there is a step '{step.name}' before")
        seen.add(step.name)
        if pipeline.name in {step.model, step.use_on_error}:
            yield Problem(("steps", index, "model"), "expected another model or pipeline, this is the pipeline itself")
        if not step.inputs:
            yield Problem(("steps", index, "inputs"), "expected at least one input, such as {x: $x}")
        if step.retries > MOST_RETRIES:
            yield Problem(("steps", index, "retries"), f"expected at most {MOST_RETRIES}, got {step.retries}")
        if not step.timeout_s >= 0 or step.retries < 0:
            message = f"expected numbers of at least 0, got timeout {step.timeout_s:g} and retries {step.retries}"
            yield Problem(("steps", index), message)
    named = Counter(spec.name for spec in pipeline.inputs)
    for name in sorted(each for each, count in named.items() if count > 1):
        yield Problem(("inputs", name), "expected one input of this name, got two")


def _named(at: Path, name: str) -> Iterator[Problem]:
    try:
        text.name(name)
    except text.BadText as error:
        yield Problem(at, str(error))


def _cycle(pipeline: Pipeline) -> list[str]:
    """Return steps of which each waits for the one before, the first for the last; empty when there are none."""
    names = {step.name for step in pipeline.steps}
    before = {step.name: sorted({ref.step for ref in step.refs()} & names) for step in pipeline.steps}
    try:
        TopologicalSorter(before).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found[:-1]
    return []


def _unused(pipeline: Pipeline) -> Iterator[Problem]:
    """Yield the steps from which nothing reaches an output, and the inputs that nobody uses."""
    steps = {step.name: step for step in pipeline.steps}
    look = [ref for source in pipeline.outputs.values() for ref in source]
    reached: set[str] = set()
    used: set[str] = set()
    while look:
        ref = look.pop()
        if not ref.step:
            used.add(ref.tensor)
        elif ref.step not in reached:
            reached.add(ref.step)
            look.extend(steps[ref.step].refs())
    for index, step in enumerate(pipeline.steps):
        if step.name not in reached:
            yield Problem(("steps", index), f"no output needs step '{step.name}'; use what it gives or take it away")
    for spec in pipeline.inputs:
        if spec.name not in used:
            yield Problem(("inputs", spec.name), "no step and no output uses this input; use it or take it away")


def _used(pipeline: Pipeline, name: str) -> set[str]:
    refs = [ref for step in pipeline.steps for ref in step.refs()]
    refs += [ref for source in pipeline.outputs.values() for ref in source]
    return {ref.tensor for ref in refs if ref.step == name}


def _fits(given: TensorSpec, wanted: TensorSpec) -> bool:
    if given.dtype is not wanted.dtype or len(given.shape) != len(wanted.shape):
        return False
    return all(-1 in (one, other) or one == other for one, other in zip(given.shape, wanted.shape, strict=True))


def _shown(spec: TensorSpec) -> str:
    return f"{spec.dtype.value} [{', '.join(map(str, spec.shape))}]"


def _told(got: str, there: Iterable[str]) -> str:
    """Return what came and what it may have meant."""
    names = sorted(there)
    near = get_close_matches(got, names, n=1)
    meant = f"; did you mean '{near[0]}'?" if near else f"; there are: {', '.join(names) or 'none'}"
    return f"got '{got}'{meant}"
