"""The SDK against a real mesh, sync and async."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mesh_client import (
    AsyncClient,
    Cancelled,
    Client,
    Code,
    DeadlineExceeded,
    InvalidInput,
    MeshClientError,
    ModelNotFound,
    StreamError,
    Tensor,
    Unavailable,
)
from tests.fixtures.mesh import MODELS, Process, mesh_up

ROW = np.array([[5.1, 3.5, 1.4, 0.2]], dtype=np.float32)

ECHO_YAML = """\
runtime: python
inputs: [{name: x, dtype: DTYPE, shape: [-1, -1]}]
outputs: [{name: y, dtype: DTYPE, shape: [-1, -1]}]
"""
ECHO = """\
import time

class Model:
    def infer(self, inputs, request):
        time.sleep(float(request.parameters.get("sleep_s", 0)))
        return {"y": inputs["x"]}
"""
DTYPES = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "BF16", "BYTES"),
)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("echo")
    for dtype in DTYPES:
        version = folder / f"echo_{dtype}" / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(ECHO)
        (version.parent / "model.yaml").write_text(ECHO_YAML.replace("DTYPE", dtype))
    with mesh_up(MODELS / "demo", folder) as process:
        yield process


@pytest.fixture
def client(mesh: Process) -> Iterator[Client]:
    with Client(mesh.grpc, timeout_s=60) as client:
        yield client


def example(dtype: str) -> Any:
    if dtype == "BYTES":
        return np.array([[b"a\0b", "é".encode()], [b"", b"\xff"]], dtype=object)
    numpy = {"BOOL": "?", "FP16": "f2", "FP32": "f4", "FP64": "f8", "BF16": "f4"}.get(dtype)
    return np.array([[0, 1, 2], [3, 4, 5]]).astype(numpy or dtype.lower())


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_comes_back_as_it_went(client: Client, dtype: str) -> None:
    array = example(dtype)
    given = Tensor(array, "BF16") if dtype == "BF16" else array
    back = client.infer(f"echo_{dtype}", {"x": given})["y"]
    assert back.dtype == array.dtype
    assert back.tolist() == array.tolist()


def test_a_result_is_a_mapping_with_names_and_an_id(client: Client) -> None:
    result = client.infer("iris", {"x": ROW}, id="7")
    assert (result.model_name, result.model_version, result.id) == ("iris", "1", "7")
    assert list(result) == ["label", "probabilities"]
    with pytest.raises(KeyError, match="no output 'z'; there are label, probabilities"):
        result["z"]


def test_only_the_named_outputs_come_back(client: Client) -> None:
    assert list(client.infer("iris", {"x": ROW}, outputs=["label"])) == ["label"]


def test_what_cannot_be_sent_is_told_before_it_is_sent(client: Client) -> None:
    with pytest.raises(InvalidInput, match="input 'x' must be a numpy array, got list"):
        client.infer("iris", {"x": [1.0]})  # type: ignore[dict-item] # the mistake under test
    with pytest.raises(InvalidInput, match="outputs must be a list of names"):
        client.infer("iris", {"x": ROW}, outputs="label")
    with pytest.raises(InvalidInput, match="parameter 'p' must be a bool, 64-bit int, float or str"):
        client.infer("iris", {"x": ROW}, parameters={"p": 1 << 70})
    with pytest.raises(InvalidInput, match="input 'x': "):
        client.infer("iris", {"x": ROW.astype(complex)})


def test_errors_have_a_class_a_code_and_a_sentence(client: Client) -> None:
    with pytest.raises(ModelNotFound, match="Request for unknown model: 'nothing' is not found") as caught:
        client.infer("nothing", {"x": ROW})
    assert caught.value.code is Code.NOT_FOUND
    with pytest.raises(InvalidInput, match="data-type is 'FP64', but model 'iris' expects 'FP32'"):
        client.infer("iris", {"x": ROW.astype(np.float64)})
    with pytest.raises(DeadlineExceeded):
        client.infer("echo_FP32", {"x": ROW}, parameters={"sleep_s": 5.0}, timeout_s=0.5)


def test_nobody_there_says_what_to_do() -> None:
    with (
        Client("127.0.0.1:1") as client,
        pytest.raises(Unavailable, match=r"no mesh answers at 127\.0\.0\.1:1: start one"),
    ):
        client.infer("iris", {"x": ROW}, timeout_s=30)


def test_a_closed_client_says_so(mesh: Process) -> None:
    client = Client(mesh.grpc)
    client.close()
    with pytest.raises(Cancelled, match="was closed"):
        client.server_live()


async def test_closing_under_a_call_is_no_cancellation_of_the_caller(mesh: Process) -> None:
    client = AsyncClient(mesh.grpc)
    call = asyncio.create_task(client.infer("echo_FP32", {"x": ROW}, parameters={"sleep_s": 1.0}))
    while not call.done() and (await outstanding(mesh)) == 0:
        pass
    await client.close()
    with pytest.raises(Cancelled, match="was closed"):
        await call


async def outstanding(mesh: Process) -> int:
    """Return the requests in flight on the mesh's node."""
    from mesh.api import service
    from mesh.api.messages import node_control
    from tests.fixtures import raw

    def ask() -> int:
        with raw.channel_to(mesh.ready["nodes"][0]["grpc"]) as channel:
            describe = service.unary(
                channel, "/mesh.v1.NodeControl/Describe", node_control.DescribeRequest, node_control.DescribeResponse
            )
            return int(describe(node_control.DescribeRequest(), timeout=60).outstanding)

    return await asyncio.to_thread(ask)


