"""The async client on the mesh's own HTTP/2 (`transport="wire"`): what it does on grpc.aio, it does here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from mesh_client import (
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    MeshClientError,
    ModelNotFound,
    Unavailable,
)
from tests.fixtures.mesh import MODELS, Process, free_port, mesh_up


@pytest.fixture(scope="module")
def mesh() -> Iterator[Process]:
    with mesh_up(MODELS / "triton-examples", MODELS / "triton-decoupled") as process:
        yield process


PAIR = {
    "INPUT0": np.arange(16, dtype=np.int32).reshape(1, 16),
    "INPUT1": np.ones((1, 16), dtype=np.int32),
}


async def test_calls_and_metadata_are_answered(mesh: Process) -> None:
    async with AsyncClient(mesh.grpc, timeout_s=60, transport="wire") as client:
        assert await client.server_ready()
        answer = await client.infer("simple", PAIR)
        np.testing.assert_array_equal(answer["OUTPUT0"], PAIR["INPUT0"] + PAIR["INPUT1"])
        assert (await client.model_metadata("simple")).name == "simple"


async def test_many_calls_at_once_get_their_own_answers(mesh: Process) -> None:
    async with AsyncClient(mesh.grpc, timeout_s=60, transport="wire") as client:

        async def one(number: int) -> int:
            given = {"INPUT0": np.full((1, 16), number, np.int32), "INPUT1": np.zeros((1, 16), np.int32)}
            return int((await client.infer("simple", given))["OUTPUT0"][0, 0])

        assert await asyncio.gather(*(one(number) for number in range(300))) == list(range(300))


async def test_a_stream_answers_in_order(mesh: Process) -> None:
    async with AsyncClient(mesh.grpc, timeout_s=60, transport="wire") as client, client.stream() as stream:
        for number in range(200):
            await stream.send("simple", PAIR, id=str(number))
        await stream.half_close()
        assert [answer.id async for answer in stream] == [str(number) for number in range(200)]


async def test_a_model_with_several_responses_streams_them(mesh: Process) -> None:
    given = {
        "IN": np.arange(4, dtype=np.int32),
        "DELAY": np.zeros(4, dtype=np.uint32),
        "WAIT": np.zeros(1, dtype=np.uint32),
    }
    async with AsyncClient(mesh.grpc, timeout_s=60, transport="wire") as client, client.stream() as stream:
        await stream.send("repeat_int32", given)
        await stream.half_close()
        assert [int(answer["OUT"][0]) async for answer in stream] == [0, 1, 2, 3]


async def test_errors_are_the_client_s_own(mesh: Process) -> None:
    async with AsyncClient(mesh.grpc, timeout_s=60, transport="wire") as client:
        with pytest.raises(ModelNotFound, match="nobody"):
            await client.infer("nobody", PAIR)
        with pytest.raises(DeadlineExceeded):
            await client.infer("simple", PAIR, timeout_s=0.000001)


async def test_nobody_at_the_address_is_said_so() -> None:
    async with AsyncClient(f"127.0.0.1:{free_port()}", transport="wire") as client:
        with pytest.raises(Unavailable, match="no mesh answers at"):
            await client.infer("simple", PAIR)


async def test_a_closed_client_says_so(mesh: Process) -> None:
    client = AsyncClient(mesh.grpc, transport="wire")
    await client.close()
    with pytest.raises(Cancelled, match="was closed"):
        await client.infer("simple", PAIR)


async def test_a_stream_that_was_half_closed_takes_nothing_more(mesh: Process) -> None:
    async with AsyncClient(mesh.grpc, timeout_s=60, transport="wire") as client, client.stream() as stream:
        await stream.half_close()
        with pytest.raises(MeshClientError, match="half-closed"):
            await stream.send("simple", PAIR)


def test_unknown_transports_are_refused() -> None:
    with pytest.raises(ValueError, match="'grpcio' or 'wire'"):
        AsyncClient(transport="pigeon")
    with pytest.raises(ValueError, match="only AsyncClient"):
        Client(transport="wire")
