"""Pipelines written in Python: steps that name each other's outputs, then one message for the mesh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mesh.api.messages import control
from mesh.api.values import value_message

from ._values import Parameter


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor of a graph: an input of the pipeline, or what a step gives. ``a | b`` is the first that there is."""

    written: str

    def __or__(self, other: Output) -> Output:
        """Return the first of two that there is: where branches merge."""
        return Output(f"{self.written} | {other.written}")

    def __str__(self) -> str:
        """Return it as it is written in a file."""
        return self.written


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """What a step gives, by the names of its model's outputs."""

    name: str

    def __getitem__(self, tensor: str) -> Output:
        """Return one output. Whether the model has it is checked when the pipeline is applied."""
        return Output(f"{self.name}.{tensor}")


Source = Output | str
"""A tensor, as an `Output` or as a file writes it: ``$input`` or ``step.output``."""


class Pipeline:
    """A graph of models under one name, made step by step; give it to `Client.apply_pipeline`.

    pipeline = Pipeline("product-matching")
    left = pipeline.step("left", "text-features", {"text": pipeline.input("title1")})
    right = pipeline.step("right", "text-features", {"text": pipeline.input("title2")})
    score = pipeline.step("score", "match-score", {"a": left["features"], "b": right["features"]})
    pipeline.output("match", score["probability"])
    client.apply_pipeline(pipeline)
    """

    def __init__(self, name: str) -> None:
        """Begin a pipeline."""
        self.message = control.Pipeline(name=name)
        """As mesh.v1 has it."""

    def input(self, name: str, kind: str = "") -> Output:
        """Return an input of the pipeline. `kind`, such as ``"FP32 [-1, 4]"``, is checked where it is given."""
        if kind:
            self.message.inputs[name] = kind
        return Output(f"${name}")

    def step(
        self,
        name: str,
        model: str,
        inputs: Mapping[str, Source],
        *,
        version: str = "",
        when: str = "",
        each: Sequence[str] = (),
        timeout_s: float = 0.0,
        retries: int = 0,
        use_on_error: str = "",
        parameters: Mapping[str, Parameter] | None = None,
    ) -> StepOutputs:
        """Add one call of a model and return what it gives.

        `when`, such as ``"router.class == 1"``, skips it where that is false; `each` names inputs of which the model
        gets one element of the first axis at a time; `timeout_s` is for one attempt (0: as long as the request has),
        `retries` are attempts after the first; `use_on_error` is a model that answers when all of them failed.
        """
        step = self.message.steps.add(
            name=name, model=model, version=version, when=when, each=each, timeout_s=timeout_s, retries=retries
        )
        for to, source in inputs.items():
            step.inputs[to] = str(source)
        if use_on_error:
            step.on_error.use = use_on_error
        for key, value in (parameters or {}).items():
            step.parameters[key].CopyFrom(value_message(value))
        return StepOutputs(name)

    def output(self, name: str, source: Source) -> None:
        """Name a tensor that the pipeline answers with."""
        self.message.outputs[name] = str(source)

    def __repr__(self) -> str:
        """Show the steps."""
        return f"<Pipeline {self.message.name} steps={[step.name for step in self.message.steps]}>"
