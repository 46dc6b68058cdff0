"""Sequences of a model on a GPU: their states stay there from step to step (ONNX Runtime's IO binding).

Inputs go to the device and outputs come back with every run; states come back only when one of a batch is told, all of
that batch in one copy.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from mesh.core.errors import ModelFailed
from mesh.core.types import ModelVersion
from mesh.node.runtimes.bank import ONNX_TYPES, Bank, Place
from mesh.node.runtimes.base import Array, Tensors, Turn
from mesh.node.runtimes.stateful import States, TensorSteps


class DeviceSteps:
    """A `Steps` over the states of a `TensorSteps`, kept on a device. The model batches, and takes no text."""

    generates = False

    def __init__(
        self, model: ModelVersion, host: TensorSteps, session: Any, names: Sequence[str], place: Place
    ) -> None:
        """Raise what ONNX Runtime raises where the device cannot do it. `names` are the outputs that callers get."""
        assert model.sequence is not None
        self.most_rows = host.most_rows
        self._name = model.name
        self._host = host
        self._session = session
        self._names = list(names)
        self._place = place
        self._fed_by = {state.input: state.output for state in model.sequence.states}
        self._banks = {
            name: Bank(array.shape[1:], array.dtype, place, session.get_session_options)
            for name, array in host.initial.items()
        }
        self._free: list[int] = []
        self.rows = 0
        """That were taken at one time."""
        self._lock = threading.Lock()
        for bank in self._banks.values():
            bank.read(np.array([0], np.int64))

    def step(self, turns: Sequence[Turn]) -> None:
        """Run them together."""
        given = self._host.given(turns)
        rows = [each.state if isinstance(each.state, Row) else self._row() for each in turns]
        at = np.array([row.number for row in rows], np.int64)
        fresh = [place for place, each in enumerate(turns) if not isinstance(each.state, Row)]
        initial = self._host.initial
        if fresh:
            held: list[States] = [turns[place].state or initial for place in fresh]
            for name, bank in self._banks.items():
                bank.write(at[fresh], np.concatenate([states[name] for states in held]))
        answered, batch = self._run(given, at)
        self._host.check_rows(answered, len(turns))
        for name, bank in self._banks.items():
            bank.write(at, batch.states[name])
        for place, (each, row) in enumerate(zip(turns, rows, strict=True)):
            each.outputs = [{name: array[place : place + 1] for name, array in answered.items()}]
            row.batch, row.place = weakref.ref(batch), place
            each.state, each.held = row, batch

    def packed(self, state: Any) -> Any:
        """Return the elements of each state: of the run that made it, or where that is long ago from the device."""
        if not isinstance(state, Row):
            return self._host.packed(state)  # It was restored, and took no step here.
        batch = state.batch() if state.batch is not None else None
        if batch is not None:
            return {name: array[state.place].tobytes() for name, array in batch.on_host().items()}
        at = np.array([state.number], np.int64)
        return {name: bank.read(at).numpy().tobytes() for name, bank in self._banks.items()}

    def unpacked(self, told: Any) -> Any:
        """Return the arrays, which go to the device with the next step."""
        return self._host.unpacked(told)

    def _run(self, given: Tensors, at: Array) -> tuple[Tensors, Batch]:
        bound, place = self._session.io_binding(), self._place
        for name, array in given.items():
            bound.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, bank in self._banks.items():
            bound.bind_ortvalue_input(name, bank.read(at))
        for name in self._names:
            bound.bind_output(name, "cpu")
        for name in self._fed_by.values():
            bound.bind_output(name, place.kind, place.index)
        self._session.run_with_iobinding(bound)
        found = bound.get_outputs()
        shown = len(self._names)
        states = dict(zip(self._fed_by, found[shown:], strict=True))
        for name, value in states.items():
            shape = [len(at), *self._host.initial[name].shape[1:]]
            if list(value.shape()) != shape:
                raise ModelFailed(
                    f"model '{self._name}' answered state '{self._fed_by[name]}' as {list(value.shape())}, "
                    f"expected {shape}"
                )
        return {name: value.numpy() for name, value in zip(self._names, found, strict=False)}, Batch(states)

    def _row(self) -> Row:
        with self._lock:
            if self._free:
                return Row(self._free.pop(), self._free)
            self.rows += 1
            return Row(self.rows - 1, self._free)

    def __repr__(self) -> str:
        """Show how many rows were taken at a time."""
        return f"<DeviceSteps {self._name} rows={self.rows} free={len(self._free)}>"


class Batch:
    """The states that one run made, on the device."""

    __slots__ = ("__weakref__", "_host", "states")

    def __init__(self, states: dict[str, Any]) -> None:
        self.states = states
        """OrtValues by the name of the input they feed."""
        self._host: States | None = None

    def on_host(self) -> States:
        """Return them as arrays; they are copied once."""
        if self._host is None:
            self._host = {name: value.numpy() for name, value in self.states.items()}
            self.states = {}
        return self._host


class Row:
    """Where one sequence's states are in the banks. It is free again when nobody holds it."""

    __slots__ = ("_free", "batch", "number", "place")

    def __init__(self, number: int, free: list[int]) -> None:
        self.number = number
        self.batch: weakref.ref[Batch] | None = None
        """The run that made the state. A sequence that rests must not hold the batch that it was last in."""
        self.place = 0
        """Its row there."""
        self._free = free

    def __del__(self) -> None:
        """Give the row back."""
        self._free.append(self.number)


def fits(host: TensorSteps) -> bool:
    """Tell whether states of these types can be kept on a device."""
    return host.most_rows > 1 and all(array.dtype in ONNX_TYPES for array in host.initial.values())
