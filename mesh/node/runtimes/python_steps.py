"""A user's Python class whose requests are steps of sequences, or generations that go on step by step.

With a ``sequence`` section in model.yaml, ``infer(self, inputs, sequences)`` gets the steps of several sequences as one
batch, one row each, and returns a batch. ``sequences[i]`` is whose row i is: its ``id``, ``start``, ``end``,
``parameters`` and ``state``, a dict that the model reads and writes and that is there again at the next step.

In a decoupled model, ``step(self, generations)`` is called again and again with those that are not done. Each has its
request's ``inputs`` and ``parameters``, a ``state`` of the same kind, ``send(outputs)`` for a response and ``done`` to
set to True when there is no more.

States hold None, numbers, text, bytes, numeric arrays, and lists and dicts of them: they travel when a node dies. A
model sets keys anew rather than change an array in place, so that a step that raises leaves the state as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from mesh.core.errors import InvalidRequest, LoadFailed
from mesh.core.types import ModelVersion, TensorSpec
from mesh.node.runtimes.base import Request, Steps, Tensors, Turn
from mesh.node.runtimes.stateful import TensorSteps
from mesh.node.workers.inside.hosted import Hosted

GENERATIONS: Final = 64
"""That are called together where the model does not say how many (max_batch_size)."""

_PLAIN: Final = Request()


def steps_of(
    hosted: Hosted, model: ModelVersion, folder: Path, run: Callable[[Tensors, Request], Tensors]
) -> Steps | None:
    """Return how its requests run as steps; None when each stands for itself. Raises `LoadFailed`."""
    if hosted.generates or hosted.sees_sequences:
        return _Turns(hosted, model)
    if model.sequence is None:
        return None
    return tensor_steps(model, folder, lambda inputs: run(inputs, _PLAIN))


def tensor_steps(model: ModelVersion, folder: Path, run: Callable[[Tensors], Tensors]) -> TensorSteps:
    """Return the steps of a Python model whose states are tensors. Raises `LoadFailed`."""
    assert model.sequence is not None
    if not (model.sequence.states or model.sequence.controls):
        raise LoadFailed(
            f"failed to load '{model.name}', model.yaml has a sequence section: expected infer(self, inputs, "
            "sequences), or states or controls in the section"
        )
    # No file knows its inputs.
    batch = (-1,) if model.max_batch_size else ()
    specs = [TensorSpec(each.name, each.dtype, (*batch, 1)) for each in model.sequence.controls]
    specs += [TensorSpec(each.input, each.dtype, (*batch, *each.shape)) for each in model.sequence.states]
    return TensorSteps(model, folder, {spec.name: spec for spec in specs}, run)


class _Turns:
    """A `Steps` around ``infer(inputs, sequences)``, or ``step(generations)``."""

    def __init__(self, hosted: Hosted, model: ModelVersion) -> None:
        self._hosted = hosted
        self.generates = hosted.generates
        self.most_rows = most_rows(model, generates=hosted.generates)

    def step(self, turns: Sequence[Turn]) -> None:
        if self.generates:
            self._hosted.step(turns)
        else:
            self._hosted.rows(turns)

    def packed(self, state: Any) -> Any:
        return state

    def unpacked(self, told: Any) -> Any:
        return as_dict(told)


def most_rows(model: ModelVersion, *, generates: bool) -> int:
    """Return how many sequences or generations of a model run together."""
    return (model.max_batch_size or GENERATIONS) if generates else max(1, model.max_batch_size)


def as_dict(told: Any) -> Any:
    """Return a state that was told. Raises `InvalidRequest` for what no state of a Python model is."""
    if not isinstance(told, dict):
        raise InvalidRequest(f"expected a dict as the state of a sequence, got a {type(told).__name__}")
    return told
