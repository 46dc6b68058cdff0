"""The seam to runtimes: what the node asks of a loaded version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from mesh.core.types import Device, ModelVersion, TensorSpec

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Request:
    """What a Python model may read of a request besides its tensors."""

    id: str = ""
    parameters: Mapping[str, bool | int | str | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What to load, and onto which device."""

    model: ModelVersion
    path: Path
    device: Device


class Loaded(Protocol):
    """A version in memory. `run` and `stream` are called from threads, up to `parallel` at a time."""

    inputs: tuple[TensorSpec, ...]
    """Shapes include the batch axis as -1 when the version batches."""
    outputs: tuple[TensorSpec, ...]
    parallel: int
    """How many runs may go on at once."""
    steady: bool
    """Whether a run's time follows from its inputs' size, so that a tiny one may stay on the event loop. False for a
    user's code, which may sleep or call out at any time and would stop the node."""
    batches: bool
    """Whether requests may be joined along axis 0: false when the model looks at the request itself."""

    def admit(self, inputs: Tensors) -> Tensors:
        """Return one request's inputs as `run` takes them. Raises `InvalidRequest` for values it cannot take.

        Called before the request may be joined with others, so that its mistake fails no one else's.
        """

    def run(self, inputs: Tensors, request: Request) -> Tensors:
        """Return the outputs by name. Raises whatever the model raises."""

    def stream(self, inputs: Tensors, request: Request) -> Iterator[Tensors]:
        """Yield the outputs of a several-response version."""

    def close(self) -> None:
        """Give the memory back. No run goes on any more."""


class Runtime(Protocol):
    """Loads versions."""

    def load(self, spec: LoadSpec) -> Loaded:
        """Load, in a thread. Raises `LoadFailed` with a sentence."""
