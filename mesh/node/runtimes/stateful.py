"""Sequences of a model whose state is tensors: what it answers as state is what it is given at the next step.

The steps of several sequences run as one batch: their inputs, states and controls are joined along axis 0 and what
comes out is taken apart again (Triton's implicit state and sequence controls).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mesh.api.tensors import NUMPY
from mesh.core.errors import InvalidRequest, LoadFailed, ModelFailed
from mesh.core.types import Control, ControlKind, Dtype, ModelVersion, State, TensorSpec
from mesh.node.runtimes.base import Array, Tensors, Turn

States = dict[str, Array]
"""By the name of the input; each with a batch axis of 1 where the model batches."""


class TensorSteps:
    """A `Steps` around `run`, which takes and gives whole batches. `specs` are all inputs that `run` takes."""

    generates = False

    def __init__(
        self, model: ModelVersion, folder: Path, specs: Mapping[str, TensorSpec], run: Callable[[Tensors], Tensors]
    ) -> None:
        """Raise `LoadFailed` when the model's states and controls are not what it takes."""
        assert model.sequence is not None
        self._model = model
        self._run = run
        self._batched = model.max_batch_size > 0
        self.most_rows = max(1, model.max_batch_size)
        self._states = model.sequence.states
        self._controls = model.sequence.controls
        self.initial = initial_states(model, self._states, folder, specs, batched=self._batched)
        """What every state is at the start, by the input's name."""
        for control in self._controls:
            _check(model, specs.get(control.name), control.name, self._control(control, False, 0))  # noqa: FBT003

    def step(self, turns: Sequence[Turn]) -> None:
        """Run them together."""
        first = turns[0]
        given = self.given(turns)
        for state in self._states:
            name = state.input
            rows = [self.initial[name] if each.state is None else each.state[name] for each in turns]
            given[name] = rows[0] if len(rows) == 1 else np.concatenate(rows)
        answered = dict(self._run(given))
        kept = {state.input: self._state(state, answered, len(turns)) for state in self._states}
        if not self._batched:
            first.outputs, first.state = [answered], kept
            return
        self.check_rows(answered, len(turns))
        for at, each in enumerate(turns):
            each.outputs = [{name: array[at : at + 1] for name, array in answered.items()}]
            # Copies: a sequence that rests must not hold the batch that it was last in.
            each.state = {name: array[at : at + 1].copy() for name, array in kept.items()}

    def given(self, turns: Sequence[Turn]) -> dict[str, Array]:
        """Return the inputs and controls of a batch."""
        first = turns[0]
        if len(turns) == 1:
            given = dict(first.inputs)
        else:
            given = {name: np.concatenate([each.inputs[name] for each in turns]) for name in first.inputs}
        for control in self._controls:
            given[control.name] = np.concatenate(
                [self._control(control, _flag(control, each), each.id) for each in turns]
            )
        return given

    def check_rows(self, answered: Tensors, rows: int) -> None:
        """Raise `ModelFailed` unless every answer has a row for each sequence."""
        for name, array in answered.items():
            if array.ndim == 0 or array.shape[0] != rows:
                raise ModelFailed(
                    f"model '{self._model.name}' answered '{name}' {list(array.shape)} for {rows} sequences"
                )

    def packed(self, state: Any) -> Any:
        """Return the elements of each state: their types and shapes are the model's."""
        return {name: array.tobytes() for name, array in state.items()}

    def unpacked(self, told: Any) -> Any:
        """Return the arrays again."""
        name = self._model.name
        if not isinstance(told, dict) or told.keys() != self.initial.keys():
            raise InvalidRequest(f"expected a state of model '{name}' with {', '.join(self.initial) or 'nothing'}")
        found: States = {}
        for called, initial in self.initial.items():
            raw = told[called]
            if not isinstance(raw, bytes) or len(raw) != initial.nbytes:
                raise InvalidRequest(f"expected state '{called}' of model '{name}' as {initial.nbytes} bytes")
            found[called] = np.frombuffer(raw, initial.dtype).reshape(initial.shape)
        return found

    def _state(self, state: State, answered: dict[str, Array], rows: int) -> Array:
        found: Any = answered.pop(state.output, None)
        initial = self.initial[state.input]
        shape = (rows, *initial.shape[1:]) if self._batched else initial.shape
        if not isinstance(found, np.ndarray) or found.shape != shape or found.dtype != initial.dtype:
            came = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else "nothing"
            raise ModelFailed(
                f"model '{self._model.name}' answered state '{state.output}' as {came}, expected {initial.dtype} "
                f"{list(shape)}"
            )
        return found

    def _control(self, control: Control, flag: bool, id_: int | str) -> Array:
        shape = (1, 1) if self._batched else (1,)
        if control.kind is not ControlKind.CORRID:
            return np.full(shape, control.on if flag else control.off, NUMPY[control.dtype])
        if control.dtype is Dtype.BYTES:
            named = np.empty(shape, object)
            named.fill(str(id_).encode())
            return named
        if isinstance(id_, str):
            raise InvalidRequest(
                f"model '{self._model.name}' takes the sequence_id as {control.dtype}: expected a number, got '{id_}'"
            )
        # Ids have 64 bits: of a smaller type the lower ones are kept, as in C.
        return np.array(id_ & (1 << 64) - 1, np.uint64).astype(NUMPY[control.dtype]).reshape(shape)


