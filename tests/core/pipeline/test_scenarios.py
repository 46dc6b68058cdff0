"""Every file in tests/scenarios/pipeline: a graph, how its steps end, and what follows each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh.core.errors import ModelFailed
from mesh.core.pipeline import text
from mesh.core.pipeline.cut import ROUTER, shares
from mesh.core.pipeline.run import Action, Call, End, Fail, Finish, Graph, Run, compare
from mesh.core.pipeline.spec import Condition, Pipeline, Step

FILES = sorted((Path(__file__).parents[2] / "scenarios" / "pipeline").glob("*.yaml"))


def pipeline(said: dict[str, Any]) -> Pipeline:
    steps = tuple(
        Step(
            each["name"],
            each["model"],
            inputs={name: text.source(source) for name, source in each["inputs"].items()},
            when=text.condition(each["when"]) if "when" in each else None,
            retries=each.get("retries", 0),
            use_on_error=each.get("on_error", {}).get("use", ""),
        )
        for each in said["steps"]
    )
    return Pipeline("p", steps, {name: text.source(source) for name, source in said["outputs"].items()})


class Told:
    """A run of a scenario; a tensor is its own name, and what it is compared as stands in the file."""

    def __init__(self, said: dict[str, Any]) -> None:
        graph = Graph(pipeline(said))
        self._graph = graph
        self._values = said.get("values", {})
        share = None
        if "places" in said:
            places = {step: ROUTER if place == "router" else place for step, place in said["places"].items()}
            share = shares(graph, places)["" if said["at"] == "router" else said["at"]]
        self._gives = share.gives if share is not None else {}
        self._models = {step.name: step.model for step in graph.pipeline.steps}
        self.run = Run(graph, {name: f"${name}" for name in said["given"]}, self._truth, share)

    def _truth(self, when: Condition, tensor: str) -> bool:
        return compare(when, self._values[tensor])

    def do(self, what: str) -> list[str]:
        kind, _, step = what.partition(" ")
        outputs = {"y": f"{step}.y"}
        match kind:
            case "begin":
                actions = self.run.begin()
            case "done":
                actions = self.run.done(step, outputs)
            case "heard":
                actions = self.run.heard(step, outputs)
            case "fail":
                actions = self.run.failed(step, ModelFailed("boom"))
            case _:
                assert kind == "refuse"
                actions = self.run.failed(step, ModelFailed("never"), again=False)
        return [told for action in actions for told in self._told(action)]

    def _told(self, action: Action[str]) -> list[str]:
        match action:
            case Call(step, model):
                return [f"call {step.name}" + (f" with {model}" if model != self._models[step.name] else "")]
            case End(name, outputs):
                skipped = "skipped " if outputs is None else ""
                return [f"tell {skipped}{name} to {place or 'router'}" for place in sorted(self._gives[name])]
            case Fail(name):
                return [f"failed {name}"]
            case Finish(found):
                shown = " ".join(f"{name}={value}" for name, value in sorted(found.items()))
                return [f"answer {shown}" if found else "over"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_scenario(file: Path) -> None:
    said = yaml.safe_load(file.read_text())
    told = Told(said)
    for at, line in enumerate(said["run"]):
        assert told.do(line["do"]) == line["then"], f"line {at + 1}: {line['do']}"


def test_there_are_scenarios() -> None:
    assert len(FILES) >= 14
