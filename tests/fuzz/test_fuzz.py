from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.api.messages import ModelInferRequest
from tests.fuzz import seeds
from tests.fuzz.targets import TARGETS
from tests.fuzz.wire_targets import WIRE_TARGETS

REAL = ModelInferRequest(
    model_name="m",
    model_version="1",
    inputs=[ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 2])],
    raw_input_contents=[b"\0" * 8],
).SerializeToString()


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes(name: str, data: bytes) -> None:
    TARGETS[name](data)


@pytest.mark.parametrize("target", [TARGETS["peek"], TARGETS["request"]], ids=["peek", "request"])
@settings(max_examples=500, deadline=None)
@given(
    at=st.integers(0, len(REAL) - 1),
    byte=st.integers(0, 255),
    cut=st.integers(0, len(REAL)),
    tail=st.binary(max_size=8),
)
def test_a_real_request_with_a_changed_byte_cut_and_continued(
    target: Callable[[bytes], None], at: int, byte: int, cut: int, tail: bytes
) -> None:
    mutated = bytearray(REAL)
    mutated[at] = byte
    target(bytes(mutated[:cut]) + tail)


@pytest.mark.parametrize("name", WIRE_TARGETS)
def test_real_bytes(name: str) -> None:
    for seed in seeds.of(name):
        TARGETS[name](seed)


@pytest.mark.parametrize("name", WIRE_TARGETS)
@settings(max_examples=100, deadline=None)
@given(data=st.data(), step=st.integers(0, 9))
def test_real_bytes_changed_cut_and_put_together(name: str, data: st.DataObject, step: int) -> None:
    mutated = bytearray()
    for _ in range(data.draw(st.integers(1, 3))):
        seed = data.draw(st.sampled_from(seeds.of(name)))
        start = data.draw(st.integers(0, len(seed))) if mutated else 0
        mutated += seed[start : data.draw(st.integers(start, len(seed)))]
    for _ in range(data.draw(st.integers(0, 4))):
        if mutated:
            mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    if mutated:
        mutated[0] = step
    TARGETS[name](bytes(mutated))
