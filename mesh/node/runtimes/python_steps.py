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

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from mesh.core.errors import InvalidRequest, LoadFailed
from mesh.core.types import ModelVersion, TensorSpec
from mesh.node.runtimes.base import Request, Steps, Tensors, Turn
from mesh.node.runtimes.stateful import TensorSteps

GENERATIONS: Final = 64
"""That are called together where the model does not say how many (max_batch_size)."""

_PLAIN: Final = Request()


def generates(model_class: Any, model: ModelVersion) -> bool:
    """Tell whether it answers step by step."""
    return model.decoupled and callable(getattr(model_class, "step", None))


def steps_of(
    instance: Any, model: ModelVersion, folder: Path, run: Callable[[Tensors, Request], Tensors]
) -> Steps | None:
    """Return how its requests run as steps; None when each stands for itself. Raises `LoadFailed`."""
    if generates(instance, model):
        return _Generations(instance, model)
    if model.sequence is None:
        return None
    if "sequences" in inspect.signature(instance.infer).parameters:
        return _Sequences(instance, model)
    if not (model.sequence.states or model.sequence.controls):
        raise LoadFailed(
            f"failed to load '{model.name}', model.yaml has a sequence section: expected infer(self, inputs, "
            "sequences), or states or controls in the section"
        )
    return TensorSteps(model, folder, _declared(model), lambda inputs: run(inputs, _PLAIN))


def _declared(model: ModelVersion) -> dict[str, TensorSpec]:
    """Return the inputs of a model that has no file which knows them."""
    assert model.sequence is not None
    batch = (-1,) if model.max_batch_size else ()
    specs = [TensorSpec(each.name, each.dtype, (*batch, 1)) for each in model.sequence.controls]
    specs += [TensorSpec(each.input, each.dtype, (*batch, *each.shape)) for each in model.sequence.states]
    return {spec.name: spec for spec in specs}


class _Sequences:
    """A `Steps` around ``infer(inputs, sequences)``."""

    generates = False

    def __init__(self, instance: Any, model: ModelVersion) -> None:
        self._instance = instance
        self._batched = model.max_batch_size > 0
        self.most_rows = max(1, model.max_batch_size)

    def step(self, turns: Sequence[Turn]) -> None:
        given = dict(turns[0].inputs)
        if len(turns) > 1:
            given = {name: np.concatenate([each.inputs[name] for each in turns]) for name in given}
        for each in turns:
            each.state = dict(each.state or {})
        answered = self._instance.infer(given, turns)
        if not isinstance(answered, Mapping):
            raise TypeError(f"infer must return a dict of arrays by output name, got {type(answered).__name__}")
        arrays = {name: np.asarray(value) for name, value in answered.items()}
        if not self._batched:
            turns[0].outputs = [arrays]
            return
        for name, array in arrays.items():
            if array.ndim == 0 or array.shape[0] != len(turns):
                raise ValueError(f"'{name}' has the shape {list(array.shape)} for {len(turns)} sequences")
        for at, each in enumerate(turns):
            each.outputs = [{name: array[at : at + 1] for name, array in arrays.items()}]

    def packed(self, state: Any) -> Any:
        return state

    def unpacked(self, told: Any) -> Any:
        return _dict(told)


class _Generations:
    """A `Steps` around ``step(generations)``."""

    generates = True

    def __init__(self, instance: Any, model: ModelVersion) -> None:
        self._instance = instance
        self.most_rows = model.max_batch_size or GENERATIONS

    def step(self, turns: Sequence[Turn]) -> None:
        for each in turns:
            each.state = dict(each.state or {})
        self._instance.step(turns)

    def packed(self, state: Any) -> Any:
        return state

    def unpacked(self, told: Any) -> Any:
        return _dict(told)


def _dict(told: Any) -> Any:
    if not isinstance(told, dict):
        raise InvalidRequest(f"expected a dict as the state of a sequence, got a {type(told).__name__}")
    return told
