"""A request read and answered by a plan is read and answered as the long way does it, or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.api.messages import ModelInferRequest, ModelInferResponse
from mesh.api.raw_places import raws_of
from mesh.api.stream import varint
from mesh.api.tensors import NUMPY
from mesh.core.types import Dtype, ModelName, ModelVersion, TensorSpec, Version
from mesh.node.answer import encode, wanted_outputs
from mesh.node.plans import Plans
from mesh.node.runtimes.base import Array, Request, Tensors
from mesh.node.served import Served
from mesh.node.validate import read_inputs

NUMBERS = sorted(set(NUMPY) - {Dtype.BYTES, Dtype.BOOL, Dtype.BF16})


class Twins:
    """A loaded version that answers each input as an output."""

    apart = None
    executor = None
    parallel = 1
    steps = None
    steady = True
    batches = False

    def __init__(self, specs: tuple[TensorSpec, ...]) -> None:
        self.inputs = specs
        self.outputs = specs

    def admit(self, inputs: Tensors) -> Tensors:
        return inputs

    def run(self, inputs: Tensors, request: Request) -> Tensors:
        return inputs

    def stream(self, inputs: Tensors, request: Request) -> Iterator[Tensors]:
        yield inputs

    def close(self) -> None:
        """Nothing is held."""


def served(specs: tuple[TensorSpec, ...]) -> Served:
    model = ModelVersion(ModelName("twins"), Version("3"), "onnx", "", "", 0, inputs=specs, outputs=specs)
    return Served(model, Twins(specs), ThreadPoolExecutor(1), bytes_held=0, default_queue_size=1)


shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
tensors = st.lists(st.tuples(st.sampled_from(NUMBERS), shapes), min_size=1, max_size=3)


def request_for(arrays: Mapping[str, Array], dtypes: list[Dtype]) -> bytes:
    request = ModelInferRequest(model_name="twins")
    for (name, array), dtype in zip(arrays.items(), dtypes, strict=True):
        request.inputs.add(name=name, datatype=dtype.value, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request.SerializeToString()


@settings(max_examples=100, deadline=None)
@given(tensors, st.data())
async def test_a_plan_reads_and_answers_as_the_long_way_does(
    kinds: list[tuple[Dtype, tuple[int, ...]]], data: st.DataObject
) -> None:
    specs = tuple(TensorSpec(f"t{number}", dtype, shape) for number, (dtype, shape) in enumerate(kinds))
    copy, plans = served(specs), Plans()
    messages = []
    for _ in range(2):
        arrays = {
            spec.name: np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), NUMPY[spec.dtype]).reshape(
                spec.shape
            )
            for spec in specs
            for size in [int(np.prod(spec.shape, dtype=np.int64)) * NUMPY[spec.dtype].itemsize]
        }
        messages.append(request_for(arrays, [spec.dtype for spec in specs]))
    first = ModelInferRequest.FromString(messages[0])
    wanted = wanted_outputs(first, copy)
    inputs, rows = read_inputs(first, copy.inputs, "twins", 0)
    plans.learn(messages[0], first, copy, wanted=wanted, inputs=inputs, rows=rows, raws=raws_of(messages[0], first))
    for message in messages:
        plan = plans.find(message)
        assert plan is not None
        request = ModelInferRequest.FromString(message)
        expected, _ = read_inputs(request, copy.inputs, "twins", 0)
        read = plan.read(message)
        assert read is not None
        assert {name: (array.dtype, array.shape, array.tobytes()) for name, array in read.items()} == {
            name: (array.dtype, array.shape, array.tobytes()) for name, array in expected.items()
        }
        parts = plan.write(expected)
        assert parts is not None
        assert ModelInferResponse.FromString(b"".join(parts)) == encode(request, copy, expected, wanted)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 200), st.integers(0, 255), st.integers(0, 200), st.binary(max_size=5))
async def test_a_changed_message_is_read_as_the_long_way_reads_it_or_left_to_it(
    at: int, byte: int, cut: int, tail: bytes
) -> None:
    specs = (TensorSpec("a", Dtype.FP32, (2,)), TensorSpec("b", Dtype.INT64, (1,)))
    copy, plans = served(specs), Plans()
    arrays: dict[str, Array] = {"a": np.array([1, 2], np.float32), "b": np.array([3], np.int64)}
    original = request_for(arrays, [Dtype.FP32, Dtype.INT64])
    request = ModelInferRequest.FromString(original)
    inputs, rows = read_inputs(request, copy.inputs, "twins", 0)
    plans.learn(
        original,
        request,
        copy,
        wanted=wanted_outputs(request, copy),
        inputs=inputs,
        rows=rows,
        raws=raws_of(original, request),
    )
    changed = bytearray(original)
    changed[at % len(changed)] = byte
    message = bytes(changed)[: max(1, cut)] + tail
    plan = plans.find(message)
    read = plan.read(message) if plan is not None else None
    if read is not None:
        expected, _ = read_inputs(ModelInferRequest.FromString(message), copy.inputs, "twins", 0)
        assert {name: array.tobytes() for name, array in read.items()} == {
            name: array.tobytes() for name, array in expected.items()
        }


@pytest.mark.parametrize("what", ["an id", "a parameter", "typed contents", "an output's classes"])
async def test_what_a_plan_cannot_say_is_not_learned(what: str) -> None:
    specs = (TensorSpec("a", Dtype.FP32, (2,)),)
    copy, plans = served(specs), Plans()
    request = ModelInferRequest(model_name="twins")
    tensor = request.inputs.add(name="a", datatype="FP32", shape=[2])
    if what == "an id":
        request.id = "1"
    if what == "a parameter":
        request.parameters["priority"].int64_param = 1
    if what == "typed contents":
        tensor.contents.fp32_contents.extend([1, 2])
    else:
        request.raw_input_contents.append(bytes(8))
    if what == "an output's classes":
        request.outputs.add(name="a").parameters["classification"].int64_param = 1
    message = request.SerializeToString()
    inputs, rows = read_inputs(request, copy.inputs, "twins", 0)
    plans.learn(
        message,
        request,
        copy,
        wanted=wanted_outputs(request, copy),
        inputs=inputs,
        rows=rows,
        raws=raws_of(message, request),
    )
    assert plans.find(message) is None


@given(st.integers(0, 2**63))
def test_a_varint_is_protobuf_s(number: int) -> None:
    value, shift = 0, 0
    for byte in varint(number):
        value |= (byte & 0x7F) << shift
        shift += 7
    assert value == number
