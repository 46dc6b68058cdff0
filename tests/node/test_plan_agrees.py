"""A request read and answered by a plan, against the long way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.api.messages import InferParameter, InferTensorContents, ModelInferRequest
from mesh.api.raw_places import raws_of
from mesh.api.stream import varint
from mesh.api.tensors import NUMPY, Array
from mesh.core.errors import InvalidRequest
from mesh.core.types import ITEM_BYTES, Dtype, ModelName, ModelVersion, TensorSpec, Version
from mesh.node.answer import encode, wanted_outputs
from mesh.node.plan import MAX_LENGTHS
from mesh.node.plans import MAX_FRONT_BYTES, MAX_PLANS, Plans
from mesh.node.served import Served
from mesh.node.validate import read_inputs

NUMERIC = [dtype for dtype in Dtype if dtype not in {Dtype.BYTES, Dtype.BOOL, Dtype.BF16}]
SHAPES = st.lists(st.integers(0, 5), max_size=3)
LARGE = 3000

Tensor = ModelInferRequest.InferInputTensor
Output = ModelInferRequest.InferRequestedOutputTensor


def served_of(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Served:
    """Return what `plan` and `answer` look at of a copy."""
    model = ModelVersion(ModelName("m"), Version("1"), "onnx", "", "", 0)
    by_name = {spec.name: spec for spec in outputs}
    loaded = SimpleNamespace(inputs=tuple(inputs), outputs=tuple(outputs))
    stand_in = SimpleNamespace(
        model=model, inputs=tuple(inputs), outputs=by_name, labels=(), loaded=loaded, sequences=None
    )
    return cast("Served", stand_in)


@st.composite
def specs(draw: st.DrawFn, prefix: str) -> list[TensorSpec]:
    shapes = draw(st.lists(SHAPES, min_size=1, max_size=3))
    return [
        TensorSpec(f"{prefix}{index}", draw(st.sampled_from(NUMERIC)), tuple(shape))
        for index, shape in enumerate(shapes)
    ]


def filled(spec: TensorSpec, seed: int) -> Array:
    size = int(np.prod(spec.shape, dtype=np.int64)) * ITEM_BYTES[spec.dtype]
    raw = np.random.default_rng(seed).bytes(size)
    return np.frombuffer(raw, NUMPY[spec.dtype]).reshape(spec.shape)


def request_of(inputs: list[TensorSpec], seed: int, **more: Any) -> ModelInferRequest:
    return ModelInferRequest(
        model_name="m",
        inputs=[Tensor(name=spec.name, datatype=spec.dtype.value, shape=spec.shape) for spec in inputs],
        raw_input_contents=[filled(spec, seed + index).tobytes() for index, spec in enumerate(inputs)],
        **more,
    )


def learned(message: bytes, served: Served) -> Plans:
    plans = Plans()
    learn(plans, message, served)
    return plans


def learn(plans: Plans, message: bytes, served: Served) -> None:
    request = ModelInferRequest.FromString(message)
    inputs, rows = read_inputs(request, served.inputs, "m", 0)
    plans.learn(
        message,
        request,
        served,
        wanted=wanted_outputs(request, served),
        inputs=inputs,
        rows=rows,
        raws=raws_of(message, request),
    )


def same(expected: dict[str, Array], actual: dict[str, Array]) -> bool:
    return list(expected) == list(actual) and all(
        (one.dtype, one.shape, one.tobytes()) == (actual[name].dtype, actual[name].shape, actual[name].tobytes())
        for name, one in expected.items()
    )


@settings(deadline=None)
@given(specs("x"), specs("y"), st.integers(0, 1 << 30), st.data())
def test_a_plan_reads_and_answers_as_the_long_way_does(
    inputs: list[TensorSpec], outputs: list[TensorSpec], seed: int, data: st.DataObject
) -> None:
    named = data.draw(st.lists(st.sampled_from(outputs), max_size=3, unique_by=lambda spec: spec.name))
    order = data.draw(st.permutations(inputs))
    served = served_of(inputs, outputs)
    asked = [Output(name=spec.name) for spec in named]
    plans = learned(request_of(order, seed, outputs=asked).SerializeToString(), served)
    other = request_of(order, seed + 100, outputs=asked)
    message = other.SerializeToString()
    plan = plans.find(message)
    assert plan is not None
    arrays = plan.read(message)
    expected, rows = read_inputs(other, served.inputs, "m", 0)
    assert arrays is not None
    assert same(expected, arrays)
    assert rows == plan.rows
    assert sum(array.nbytes for array in expected.values()) == plan.size
    answers = {spec.name: filled(spec, seed) for spec in outputs}
    for answer in (answers, {name: np.asfortranarray(array) for name, array in answers.items()}):
        parts = plan.write(answer)
        assert parts is not None
        assert encode(other, served, answer, plan.wanted).SerializeToString() == b"".join(parts)


BASE = [TensorSpec("a", Dtype.FP32, (-1, 2)), TensorSpec("b", Dtype.INT64, (-1,))]
GIVEN = [TensorSpec("a", Dtype.FP32, (2, 2)), TensorSpec("b", Dtype.INT64, (1,))]
SERVED = served_of(BASE, [TensorSpec("y", Dtype.FP32, (-1,))])
MESSAGE = request_of(GIVEN, 1).SerializeToString()


def check_as_the_long_way(plans: Plans, message: bytes) -> None:
    """Assert that a plan, where one takes `message`, reads what the long way reads."""
    plan = plans.find(message)
    arrays = plan.read(message) if plan is not None else None
    if arrays is None:
        return
    assert plan is not None
    request = ModelInferRequest.FromString(message)
    expected, rows = read_inputs(request, SERVED.inputs, "m", 0)
    assert same(expected, arrays)
    assert (rows, "m") == (plan.rows, request.model_name)


def test_a_request_with_any_one_byte_changed_is_read_as_the_long_way_reads_it_or_not_at_all() -> None:
    plans = learned(MESSAGE, SERVED)
    read = 0
    for at in range(len(MESSAGE)):
        for byte in range(256):
            changed = MESSAGE[:at] + bytes((byte,)) + MESSAGE[at + 1 :]
            check_as_the_long_way(plans, changed)
            plan = plans.find(changed)
            read += plan is not None and plan.read(changed) is not None
    numbers = sum(len(raw) for raw in request_of(GIVEN, 1).raw_input_contents)
    assert numbers * 256 + len(MESSAGE) - numbers == read


@settings(deadline=None)
@given(st.integers(0, len(MESSAGE)), st.integers(0, len(MESSAGE)), st.binary(max_size=30))
def test_a_request_cut_and_filled_anywhere_is_read_as_the_long_way_reads_it_or_not_at_all(
    start: int, stop: int, between: bytes
) -> None:
    check_as_the_long_way(learned(MESSAGE, SERVED), MESSAGE[:start] + between + MESSAGE[stop:])


@given(st.binary(max_size=60))
def test_any_bytes_learned_by_accident_are_read_alike(tail: bytes) -> None:
    plans = Plans()
    message = MESSAGE + tail
    try:
        learn(plans, message, SERVED)
    except (InvalidRequest, DecodeError):
        return
    check_as_the_long_way(plans, message)
    check_as_the_long_way(plans, MESSAGE)


def test_tensors_hidden_in_a_field_that_nobody_knows_are_not_learned_for_the_real_ones() -> None:
    specs = [TensorSpec("t", Dtype.INT8, (3,))]
    served = served_of(specs, [TensorSpec("y", Dtype.FP32, (-1,))])
    request = request_of(specs, 1)
    request.raw_input_contents[0] = b"abc"
    # Field 2 with 8 bytes, which protobuf leaves alone: the last five of them look like the tensor.
    hidden = b"\x11...\x3a\x03"
    plans = learned(request.SerializeToString() + hidden + b"abc", served)
    message = request.SerializeToString() + hidden + b"xyz"
    plan = plans.find(message)
    assert list(ModelInferRequest.FromString(message).raw_input_contents) == [b"abc"]
    assert plan is None or plan.read(message) is None


@pytest.mark.parametrize(
    "request_",
    [
        request_of(GIVEN, 1, id="7"),
        request_of(GIVEN, 1, parameters={"p": InferParameter(bool_param=True)}),
        request_of(GIVEN, 1, outputs=[Output(name="n")]),
        request_of(GIVEN, 1, outputs=[Output(name="y", parameters={"classification": InferParameter(int64_param=1)})]),
        request_of([*GIVEN, TensorSpec("c", Dtype.BOOL, (1,))], 1),
        ModelInferRequest(
            model_name="m",
            inputs=[
                Tensor(name="a", datatype="FP32", shape=[0, 2]),
                Tensor(name="b", datatype="INT64", shape=[1], contents=InferTensorContents(int64_contents=[1])),
            ],
        ),
        request_of(GIVEN, 1, model_version="1" * MAX_FRONT_BYTES),
    ],
    ids=["id", "parameters", "an output of text", "classes", "an input of bools", "typed", "a long front"],
)
def test_what_no_plan_can_read_is_not_learned(request_: ModelInferRequest) -> None:
    served = served_of(
        [*BASE, TensorSpec("c", Dtype.BOOL, (-1,), optional=True)],
        [TensorSpec("y", Dtype.FP32, (-1,)), TensorSpec("n", Dtype.BYTES, (-1,))],
    )
    if not request_.outputs:
        request_.outputs.add(name="y")
    assert learned(request_.SerializeToString(), served).find(request_.SerializeToString()) is None


def test_an_answer_unlike_the_signature_goes_the_long_way() -> None:
    plan = learned(MESSAGE, SERVED).find(MESSAGE)
    assert plan is not None
    bad: list[Any] = [np.zeros(1, np.float64), [1.0], None, np.zeros(1, ">f4")]
    assert [plan.write({"y": each}) for each in bad] == [None] * 4
    assert plan.write({}) is None


def test_a_large_answer_is_a_view_and_equal() -> None:
    plan = learned(MESSAGE, SERVED).find(MESSAGE)
    assert plan is not None
    for array in (np.arange(LARGE, dtype=np.float32), np.arange(2 * LARGE, dtype=np.float32)[::2]):
        parts = plan.write({"y": array})
        assert parts is not None
        request = ModelInferRequest.FromString(MESSAGE)
        assert encode(request, SERVED, {"y": array}, plan.wanted).SerializeToString() == b"".join(parts)


def test_plans_of_many_lengths_and_fronts_stay_bounded_and_right() -> None:
    plans = Plans()
    for number in range(MAX_PLANS + 10):
        version = str(number) + "x" * (number % (MAX_LENGTHS + 4))
        message = request_of(GIVEN, number, model_version=version).SerializeToString()
        learn(plans, message, SERVED)
        check_as_the_long_way(plans, message)
        assert len(plans._plans) <= MAX_PLANS
        assert len(plans._lengths) <= MAX_LENGTHS
        assert {len(front) for front in plans._plans} <= set(plans._lengths)


@given(st.integers(0, 1 << 63))
def test_a_varint_is_protobufs(number: int) -> None:
    written = InferParameter(uint64_param=number).SerializeToString()
    assert written[1:] == varint(number)
