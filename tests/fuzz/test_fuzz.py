from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.api.messages import ModelInferRequest
from tests.fuzz.targets import TARGETS

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
