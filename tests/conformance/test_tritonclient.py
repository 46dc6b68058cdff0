"""An unmodified tritonclient against the mesh: sync, async and streams, models, statistics and the repository."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.fixtures.mesh import MODELS, Process, mesh_up

SUM = np.arange(1, 17, dtype=np.int32).reshape(1, 16)
DIFFERENCE = np.arange(-1, 15, dtype=np.int32).reshape(1, 16)


@pytest.fixture(scope="module")
def mesh() -> Iterator[Process]:
    with mesh_up(MODELS / "triton-examples", MODELS / "triton-decoupled", nodes=2) as process:
        yield process


@pytest.fixture
def client(mesh: Process) -> Iterator[Any]:
    with triton.InferenceServerClient(mesh.grpc) as client:
        yield client


def pair(module: Any = triton, dtype: str = "INT32") -> list[Any]:
    """Return the two inputs of the simple models: 0 to 15, and ones."""
    values = [np.arange(16, dtype=np.int32).reshape(1, 16), np.ones((1, 16), dtype=np.int32)]
    inputs = []
    for index, value in enumerate(values):
        given = value
        if dtype == "BYTES":
            given = np.array([str(item).encode() for item in value.ravel()], dtype=object).reshape(1, 16)
        elif dtype == "INT8":
            given = value.astype(np.int8)
        inputs.append(module.InferInput(f"INPUT{index}", [1, 16], dtype))
        inputs[-1].set_data_from_numpy(given)
    return inputs


class Stream:
    """A tritonclient stream whose callbacks end in a queue."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._answers: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def __enter__(self) -> Self:
        self._client.start_stream(callback=lambda result, error: self._answers.put((result, error)))
        return self

    def __exit__(self, *_: object) -> None:
        self._client.stop_stream()

    def next(self) -> tuple[Any, Any]:
        return self._answers.get(timeout=60)


@pytest.mark.parametrize(("model", "dtype"), [("simple", "INT32"), ("simple_int8", "INT8"), ("simple_string", "BYTES")])
def test_infer_adds_and_subtracts(client: Any, model: str, dtype: str) -> None:
    result = client.infer(model, pair(dtype=dtype), request_id="a")
    assert result.as_numpy("OUTPUT0").astype(np.int32).tolist() == SUM.tolist()
    assert result.as_numpy("OUTPUT1").astype(np.int32).tolist() == DIFFERENCE.tolist()
    assert result.get_response().id == "a"


def test_only_the_requested_output_comes_back(client: Any) -> None:
    result = client.infer("simple", pair(), outputs=[triton.InferRequestedOutput("OUTPUT1")])
    assert [output.name for output in result.get_response().outputs] == ["OUTPUT1"]


def test_bytes_keep_embedded_nulls(client: Any) -> None:
    value = np.array([b"he\0llo", b"\0\1\2\3"], dtype=object).reshape(1, 2)
    given = triton.InferInput("INPUT0", [1, 2], "BYTES")
    given.set_data_from_numpy(value)
    assert client.infer("simple_identity", [given]).as_numpy("OUTPUT0").tolist() == value.tolist()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_answered(client: Any, algorithm: str) -> None:
    result = client.infer("simple", pair(), compression_algorithm=algorithm)
    assert result.as_numpy("OUTPUT0").tolist() == SUM.tolist()


def test_async_infer_calls_back(client: Any) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    for _ in range(5):
        client.async_infer("simple", pair(), callback=lambda result, error: answers.put((result, error)))
    for _ in range(5):
        result, error = answers.get(timeout=60)
        assert error is None
        assert result.as_numpy("OUTPUT0").tolist() == SUM.tolist()


async def test_the_aio_client_infers_and_streams(mesh: Process) -> None:
    async with triton_aio.InferenceServerClient(mesh.grpc) as client:
        results = await asyncio.gather(*(client.infer("simple", pair(triton_aio)) for _ in range(4)))
        assert all(result.as_numpy("OUTPUT0").tolist() == SUM.tolist() for result in results)

        async def requests() -> Any:
            for index in range(3):
                yield {"model_name": "simple", "inputs": pair(triton_aio), "request_id": str(index)}

        ids = [result.get_response().id async for result, error in client.stream_infer(requests()) if error is None]
        assert ids == ["0", "1", "2"]