def test_describing_the_mesh(client: Client) -> None:
    assert client.server_live()
    assert client.server_ready()
    assert client.server_metadata().name == "mesh"
    assert client.model_ready("iris")
    assert not client.model_ready("nothing")
    assert client.health()
    assert client.health("iris")
    assert not client.health("nothing")
    assert [each.name for each in client.model_metadata("iris").inputs] == ["x"]
    assert client.model_config("iris").name == "iris"
    client.infer("iris", {"x": ROW})
    assert client.model_statistics("iris").model_stats[0].inference_count >= 1
    assert "iris" in {each.name for each in client.repository_index(ready=True)}
    (node,) = client.nodes()
    (model,) = client.models("iris")
    assert [(copy.node, copy.state) for copy in model.copies] == [(node.id, "ready")]


def test_loading_and_unloading(client: Client) -> None:
    client.load("diabetes")
    assert client.models("diabetes")[0].state == "ready"
    client.unload("diabetes")
    assert client.models("diabetes")[0].state == "unloaded"
    with pytest.raises(ModelNotFound, match="has no available versions"):
        client.infer("diabetes", {"x": np.zeros((1, 10), dtype=np.float32)})
    client.load("diabetes")
    assert client.infer("diabetes", {"x": np.zeros((1, 10), dtype=np.float32)})["y"].shape == (1, 1)


def test_one_client_serves_many_threads(client: Client) -> None:
    labels: list[int] = []

    def call() -> None:
        labels.extend(int(client.infer("iris", {"x": ROW})["label"][0]) for _ in range(10))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert labels == [0] * 80


def test_a_stream_keeps_order_and_an_error_leaves_it_usable(client: Client) -> None:
    with client.stream() as stream:
        ids = [stream.send("iris", {"x": ROW}) for _ in range(3)]
        bad = stream.send("nothing", {"x": ROW})
        ids.append(stream.send("iris", {"x": ROW}))
        stream.half_close()
        seen = [stream.receive() for _ in range(3)]
        with pytest.raises(StreamError, match="Request for unknown model") as caught:
            stream.receive()
        assert (caught.value.id, caught.value.code) == (bad, Code.NOT_FOUND)
        seen += list(stream)
    assert [each.id for each in seen if each is not None] == ids


def test_a_conversation_answers_one_by_one(client: Client) -> None:
    with client.stream() as stream:
        value = np.zeros((1, 1), dtype=np.float32)
        for _ in range(5):
            value = stream.infer("echo_FP32", {"x": value})["y"] + 1
    assert value.tolist() == [[5.0]]


def test_leaving_a_stream_early_leaves_no_thread_behind(client: Client) -> None:
    before = threading.active_count()
    for _ in range(5):
        with client.stream() as stream:
            stream.send("echo_FP32", {"x": ROW}, parameters={"sleep_s": 0.2})
    deadline = threading.Event()
    for _ in range(600):
        if threading.active_count() <= before + 2:
            return
        deadline.wait(0.05)
    raise AssertionError(f"{threading.active_count() - before} threads more than before")


async def test_the_async_client_does_the_same(mesh: Process) -> None:
    async with AsyncClient(mesh.grpc, timeout_s=60) as client:
        results = await asyncio.gather(*(client.infer("iris", {"x": ROW}) for _ in range(10)))
        assert [int(each["label"][0]) for each in results] == [0] * 10
        async with client.stream() as stream:
            sent = [await stream.send("iris", {"x": ROW}) for _ in range(3)]
            await stream.half_close()
            assert [each.id async for each in stream] == sent
        with pytest.raises(ModelNotFound):
            await client.models("nothing")


async def test_cancelled_while_the_mesh_answers(mesh: Process) -> None:
    async with AsyncClient(mesh.grpc) as client:
        call = asyncio.create_task(client.infer("echo_FP32", {"x": ROW}, parameters={"sleep_s": 0.5}))
        while (await outstanding(mesh)) == 0 and not call.done():
            pass
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await client.server_live()


async def test_the_server_goes_away_in_mid_stream() -> None:
    with mesh_up(MODELS / "demo") as process:
        async with AsyncClient(process.grpc) as client, client.stream() as stream:
            assert (await stream.infer("iris", {"x": ROW}))["label"].tolist() == [0]
            process.stop()
            with pytest.raises(MeshClientError):
                await stream.infer("iris", {"x": ROW})
