from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.api.messages import ModelInferRequest
from mesh.wire.heads import ANSWER, OK_TRAILERS
from tests.fuzz.targets import TARGETS
from tests.wire.test_connection import Pair

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


def conversation() -> tuple[bytes, bytes]:
    """Return what a client and a server of ours say to each other over two calls: greeting, headers, data, trailers."""
    pair = Pair()
    said: dict[bool, bytearray] = {True: bytearray(), False: bytearray()}
    calls = [pair.call(body) for body in (b"\0\0\0\0\2hi", bytes(70_000))]
    for _ in range(4):
        for here, there in ((pair.client, pair.server), (pair.server, pair.client)):
            data, here.out = b"".join(here.out), []
            here.make_room(1 << 20)
            said[here.is_client] += data
            there.receive(data, 0.0)
        for stream, _answer in calls:
            if pair.accepted[stream.id].ended and stream.id in pair.server.streams:
                pair.server.answer(pair.streams[stream.id], ANSWER, b"\0\0\0\0\2ok", OK_TRAILERS)
    return bytes(said[True]), bytes(said[False])


QUESTIONS, ANSWERS = conversation()
CAPTURES = {"server_connection": QUESTIONS, "client_connection": ANSWERS}


@pytest.mark.parametrize("name", CAPTURES)
@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=4)), max_size=4),
    sizes=st.binary(min_size=2, max_size=2),
)
def test_a_real_conversation_with_changed_bytes(name: str, changes: list[tuple[int, bytes]], sizes: bytes) -> None:
    mutated = bytearray(CAPTURES[name])
    for at, put in changes:
        mutated[at % len(mutated) : at % len(mutated) + len(put)] = put
    TARGETS[name](b"\0" + sizes + bytes(mutated))