def test_metadata_config_and_readiness(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("simple")
    assert not client.is_model_ready("nothing")
    metadata = client.get_model_metadata("simple")
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [
        ("INPUT0", "INT32", [-1, 16]),
        ("INPUT1", "INT32", [-1, 16]),
    ]
    config = client.get_model_config("simple").config
    assert (config.name, config.max_batch_size, list(config.input[0].dims)) == ("simple", 8, [16])
    with pytest.raises(InferenceServerException, match="Request for unknown model"):
        client.get_model_metadata("nothing")


def test_statistics_grow_with_each_inference(client: Any) -> None:
    client.infer("simple", pair())
    before = client.get_inference_statistics("simple").model_stats[0]
    client.infer("simple", pair())
    after = client.get_inference_statistics("simple").model_stats[0]
    assert after.inference_count == before.inference_count + 1
    assert after.inference_stats.success.count == before.inference_stats.success.count + 1
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert after.batch_stats[0].batch_size == 1


def test_the_repository_lists_loads_and_unloads(client: Any) -> None:
    names = {each.name for each in client.get_model_repository_index().models}
    assert {"simple", "densenet_onnx", "repeat_int32"} <= names
    client.load_model("densenet_onnx")
    assert client.is_model_ready("densenet_onnx")
    client.unload_model("densenet_onnx")
    assert not client.is_model_ready("densenet_onnx")
    index = {each.name: (each.state, each.reason) for each in client.get_model_repository_index().models}
    assert index["densenet_onnx"] == ("UNAVAILABLE", "unloaded")
    with pytest.raises(InferenceServerException, match="failed to load 'nothing'"):
        client.load_model("nothing")
    client.load_model("densenet_onnx")
    assert client.is_model_ready("densenet_onnx")


def test_a_load_may_override_the_batch_size_until_the_next_load(client: Any) -> None:
    client.load_model("simple_int8", config='{"max_batch_size": "16"}')
    assert client.get_model_config("simple_int8").config.max_batch_size == 16
    assert client.infer("simple_int8", pair(dtype="INT8")).as_numpy("OUTPUT0").shape == (1, 16)
    client.load_model("simple_int8")
    assert client.get_model_config("simple_int8").config.max_batch_size == 8
    with pytest.raises(InferenceServerException, match="failed to load 'simple_int8'"):
        client.load_model("simple_int8", config='"parameters": {{')
    with pytest.raises(InferenceServerException, match="Invalid file path"):
        client.load_model("simple_int8", config="{}", files={"file:" + "A" * 256: b"a"})


def test_a_stream_answers_in_order_and_an_error_leaves_it_open(client: Any) -> None:
    with Stream(client) as stream:
        for index, model in enumerate(["simple", "nothing", "simple"]):
            client.async_stream_infer(model, pair(), request_id=str(index))
        first, error = stream.next()
        assert (first.get_response().id, error) == ("0", None)
        assert first.get_response().parameters["triton_final_response"].bool_param
        result, error = stream.next()
        assert result is None
        assert "[request id: 1] Request for unknown model: 'nothing' is not found" in str(error)
        last, error = stream.next()
        assert (last.get_response().id, error) == ("2", None)


@pytest.mark.parametrize("empty", [False, True])
def test_a_decoupled_model_answers_as_often_as_it_likes(client: Any, empty: bool) -> None:
    values = np.array([5, 6, 7], dtype=np.int32)
    inputs = [
        triton.InferInput("IN", [3], "INT32"),
        triton.InferInput("DELAY", [3], "UINT32"),
        triton.InferInput("WAIT", [1], "UINT32"),
    ]
    inputs[0].set_data_from_numpy(values)
    inputs[1].set_data_from_numpy(np.ones(3, dtype=np.uint32))
    inputs[2].set_data_from_numpy(np.zeros(1, dtype=np.uint32))
    with Stream(client) as stream:
        client.async_stream_infer("repeat_int32", inputs, enable_empty_final_response=empty)
        answers = [stream.next() for _ in range(4 if empty else 3)]
    assert [error for _, error in answers] == [None] * len(answers)
    assert [int(result.as_numpy("OUT")[0]) for result, _ in answers[:3]] == [5, 6, 7]
    finals = [result.get_response().parameters["triton_final_response"].bool_param for result, _ in answers]
    assert finals == [False, False, False, True][: len(answers)]


def test_a_decoupled_model_is_not_answered_by_a_single_call(client: Any) -> None:
    given = triton.InferInput("IN", [1], "INT32")
    given.set_data_from_numpy(np.zeros(1, dtype=np.int32))
    with pytest.raises(InferenceServerException, match="doesn't support models with decoupled transaction policy"):
        client.infer("repeat_int32", [given])


def test_two_sequences_share_a_stream_and_keep_their_own_sums(client: Any) -> None:
    def send(sequence: int, value: int, *, start: bool, end: bool) -> None:
        given = triton.InferInput("INPUT", [1, 1], "INT32")
        given.set_data_from_numpy(np.array([[value]], dtype=np.int32))
        client.async_stream_infer(
            "simple_string_dyna_sequence",
            [given],
            request_id=f"{sequence}",
            sequence_id=str(sequence),
            sequence_start=start,
            sequence_end=end,
        )

    values = [1, 2, 3, 4, 5]
    with Stream(client) as stream:
        for index, value in enumerate(values):
            for sequence in (71, 72):
                send(sequence, value, start=index == 0, end=index == len(values) - 1)
        sums: dict[str, list[int]] = {}
        for _ in range(2 * len(values)):
            result, error = stream.next()
            assert error is None
            sums.setdefault(result.get_response().id, []).append(int(result.as_numpy("OUTPUT").ravel()[0]))
    assert sums == {"71": [1, 3, 6, 10, 15 + 71], "72": [1, 3, 6, 10, 15 + 72]}


def test_classification_gives_the_top_classes(client: Any) -> None:
    image = triton.InferInput("data_0", [3, 224, 224], "FP32")
    image.set_data_from_numpy(np.random.default_rng(1).random((3, 224, 224), dtype=np.float32))
    whole = client.infer("densenet_onnx", [image]).as_numpy("fc6_1")
    top = client.infer("densenet_onnx", [image], outputs=[triton.InferRequestedOutput("fc6_1", class_count=3)])
    best = np.argsort(-whole, kind="stable")[:3]
    assert [int(text.decode().split(":")[1]) for text in top.as_numpy("fc6_1")] == best.tolist()


def test_a_client_timeout_is_a_deadline(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="DEADLINE_EXCEEDED"):
        client.infer("simple", pair(), client_timeout=0.000_001)
