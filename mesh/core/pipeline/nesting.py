"""How deep pipelines lie in pipelines, and how many steps a request of one becomes.

A pipeline that uses another twice, which uses another twice, and so on, is short to write and long to run: sixteen such
levels are 65,536 steps. Everything here looks at each pipeline once, however often others use it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final, NamedTuple

from mesh.core.pipeline.spec import Pipeline, Step

DEEPEST: Final = 16
"""Pipelines in pipelines. People write two or three; a router answers each level with a call in a call."""

MOST_STEPS: Final = 10_000
"""Steps that a request may become, those of the pipelines in it counted as often as they are used."""


class Measure(NamedTuple):
    """How large a pipeline is with all that is in it."""

    depth: int
    """1: no pipeline is in it. More than `DEEPEST` for one that contains itself."""
    steps: int


class Nesting:
    """The pipelines of a view. `models` are names that are not a pipeline's, whatever `pipelines` says."""

    def __init__(self, pipelines: Mapping[str, Pipeline], models: Collection[str]) -> None:
        self._pipelines = pipelines
        self._models = models
        self._known: dict[str, Measure] = {}

    def inner(self, pipeline: Pipeline) -> Iterator[str]:
        """Yield the names of the pipelines in it, as often as they are used, one level deep."""
        return (name for name in _all_asked(pipeline) if self._is_pipeline(name))

    def of(self, name: str) -> Measure:
        """Return the measure of a pipeline. O(steps of it and of those in it), once; no recursion."""
        open_: set[str] = set()
        look = [name]
        while look:
            at = look[-1]
            pipeline = self._pipelines.get(at)
            if at in self._known or pipeline is None:
                look.pop()
                continue
            waits = {each for each in self.inner(pipeline) if each not in self._known}
            if at in open_:
                # Those that are still not known wait for this one: it is in itself.
                self._known[at] = _ENDLESS if waits else self._sum(pipeline)
                look.pop()
            else:
                open_.add(at)
                look.extend(waits - open_)
        return self._known.get(name, Measure(0, 0))

    def reached(self, name: str) -> set[str]:
        """Return the pipelines that are in one, at any depth; itself only if it is in itself. O(steps)."""
        found: set[str] = set()
        look = [name]
        while look:
            pipeline = self._pipelines.get(look.pop())
            if pipeline is not None:
                fresh = set(self.inner(pipeline)) - found
                found |= fresh
                look.extend(fresh)
        return found

    def around(self, name: str) -> set[str]:
        """Return the pipelines that a pipeline is in, at any depth. O(steps of all)."""
        users: dict[str, set[str]] = {}
        for outer, pipeline in self._pipelines.items():
            if self._is_pipeline(outer):
                for each in set(_all_asked(pipeline)):
                    users.setdefault(each, set()).add(outer)
        found: set[str] = set()
        look = [name]
        while look:
            fresh = users.get(look.pop(), set()) - found
            found |= fresh
            look.extend(fresh)
        return found

    def models(self, name: str) -> set[tuple[str, str]]:
        """Return (name, version) of every model that a pipeline may ask as a step, at any depth. O(steps)."""
        pipelines = (self._pipelines.get(each) for each in {name, *self.reached(name)})
        return {
            (step.model, step.version)
            for pipeline in pipelines
            for step in (pipeline.steps if pipeline is not None else ())
            if not self._is_pipeline(step.model)
        }

    def too_large(self, name: str) -> str:
        """Return why a pipeline must not run, in words that go behind its name; empty when it may."""
        measure = self.of(name)
        if measure.depth > DEEPEST:
            return f"lies more than {DEEPEST} pipelines deep, or contains itself"
        if measure.steps > MOST_STEPS:
            return f"becomes {measure.steps} steps with the pipelines in it; at most {MOST_STEPS} are run"
        return ""

    def _sum(self, pipeline: Pipeline) -> Measure:
        depth, steps = 0, 0
        for step in pipeline.steps:
            for name in _asked(step):
                inner = self._known[name] if self._is_pipeline(name) else Measure(0, 0)
                depth = max(depth, inner.depth)
                steps += inner.steps
            steps += 1
        return _ENDLESS if depth + 1 > DEEPEST else Measure(depth + 1, steps)

    def _is_pipeline(self, name: str) -> bool:
        return name in self._pipelines and name not in self._models

    def __repr__(self) -> str:
        """Show how many were looked at."""
        return f"<Nesting known={len(self._known)} of {len(self._pipelines)}>"


_ENDLESS: Final = Measure(DEEPEST + 1, MOST_STEPS + 1)


def _all_asked(pipeline: Pipeline) -> Iterator[str]:
    return (name for step in pipeline.steps for name in _asked(step))


def _asked(step: Step) -> tuple[str, ...]:
    return (step.model, step.use_on_error) if step.use_on_error else (step.model,)
