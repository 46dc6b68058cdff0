"""Pipelines between the protocol's messages and core's types. What cannot be read is a problem with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from mesh.api.carried import Carried
from mesh.api.messages import control
from mesh.api.signature import check_tensor
from mesh.api.values import read_value, value_message
from mesh.core.errors import InvalidRequest
from mesh.core.pipeline import text
from mesh.core.pipeline.check import Path, Problem
from mesh.core.pipeline.spec import Condition, Pipeline, Source, Step
from mesh.core.types import TensorSpec

T = TypeVar("T")

MOST_STEPS: Final = 1000
"""Of one pipeline, without those of the pipelines in it. What people draw has a few dozen."""

MOST_TENSORS: Final = 20_000
"""Inputs, outputs and parameters of a pipeline and all its steps."""


class _Reader:
    """Reads parts, and keeps what is wrong with them."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def read(self, at: Path, read: Callable[[str], T], written: str, otherwise: T) -> T:
        if len(written) > text.LONGEST:
            self.problems.append(Problem(at, f"expected at most {text.LONGEST} characters, got {len(written)}"))
            return otherwise
        try:
            return read(written)
        except text.BadText as error:
            self.problems.append(Problem(at, str(error)))
            return otherwise

    def sources(self, at: Path, written: Mapping[str, str]) -> dict[str, Source]:
        return {name: self.read((*at, name), text.source, each, ()) for name, each in sorted(written.items())}

    def step(self, index: int, said: Any) -> Step:
        at: Path = ("steps", index)
        when: Condition | None = None
        if said.when:
            when = self.read((*at, "when"), text.condition, said.when, None)
        return Step(
            name=said.name or said.model,
            model=said.model,
            version=said.version,
            inputs=self.sources((*at, "inputs"), said.inputs),
            when=when,
            each=tuple(said.each),
            timeout_s=said.timeout_s,
            retries=said.retries,
            use_on_error=said.on_error.use,
            parameters={name: read_value(each) for name, each in sorted(said.parameters.items())},
        )


def read_pipeline(said: Any) -> tuple[Pipeline, list[Problem]]:
    """Return the pipeline that a `mesh.v1.Pipeline` describes, and what of it cannot be read."""
    if large := _too_large(said):
        return Pipeline(said.name, (), {}), [large]
    reader = _Reader()
    inputs: list[TensorSpec] = []
    for name, written in sorted(said.inputs.items()):
        spec = reader.read(("inputs", name), lambda each, name=name: text.tensor(name, each), written, None)  # type: ignore[misc] # mypy does not infer the default's type
        if spec is not None:
            inputs.append(spec)
    steps = tuple(reader.step(index, each) for index, each in enumerate(said.steps))
    outputs = reader.sources(("outputs",), said.outputs)
    return Pipeline(said.name, steps, outputs, tuple(inputs)), reader.problems


def _too_large(said: Any) -> Problem | None:
    if len(said.steps) > MOST_STEPS:
        return Problem(("steps",), f"expected at most {MOST_STEPS} steps, got {len(said.steps)}")
    tensors = len(said.inputs) + len(said.outputs)
    tensors += sum(len(step.inputs) + len(step.each) + len(step.parameters) for step in said.steps)
    if tensors > MOST_TENSORS:
        return Problem(("steps",), f"expected at most {MOST_TENSORS} inputs, outputs and parameters, got {tensors}")
    return None


def pipeline_message(pipeline: Pipeline) -> control.Pipeline:
    """Return a pipeline as mesh.v1 shows it: written as it may be applied."""
    return control.Pipeline(
        name=pipeline.name,
        inputs={spec.name: f"{spec.dtype.value} [{', '.join(map(str, spec.shape))}]" for spec in pipeline.inputs},
        steps=[_step_message(step) for step in pipeline.steps],
        outputs={name: _written(source) for name, source in pipeline.outputs.items()},
        revision=pipeline.revision,
    )


def _step_message(step: Step) -> control.Step:
    return control.Step(
        name=step.name,
        model=step.model,
        version=step.version,
        inputs={name: _written(source) for name, source in step.inputs.items()},
        when=str(step.when) if step.when is not None else "",
        each=step.each,
        timeout_s=step.timeout_s,
        retries=step.retries,
        on_error=control.OnError(use=step.use_on_error) if step.use_on_error else None,
        parameters={name: value_message(each) for name, each in step.parameters.items()},
    )


def _written(source: Source) -> str:
    return " | ".join(map(str, source))


def check_inputs(name: str, specs: Iterable[TensorSpec], given: Mapping[str, Carried]) -> None:
    """Raise `InvalidRequest`, in Triton's words, unless `given` is what a pipeline with these inputs takes."""
    known = {spec.name: spec for spec in specs}
    if not known:
        return  # Nobody knows what its models take; they will say so.
    required = [each for each, spec in known.items() if not spec.optional]
    missing = [each for each in required if each not in given]
    if missing:
        got, lacks = ",".join(f"'{each}'" for each in given), ",".join(f"'{each}'" for each in missing)
        raise InvalidRequest(
            f"expected {len(required)} inputs but got {len(given)} inputs for model '{name}'. "
            f"Got input(s) [{got}], but missing required input(s) [{lacks}]. Please provide all required input(s)."
        )
    for each, tensor in given.items():
        spec = known.get(each)
        if spec is None:
            takes = ", ".join(sorted(known))
            raise InvalidRequest(f"unexpected inference input '{each}' for model '{name}', which takes {takes}")
        check_tensor(tensor.dtype, tensor.shape, spec, name)


def wanted_outputs(pipeline: Pipeline, outputs: Iterable[Any]) -> list[str]:
    """Return the names of what to answer: those of a request's `outputs`, or all.

    Raises `InvalidRequest` for one that there is not, and for classes, which models alone answer with.
    """
    named = []
    for output in outputs:
        if output.name not in pipeline.outputs:
            there = ", ".join(pipeline.outputs)
            raise InvalidRequest(
                f"unexpected inference output '{output.name}' for model '{pipeline.name}', which answers {there}"
            )
        if "classification" in output.parameters:
            raise InvalidRequest(f"parameter 'classification' is not offered for outputs of pipeline '{pipeline.name}'")
        named.append(output.name)
    return named or list(pipeline.outputs)
