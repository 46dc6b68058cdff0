"""Requests and answers with very many texts: right, in order, and nobody else waits for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from mesh.api.messages import InferParameter, ModelInferRequest, ModelInferResponse
from mesh.api.tensors import decode_contents, decode_raw, encode_contents, encode_raw
from mesh.core.types import Dtype
from mesh_client import Client, Pipeline
from tests.fixtures import raw
from tests.fixtures.mesh import Process, mesh_up
from tests.fixtures.repositories import add_echo, add_python

MANY = 1_000_000
LONG = 20_000
"""Texts of a request that is read in a thread."""

COUNTS = """\
    import numpy as np

    class Model:
        def infer(self, inputs):
            return {"n": np.array([len(inputs["t"]), sum(map(len, inputs["t"]))], np.int64)}
"""
COUNTS_YAML = """\
    inputs: [{name: t, dtype: BYTES, shape: [-1]}]
    outputs: [{name: n, dtype: INT64, shape: [2]}]
"""
REPEATS = """\
    class Model:
        def infer(self, inputs):
            return {"u": inputs["t"]}
"""
REPEATS_YAML = """\
    inputs: [{name: t, dtype: BYTES, shape: [-1]}]
    outputs: [{name: u, dtype: BYTES, shape: [-1]}]
"""
KEEPS = """\
    import numpy as np

    class Model:
        def infer(self, inputs, sequences):
            answers = []
            for sequence in sequences:
                seen = sequence.state.get("seen", []) + [sequence.inputs["t"].shape[1]]
                sequence.state["seen"] = seen
                answers.append(seen + [0] * (8 - len(seen)))
            return {"n": np.array(answers, np.int64)}
"""
KEEPS_YAML = """\
    max_batch_size: 4
    sequence: {}
    inputs: [{name: t, dtype: BYTES, shape: [-1, -1]}]
    outputs: [{name: n, dtype: INT64, shape: [-1, 8]}]
