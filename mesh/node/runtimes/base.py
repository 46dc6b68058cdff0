"""The seam to runtimes: what the node asks of a loaded version."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from mesh.core.errors import MeshError
from mesh.core.types import Device, ModelVersion, TensorSpec
from mesh.node.workers.inside.port import Rows

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]


@dataclass(slots=True)
class Request:
    """What a Python model may read of a request besides its tensors. One is made per request: freezing costs more."""

    id: str = ""
    parameters: Mapping[str, bool | int | str | float] = field(default_factory=dict)
    restored: bytes = b""
    """The state to put the sequence into before this step (`mesh.api.snapshot`); empty: as it is."""
    tells: bool = False
    """Whether who asks keeps states."""
    caller: str = ""
    """Whose connection it came on first: the router's word for it, else the node's own."""


@dataclass(slots=True, eq=False)
class Turn:
    """One sequence's part in a run. A Python model sees it as one of its ``sequences``."""

    inputs: Tensors
    """Of this step alone."""
    request: Request
    id: int | str
    start: bool
    end: bool
    state: Any
    """What the step before left: a dict in a Python model, arrays in an ONNX model. None at the start."""
    outputs: list[Tensors] = field(default_factory=list)
    """What it answers: one for a step, any number in a generation."""
    done: bool = True
    """False: it wants another turn (generations alone)."""
    held: object = None
    """What a runtime keeps of the run until its states were told."""

    @property
    def parameters(self) -> Mapping[str, bool | int | str | float]:
        """The request's parameters."""
        return self.request.parameters

    def send(self, outputs: Tensors) -> None:
        """Answer with `outputs`; a generation may do so several times, or not at all."""
        self.outputs.append(outputs)


class Steps(Protocol):
    """How the steps of sequences run on a version. Called from threads, never twice at once for the same sequence."""

    most_rows: int
    """Sequences that may run together. 1 <= most_rows."""
    generates: bool
    """Whether a request goes on by itself, with any number of responses."""

    def step(self, turns: Sequence[Turn]) -> None:
        """Run all of them together: set their `outputs`, `state` and `done`. When it raises, no state has changed."""

    def packed(self, state: Any) -> Any:
        """Return a state as it travels: plain values and arrays (`mesh.api.snapshot`)."""

    def unpacked(self, told: Any) -> Any:
        """Return the state that was `packed`. Raises `InvalidRequest` for anything else."""


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What to load, and onto which device."""

    model: ModelVersion
    path: Path
    device: Device


Finished = Callable[[Any, float, MeshError | None], None]
"""Hears, once, how a run ended elsewhere: outputs and seconds, or what went wrong."""


class Apart(Protocol):
    """How the runs of a copy go on in other processes: begun on the event loop, and heard of later."""

    takes_turns: bool
    """Whether `turns` runs its steps; else `Steps.step` does, in a thread."""
    on_free: Callable[[], None]
    """Called when a run may begin that could not, or when `refused` changed."""
    on_lost: Callable[[str], None]
    """Called when no run will begin any more, and why."""

    @property
    def refused(self) -> MeshError | None:
        """Return why no run can begin for now, as a new error each time."""

    def begin(
        self, inputs: Mapping[str, Array | Rows], request: Request, *, waited: Callable[[], bool], finished: Finished
    ) -> None:
        """Begin a run; `finished` hears its end, never from within this call. `waited`: whether anybody still waits."""

    async def turns(self, turns: Sequence[Turn], waited: Callable[[], bool]) -> float:
        """Run one turn of sequences together, as `Steps.step` does; return its seconds."""

    def responses(self, inputs: Tensors, request: Request) -> AsyncGenerator[Tensors]:
        """Yield the responses of a several-response version. Closing it stops the model at its next one."""

    def bytes_held(self) -> int:
        """Return what its processes hold now."""

    def pids(self) -> set[int]:
        """Return its processes."""

    def look(self, now_s: float) -> None:
        """End processes whose run takes too long. Called every second or so."""

    def end(self, why: str) -> None:
        """End its largest process for `why`."""

    async def shut(self, within_s: float) -> str:
        """Let the model close, within that time, and end its processes; return what a close raised, or empty."""


class Loaded(Protocol):
    """A version in memory. `run` and `stream` are called from threads, up to `parallel` at a time."""

    inputs: tuple[TensorSpec, ...]
    """Shapes include the batch axis as -1 when the version batches."""
    outputs: tuple[TensorSpec, ...]
    steady: bool
    """Whether a run's time follows from its inputs' size, so that a tiny one may stay on the event loop. False for a
    user's code, which may sleep or call out at any time and would stop the node, and for a graph whose work depends on
    the values that it is given."""
    batches: bool
    """Whether requests may be joined along axis 0: false when the model looks at the request itself."""

    @property
    def parallel(self) -> int:
        """Return how many runs may go on at once."""

    @property
    def apart(self) -> Apart | None:
        """How its runs go on in other processes; None: `run`, `stream` and `steps` are called in this one."""

    @property
    def executor(self) -> Executor | None:
        """Return whose threads its calls go to, where it is not all the same to it; None: any."""

    @property
    def steps(self) -> Steps | None:
        """How its requests run as steps of sequences, or as generations; None: each stands for itself."""

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

    in_process: bool
    """Whether they run in this process, which then ends with them."""

    def load(self, spec: LoadSpec) -> Loaded:
        """Load, in a thread. Raises `LoadFailed` with a sentence."""
