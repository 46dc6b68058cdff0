"""grpcio's Python client against a router: large tensors, many streams, compressed requests, a client's sudden end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from mesh.api import service
from mesh.api.messages import ModelInferRequest, ModelStreamInferResponse
from mesh.wire.transport import MODEL_STREAM_INFER
from tests.fixtures import doomed_client, raw
from tests.fixtures.mesh import ROOT, Process, mesh_up, until
from tests.fixtures.repositories import add_echo, add_gate, add_patient
from tests.fixtures.scrape import value

LARGE = np.arange(5_000_000, dtype=np.float32)
"""20 MB."""


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model `gate`; a file `open` in it lets its calls go on."""
    return tmp_path_factory.mktemp("gate") / "gate"


@pytest.fixture(scope="module")
def mesh(gate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    repository = tmp_path_factory.mktemp("models")
    add_patient(repository)
    add_echo(repository)
    add_gate(repository, gate)
    with mesh_up(repository, nodes=2) as process:
        yield process
        (gate / "open").touch()


@pytest.fixture
def channel(mesh: Process) -> Iterator[grpc.Channel]:
    with raw.channel_to(mesh.grpc) as channel:
        yield channel


def echo(values: np.ndarray, **fields: str) -> ModelInferRequest:
    return raw.request("echo", values.tobytes(), shape=(1, values.size), **fields)


def streams_open(mesh: Process, count: int) -> None:
    """Wait until the router has this many streams open."""
    until(lambda: value(mesh, "mesh_router_streams_open") == count, what=f"the router has {count} streams open")


COMPRESSION = {
    "plain": grpc.Compression.NoCompression,
    "deflate": grpc.Compression.Deflate,
    "gzip": grpc.Compression.Gzip,
}


@pytest.mark.parametrize("compression", COMPRESSION.values(), ids=COMPRESSION)
def test_a_tensor_of_20_mb_comes_back_as_it_went(channel: grpc.Channel, compression: grpc.Compression) -> None:
    answer = raw.infer(channel, echo(LARGE), compression=compression)
    assert answer.raw_output_contents[0] == LARGE.tobytes()


def test_tensors_of_20_mb_go_through_a_stream(channel: grpc.Channel) -> None:
    answers = raw.stream(channel, [echo(LARGE + index, id=str(index)) for index in range(3)])
    assert [each.infer_response.id for each in answers] == ["0", "1", "2"]
    for index, each in enumerate(answers):
        assert each.infer_response.raw_output_contents[0] == (LARGE + index).tobytes()


TENSORS = raw.request("").SerializeToString()
"""The input of an iris request and its contents, without the fields that say what is asked."""


def test_the_name_of_the_model_may_come_behind_the_tensors(channel: grpc.Channel) -> None:
    """Protobuf promises no order of fields, and Go's dynamic messages have a new one each time."""
    asked = ModelInferRequest(model_name="iris", id="a").SerializeToString()
    assert raw.infer_bytes(channel, TENSORS + asked) == raw.infer_bytes(channel, asked + TENSORS)


def test_a_version_behind_the_tensors_is_the_one_that_is_asked_for(channel: grpc.Channel) -> None:
    name, version = (
        each.SerializeToString()
        for each in (ModelInferRequest(model_name="iris"), ModelInferRequest(model_version="7"))
    )
    assert raw.infer_bytes(channel, name + TENSORS)
    # Now the model is loaded: the call takes the way that most calls take.
    with pytest.raises(grpc.RpcError) as caught:
        raw.infer_bytes(channel, name + TENSORS + version)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_stream_that_nobody_reads_does_not_hold_up_its_connection(channel: grpc.Channel) -> None:
    call = service.stream(channel, MODEL_STREAM_INFER, ModelInferRequest, ModelStreamInferResponse)
    unread = call(iter([echo(LARGE, id="first"), echo(LARGE, id="second")]), timeout=100)
    assert next(unread).infer_response.id == "first"
    for _ in range(20):
        raw.infer(channel, raw.request("iris"))
    assert next(unread).infer_response.raw_output_contents[0] == LARGE.tobytes()
    assert list(unread) == []


@pytest.mark.parametrize("compression", COMPRESSION.values(), ids=COMPRESSION)
def test_compressed_messages_of_a_stream_are_read(channel: grpc.Channel, compression: grpc.Compression) -> None:
    values = np.zeros(100_000, dtype=np.float32)
    answers = raw.stream(channel, [echo(values), raw.request("iris"), echo(values + 1)], compression=compression)
    assert [each.error_message for each in answers] == ["", "", ""]
    assert answers[0].infer_response.raw_output_contents[0] == values.tobytes()
    assert answers[2].infer_response.raw_output_contents[0] == (values + 1).tobytes()


async def test_fifty_streams_at_once_each_get_their_own_answers(mesh: Process) -> None:
    streams, messages = 50, 20
    all_open = asyncio.Barrier(streams + 1)
    seen = asyncio.Barrier(streams + 1)

    async def talk(channel: grpc.aio.Channel, name: str) -> list[str]:
        call = service.stream(channel, MODEL_STREAM_INFER, ModelInferRequest, ModelStreamInferResponse)(timeout=100)
        ids = []
        for index in range(messages):
            await call.write(raw.request("iris", id=f"{name} {index}"))
            answer = await call.read()
            assert not answer.error_message
            ids.append(answer.infer_response.id)
            if index == 0:
                await all_open.wait()
                await seen.wait()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF  # type: ignore[attr-defined] # the stubs lack it
        return ids

    async with grpc.aio.insecure_channel(mesh.grpc) as channel, asyncio.TaskGroup() as tasks:
        talks = [tasks.create_task(talk(channel, str(index))) for index in range(streams)]
        await all_open.wait()
        await asyncio.to_thread(streams_open, mesh, streams)
        await seen.wait()
    for index, each in enumerate(talks):
        assert each.result() == [f"{index} {number}" for number in range(messages)]
    await asyncio.to_thread(streams_open, mesh, 0)


def test_a_client_that_is_killed_leaves_no_stream_and_no_call_behind(mesh: Process) -> None:
    cancelled = value(mesh, "mesh_router_requests_total", code="CANCELLED", model="gate")
    command = [sys.executable, "-m", doomed_client.__name__, mesh.grpc]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as client:
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == b"in flight\n"
            streams_open(mesh, doomed_client.STREAMS)
        finally:
            client.kill()
    streams_open(mesh, 0)

    def lost() -> float:
        return value(mesh, "mesh_router_requests_total", code="CANCELLED", model="gate") - cancelled

    until(lambda: lost() == doomed_client.STREAMS + 1, what="the router has cancelled every call in flight")
    with raw.channel_to(mesh.grpc) as channel:
        assert raw.infer(channel, raw.request("iris")).model_name == "iris"