"""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    repository: Path = tmp_path_factory.mktemp("repository")
    add_echo(repository)
    add_python(repository, "counts", COUNTS_YAML, COUNTS)
    add_python(repository, "repeats", REPEATS_YAML, REPEATS)
    add_python(repository, "keeps", KEEPS_YAML, KEEPS)
    with mesh_up(repository) as process:
        yield process


def texts(count: int, size: Callable[[int], int] = lambda at: at % 3) -> np.ndarray:
    array = np.empty(count, object)
    array[:] = [b"abcdefgh"[: size(at)] for at in range(count)]
    return array


def request(model: str, array: np.ndarray, *, typed: bool = False, name: str = "t") -> ModelInferRequest:
    if not typed:
        return raw.request(model, encode_raw(array, Dtype.BYTES), name=name, datatype="BYTES", shape=array.shape)
    asked = ModelInferRequest(model_name=model)
    tensor = asked.inputs.add(name=name, datatype="BYTES", shape=array.shape)
    tensor.contents.CopyFrom(encode_contents(array, Dtype.BYTES))
    asked.parameters["mesh_typed_contents"].bool_param = True
    return asked


def said(answer: ModelInferResponse) -> list[bytes]:
    (output,) = answer.outputs
    if answer.raw_output_contents:
        return list(decode_raw(answer.raw_output_contents[0], Dtype.BYTES, output.shape))
    return list(decode_contents(output.contents, Dtype.BYTES, output.shape))


def numbers(answer: ModelInferResponse) -> list[int]:
    found: list[int] = np.frombuffer(answer.raw_output_contents[0], np.int64).tolist()
    return found


def longest_wait(address: str, asked: ModelInferRequest, answers: list[ModelInferResponse]) -> float:
    """Return the longest wait of others while `asked` is answered, as a share of how long that takes."""
    with raw.channel_to(address) as channel, raw.channel_to(address) as other:
        raw.infer(other, raw.request("echo", raw.floats(1, 2, 3, 4)))
        caller = threading.Thread(target=lambda: answers.append(raw.infer(channel, asked)))
        begun_s = last_s = time.monotonic()
        longest_s = 0.0
        caller.start()
        while caller.is_alive():
            raw.infer(other, raw.request("echo", raw.floats(1, 2, 3, 4)))
            now_s = time.monotonic()
            longest_s, last_s = max(longest_s, now_s - last_s), now_s
        caller.join()
    return longest_s / (last_s - begun_s)


@pytest.mark.parametrize("model", ["counts", "repeats"])
def test_nobody_waits_for_a_million_texts(mesh: Process, model: str) -> None:
    array = texts(MANY)
    asked = request(model, array)
    answers: list[ModelInferResponse] = []
    # On the loop, reading and writing are most of it, and nobody gets in between. The machine may stall now and then.
    waits = [longest_wait(mesh.grpc, asked, answers) for _ in range(5)]
    assert min(waits) < 0.25, waits
    if model == "counts":
        assert numbers(answers[0]) == [MANY, sum(map(len, array))]
    else:
        assert said(answers[0]) == array.tolist()


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("count", [0, 1, 100, LONG])
def test_texts_come_back_as_they_went(mesh: Process, count: int, typed: bool) -> None:
    array = texts(count)
    with raw.channel_to(mesh.grpc) as channel:
        assert said(raw.infer(channel, request("repeats", array, typed=typed))) == array.tolist()
        stream = list(raw.stream(channel, [request("repeats", array, typed=typed)] * 3))
    assert [said(each.infer_response) for each in stream] == [array.tolist()] * 3


def test_what_is_wrong_with_a_long_request_is_said_as_of_a_short_one(mesh: Process) -> None:
    found = []
    for count in (10, LONG):
        asked = request("counts", texts(count))
        asked.inputs[0].shape[0] += 1
        with raw.channel_to(mesh.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
            raw.infer(channel, asked)
        details = str(caught.value.details()).replace(str(count), "N").replace(str(count + 1), "M")
        found.append((caught.value.code(), details))
    assert found[0] == found[1]
    assert found[0][0] is grpc.StatusCode.INVALID_ARGUMENT


def test_a_long_step_of_a_sequence_keeps_its_place(mesh: Process) -> None:
    sizes = [1, LONG, 2, 3, LONG + 1, LONG, 4, 5]

    def steps() -> Iterator[ModelInferRequest]:
        for at, size in enumerate(sizes):
            asked = request("keeps", texts(size).reshape(1, -1))
            asked.parameters["sequence_id"].CopyFrom(InferParameter(int64_param=77))
            asked.parameters["sequence_start"].bool_param = at == 0
            asked.parameters["sequence_end"].bool_param = at == len(sizes) - 1
            yield asked

    with raw.channel_to(mesh.grpc) as channel:
        answers = list(raw.stream(channel, list(steps())))
    assert [each.error_message for each in answers] == [""] * len(sizes)
    assert numbers(answers[-1].infer_response) == sizes


def test_long_texts_go_through_a_pipeline(mesh: Process) -> None:
    pipeline = Pipeline("twice")
    first = pipeline.step("first", "repeats", {"t": pipeline.input("t", "BYTES [-1]")})
    pipeline.output("u", pipeline.step("second", "repeats", {"t": first["u"]})["u"])
    with Client(mesh.grpc, timeout_s=60) as client:
        client.apply_pipeline(pipeline)
    for array in (texts(10), texts(LONG)):
        for typed in (False, True):
            with raw.channel_to(mesh.grpc) as channel:
                assert said(raw.infer(channel, request("twice", array, typed=typed))) == array.tolist()


def test_a_caller_who_leaves_while_its_texts_are_read_leaves_nothing_behind(mesh: Process) -> None:
    with raw.channel_to(mesh.grpc) as channel:
        for _ in range(3):
            with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
                raw.infer(channel, request("repeats", texts(MANY)), timeout_s=0.15)
        assert said(raw.infer(channel, request("repeats", texts(3)))) == texts(3).tolist()
    with Client(mesh.grpc, timeout_s=60) as client:
        client.unload("repeats")
        client.load("repeats")
