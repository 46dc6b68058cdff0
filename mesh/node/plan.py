"""Requests seen before but for their numbers: read and answered by position, without decoding a message.

Real callers send the same request over and over with other tensors in it. Everything up to the raw tensors is then byte
for byte what it was, so what was found out about it (which copy, which types and shapes, that they fit) still holds; a
single differing byte goes the long way through protobuf and `validate`. What a plan reads and writes is what the long
way does: a property test compares them.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mesh.api.messages import ModelInferRequest, ModelInferResponse
from mesh.api.raw_places import RAW_INPUT_TAG
from mesh.api.stream import varint
from mesh.api.tensors import NUMPY
from mesh.core.types import ITEM_BYTES, Dtype, TensorSpec
from mesh.node.asked import Asked
from mesh.node.runtimes.base import Array, Request, Tensors
from mesh.node.served import Served

MAX_LENGTHS: Final = 8
"""Different lengths of fronts that are tried: as many comparisons a message costs at most."""

COPIED_BYTES: Final = 4096
"""Up to here a copy costs less than a view."""

_RAW_OUTPUT_TAG: Final = b"\x32"
"""Field 6 of ModelInferResponse, length-delimited."""
LONG_WAY: Final = frozenset({Dtype.BYTES, Dtype.BOOL, Dtype.BF16})
"""Types whose bytes are not the array's own."""

Wanted = list[tuple[TensorSpec, int]]
Part = bytes | memoryview


class _Input:
    """One tensor at a known place: its field's head, and the array in it."""

    __slots__ = ("count", "dtype", "head", "name", "shape", "size")

    def __init__(self, name: str, dtype: Dtype, shape: tuple[int, ...]) -> None:
        self.name = name
        self.dtype = NUMPY[dtype]
        self.shape = shape
        self.count = int(np.prod(shape, dtype=np.int64))
        self.size = self.count * ITEM_BYTES[dtype]
        self.head = RAW_INPUT_TAG + varint(self.size)


PLAIN: Final = Request()


class Plan:
    """What is known of one front. Bound to one loaded copy: after a reload it is another."""

    __slots__ = ("_answers", "_front", "_inputs", "model", "rows", "served", "size", "version", "wanted")

    def __init__(
        self, front: bytes, request: ModelInferRequest, served: Served, *, wanted: Wanted, inputs: Tensors, rows: int
    ) -> None:
        self._front = front
        self.model: str = request.model_name
        self.version: str = request.model_version
        self.served = served
        self.wanted = wanted
        self.rows = rows
        self._inputs = [
            _Input(tensor.name, Dtype(tensor.datatype), inputs[tensor.name].shape) for tensor in request.inputs
        ]
        self.size = sum(each.size for each in self._inputs)
        """Bytes of all inputs."""
        self._answers: dict[tuple[tuple[int, ...], ...], tuple[bytes, list[bytes]]] = {}

    def read(self, message: bytes) -> dict[str, Array] | None:
        """Return the inputs, views of `message`; None when the bytes behind the front are not as they were."""
        position = len(self._front)
        arrays: dict[str, Array] = {}
        for each in self._inputs:
            head = each.head
            start = position + len(head)
            if message[position:start] != head:
                return None
            position = start + each.size
            if position > len(message):
                return None
            arrays[each.name] = np.frombuffer(message, each.dtype, each.count, start).reshape(each.shape)
        return arrays if position == len(message) else None

    def request(self, message: bytes, asked: Asked) -> Request | None:
        """Return what the request says beside its tensors; None when this plan is not for it after all."""
        del message
        return Request(parameters=asked.forwarded) if asked.forwarded else PLAIN

    def write(self, outputs: Tensors) -> list[Part] | None:
        """Return the parts of the serialized response; None when an output is not as its signature says."""
        arrays: list[Array] = []
        for spec, _ in self.wanted:
            array: Any = outputs.get(spec.name)
            if array.__class__ is not np.ndarray or array.dtype is not NUMPY[spec.dtype]:
                return None
            arrays.append(array)
        shapes = tuple([array.shape for array in arrays])
        known = self._answers.get(shapes)
        if known is None:
            known = self._answer(shapes)
        front, heads = known
        parts: list[Part] = [front]
        for head, array in zip(heads, arrays, strict=True):
            parts.append(head)
            # A view of a large array that lies in memory as it travels, a copy of anything else.
            if array.nbytes > COPIED_BYTES and array.flags.c_contiguous:
                parts.append(array.data.cast("B"))
            else:
                parts.append(array.tobytes())
        return parts

    def _answer(self, shapes: tuple[tuple[int, ...], ...]) -> tuple[bytes, list[bytes]]:
        """Return the front of responses with these shapes, and the head of each tensor behind it."""
        model = self.served.model
        response = ModelInferResponse(model_name=model.name, model_version=model.version)
        heads = []
        for (spec, _), shape in zip(self.wanted, shapes, strict=True):
            response.outputs.add(name=spec.name, datatype=spec.dtype.value, shape=shape)
            heads.append(_RAW_OUTPUT_TAG + varint(int(np.prod(shape, dtype=np.int64)) * ITEM_BYTES[spec.dtype]))
        if len(self._answers) >= MAX_LENGTHS:
            self._answers.clear()
        known = self._answers[shapes] = (response.SerializeToString(), heads)
        return known
