"""What a pipeline is: steps, the tensors between them, and what comes out. Frozen; the registry stores it as JSON.

Whether it makes sense is `check`'s affair, what runs when `run`'s, and how people write references `text`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from mesh.core.types import TensorSpec

Literal = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Ref:
    """One tensor of a graph: an output of `step`, or with an empty `step` an input of the pipeline."""

    step: str
    tensor: str

    def __str__(self) -> str:
        """Return it as it is written: ``$tensor`` or ``step.tensor``."""
        return f"{self.step}.{self.tensor}" if self.step else f"${self.tensor}"


Source = tuple[Ref, ...]
"""Where a tensor comes from: the first of these that there is. More than one where branches merge."""


class Op(StrEnum):
    """How a condition compares."""

    EQUAL = "=="
    NOT_EQUAL = "!="
    LESS = "<"
    AT_MOST = "<="
    MORE = ">"
    AT_LEAST = ">="


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison of a tensor with one element and a value; the step it belongs to is skipped when it is false."""

    of: Ref
    op: Op
    value: Literal

    def __str__(self) -> str:
        """Return it as it is written."""
        value = str(self.value).lower() if isinstance(self.value, bool) else repr(self.value)
        return f"{self.of} {self.op.value} {value}"


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a model."""

    name: str
    model: str
    version: str = ""
    """Empty: the latest."""
    inputs: Mapping[str, Source] = field(default_factory=dict)
    """The model's inputs by name."""
    when: Condition | None = None
    """The step and what depends on it alone is skipped when this is false."""
    each: tuple[str, ...] = ()
    """Inputs of which the model gets one element of the first axis at a time; its outputs are stacked."""
    timeout_s: float = 0.0
    """For one attempt; 0: as long as the request has."""
    retries: int = 0
    """Attempts after the first that failed."""
    use_on_error: str = ""
    """A model that answers with the same inputs when all attempts failed; empty: the request fails."""
    parameters: Mapping[str, Literal] = field(default_factory=dict)
    """Request parameters for this step, beside those of the caller."""

    def refs(self) -> Iterator[Ref]:
        """Yield every tensor that it may need."""
        for source in self.inputs.values():
            yield from source
        if self.when is not None:
            yield self.when.of

    def models(self) -> list[tuple[str, str]]:
        """Return (name, version) of what it may ask: its model, and the one that stands in."""
        stands_in = [(self.use_on_error, "")] if self.use_on_error else []
        return [(self.model, self.version), *stands_in]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A graph of steps under one name."""

    name: str
    steps: tuple[Step, ...]
    outputs: Mapping[str, Source]
    inputs: tuple[TensorSpec, ...] = ()
    """What callers give; empty: whatever the steps refer to, as their models want it."""
    revision: int = 0
    """Counts the changes of the pipeline of this name, from 1."""

    def models(self) -> list[tuple[str, str]]:
        """Return (name, version) of all that may be asked, those that stand in too. O(steps)."""
        return sorted({asked for step in self.steps for asked in step.models()})
