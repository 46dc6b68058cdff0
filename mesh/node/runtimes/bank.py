"""The states of many sequences on a device: one tensor with a row for each, read and written without leaving it.

ONNX Runtime has no call for a part of a tensor on a device, so two tiny models do it there: Gather reads rows, and
ScatterND writes them (into the same memory: input and output are bound to one tensor).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from mesh.api.stream import varint
from mesh.node.runtimes.base import Array

FIRST_ROWS: Final = 64
"""Rows at the start; twice as many whenever they are all taken."""

ONNX_TYPES: Final = {
    np.dtype(kind): number
    for kind, number in (
        (np.float32, 1),
        (np.uint8, 2),
        (np.int8, 3),
        (np.uint16, 4),
        (np.int16, 5),
        (np.int32, 6),
        (np.int64, 7),
        (np.bool_, 9),
        (np.float16, 10),
        (np.float64, 11),
        (np.uint32, 12),
        (np.uint64, 13),
    )
}
"""TensorProto.DataType, by the numpy types that a state can have."""


@dataclass(frozen=True, slots=True)
class Place:
    """A device in ONNX Runtime's words."""

    kind: str
    """ "cuda" or "cpu"."""
    index: int
    providers: Sequence[Any]


class Bank:
    """Rows of one state. `shape` and `dtype` are those of one row. Any number of threads."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], place: Place, options: Callable[[], Any]) -> None:
        """Make `FIRST_ROWS` of zeros. Raises what ONNX Runtime raises where the device cannot do it."""
        self._shape, self._dtype, self._place = shape, dtype, place
        sessions = [
            ort.InferenceSession(made, options(), providers=list(place.providers))
            for made in (rows_model("Gather", shape, dtype), rows_model("ScatterND", shape, dtype))
        ]
        self._gather, self._scatter = sessions
        self._rows = self._on_device(np.zeros((FIRST_ROWS, *shape), dtype))
        self._capacity = FIRST_ROWS
        self._lock = threading.Lock()

    def read(self, at: Array) -> Any:
        """Return rows `at` (INT64 [n]) as an OrtValue [n, *shape] on the device."""
        with self._lock:
            bound = self._gather.io_binding()
            bound.bind_ortvalue_input("rows", self._rows)
            bound.bind_cpu_input("at", at)
            bound.bind_output("out", self._place.kind, self._place.index)
            self._gather.run_with_iobinding(bound)
            return bound.get_outputs()[0]

    def write(self, at: Array, values: Any) -> None:
        """Write rows `at` (INT64 [n]); `values` is an array or OrtValue [n, *shape]."""
        with self._lock:
            highest = int(at.max(initial=-1))
            if highest >= self._capacity:
                self._grow(highest + 1)
            bound = self._scatter.io_binding()
            bound.bind_ortvalue_input("rows", self._rows)
            bound.bind_cpu_input("at", at.reshape(-1, 1))
            if isinstance(values, np.ndarray):
                bound.bind_cpu_input("values", np.ascontiguousarray(values))
            else:
                bound.bind_ortvalue_input("values", values)
            bound.bind_ortvalue_output("out", self._rows)
            self._scatter.run_with_iobinding(bound)

    def _grow(self, wanted: int) -> None:
        while self._capacity < wanted:
            self._capacity *= 2
        rows = np.zeros((self._capacity, *self._shape), self._dtype)
        held = self._rows.numpy()
        rows[: len(held)] = held
        self._rows = self._on_device(rows)

    def _on_device(self, rows: Array) -> Any:
        return ort.OrtValue.ortvalue_from_numpy(rows, self._place.kind, self._place.index)

    def __repr__(self) -> str:
        """Show the size."""
        return f"<Bank {self._capacity} rows of {self._dtype} {list(self._shape)} on {self._place.kind}>"


def rows_model(operator: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """Return a serialized ONNX model that reads rows (Gather) or writes them (ScatterND) of a tensor [rows, *shape].

    (onnx.proto: ModelProto, GraphProto, NodeProto, ValueInfoProto; opset 13.)
    """
    kind, int64 = ONNX_TYPES[dtype], ONNX_TYPES[np.dtype(np.int64)]
    writes = operator == "ScatterND"
    given = [_value("rows", kind, ("c", *shape)), _value("at", int64, ("n", 1) if writes else ("n",))]
    names = ["rows", "at"]
    if writes:
        given.append(_value("values", kind, ("n", *shape)))
        names.append("values")
    node = b"".join(_part(1, name.encode()) for name in names) + _part(2, b"out") + _part(4, operator.encode())
    gives = _value("out", kind, ("c" if writes else "n", *shape))
    graph = _part(1, node) + _part(2, b"rows") + b"".join(_part(11, each) for each in given) + _part(12, gives)
    return _number(1, 8) + _part(7, graph) + _part(8, _part(1, b"") + _number(2, 13))


def _value(name: str, kind: int, shape: tuple[int | str, ...]) -> bytes:
    sizes = [_number(1, size) if isinstance(size, int) else _part(2, size.encode()) for size in shape]
    tensor = _number(1, kind) + _part(2, b"".join(_part(1, size) for size in sizes))
    return _part(1, name.encode()) + _part(2, _part(1, tensor))


def _part(field: int, payload: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(payload)) + payload


def _number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)