def initial_states(
    model: ModelVersion, states: Sequence[State], folder: Path, specs: Mapping[str, TensorSpec], *, batched: bool
) -> States:
    """Return what every state is at the start. Raises `LoadFailed` for one that the model does not take."""
    found: States = {}
    for state in states:
        spec = specs.get(state.input)
        shape = state.shape
        if not shape and spec is not None:
            shape = spec.shape[1:] if batched else spec.shape
        found[state.input] = _begins(model, state, (1, *shape) if batched else tuple(shape), folder)
        _check(model, spec, state.input, found[state.input])
    return found


def _begins(model: ModelVersion, state: State, shape: tuple[int, ...], folder: Path) -> Array:
    if any(size < 1 for size in shape):
        raise LoadFailed(
            f"failed to load '{model.name}', the size of state '{state.input}' is not known: the file says "
            f"{list(shape)}; give its shape, without the batch axis, in model.yaml"
        )
    dtype = NUMPY[state.dtype]
    if not state.initial_file:
        return np.full(shape, state.initial, dtype)
    try:
        return np.frombuffer((folder / state.initial_file).read_bytes(), dtype).reshape(shape).copy()
    except (OSError, ValueError) as error:
        raise LoadFailed(
            f"failed to load '{model.name}', expected {int(np.prod(shape))} elements of {state.dtype} in "
            f"{state.initial_file}: {error}"
        ) from error


def _flag(control: Control, turn: Turn) -> bool:
    if control.kind is ControlKind.READY:
        return True
    return turn.start if control.kind is ControlKind.START else turn.end


def _check(model: ModelVersion, spec: TensorSpec | None, name: str, given: Array) -> None:
    """Raise `LoadFailed` unless the model takes `given` as the input of this name."""
    if spec is None:
        raise LoadFailed(f"failed to load '{model.name}', it has no input '{name}', which model.yaml names in sequence")
    skip = 1 if model.max_batch_size > 0 else 0
    fits = len(spec.shape) == given.ndim and all(
        want in (-1, size) for want, size in zip(spec.shape[skip:], given.shape[skip:], strict=True)
    )
    if not fits or NUMPY[spec.dtype] != given.dtype:
        raise LoadFailed(
            f"failed to load '{model.name}', input '{name}' is {spec.dtype} {list(spec.shape)} in the file, and "
            f"{given.dtype} {list(given.shape)} in the sequence section of model.yaml"
        )
