"""Pipelines around a step that answers several times: what runs once before it, and what runs for each answer. Pure.

Steps that depend on it run once per response; all others run once, before it is asked. Each half is a pipeline of its
own, in which tensors from outside are inputs named ``step.tensor``. The second half may be split again. Halves are
named by a path, so that nodes make the same ones: ``a<`` is what is before step `a`, ``a>`` what is behind it, and
``a>b<`` what is between the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mesh.core.pipeline.spec import Pipeline, Ref, Source, Step


@dataclass(frozen=True, slots=True)
class Split:
    """The parts of a pipeline around a step."""

    before: Pipeline
    """Its outputs are the tensors that the others want of it. It may have no steps."""
    asked: Pipeline
    """The step alone; it gives all that is wanted of it."""
    after: Pipeline
    """It gives what the whole pipeline gives. It may have no steps."""


def split(pipeline: Pipeline, name: str) -> Split:
    """Return the parts around step `name`. O(steps x tensors)."""
    behind = _behind(pipeline, name)
    first = [step for step in pipeline.steps if step.name != name and step.name not in behind]
    (asked,) = (step for step in pipeline.steps if step.name == name)
    last = [step for step in pipeline.steps if step.name in behind]
    there = {step.name for step in first}
    wanted = [ref for step in (asked, *last) for ref in step.refs()]
    wanted += [ref for source in pipeline.outputs.values() for ref in source]
    between: dict[str, Source] = {str(ref): (ref,) for ref in wanted if ref.step in there}
    own: dict[str, Source] = {str(ref): (ref,) for ref in wanted if ref.step == name}
    return Split(
        replace(pipeline, steps=tuple(first), outputs=between, inputs=()),
        replace(pipeline, steps=(_outside(asked, {name}),), outputs=own, inputs=()),
        replace(
            pipeline,
            steps=tuple(_outside(step, behind) for step in last),
            outputs={each: _from_outside(source, behind) for each, source in pipeline.outputs.items()},
            inputs=(),
        ),
    )


def first_of(pipeline: Pipeline, several: Sequence[Step]) -> Step | None:
    """Return the step of `several` that has the most behind it, so all others if they are one behind the other."""
    if len(several) < 2:
        return several[0] if several else None
    return max(several, key=lambda step: len(_behind(pipeline, step.name)))


def half(pipeline: Pipeline, path: str) -> Pipeline:
    """Return the part of a pipeline that a path names. Raises KeyError for a path that names none."""
    while path:
        at = min((path.index(mark) for mark in "<>" if mark in path), default=-1)
        if at < 0 or path[:at] not in {step.name for step in pipeline.steps}:
            raise KeyError(path)
        parts = split(pipeline, path[:at])
        pipeline = parts.before if path[at] == "<" else parts.after
        path = path[at + 1 :]
    return pipeline


def _behind(pipeline: Pipeline, name: str) -> set[str]:
    """Return the steps that depend on `name`, itself not among them."""
    found: set[str] = set()
    more = True
    while more:
        new = {
            step.name
            for step in pipeline.steps
            if step.name not in found and any(ref.step == name or ref.step in found for ref in step.refs())
        }
        found |= new
        more = bool(new)
    return found


def _outside(step: Step, inside: set[str]) -> Step:
    """Return a step whose tensors from steps that are not `inside` are inputs."""
    inputs: Mapping[str, Source] = {name: _from_outside(source, inside) for name, source in step.inputs.items()}
    when = step.when
    if when is not None:
        when = replace(when, of=_from_outside((when.of,), inside)[0])
    return replace(step, inputs=inputs, when=when)


def _from_outside(source: Source, inside: set[str]) -> Source:
    return tuple(ref if not ref.step or ref.step in inside else Ref("", str(ref)) for ref in source)
