"""Streams at their edges, sync and async, against a plain gRPC server: what ends them, and what is left behind."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from mesh_client import (
    AsyncClient,
    AsyncStream,
    Cancelled,
    Client,
    Code,
    DeadlineExceeded,
    MeshClientError,
    Stream,
    StreamError,
    Unavailable,
    _transport_sync,
)
from tests.client.conftest import Echo, serving
from tests.fixtures.mesh import until

ROW = np.zeros((1, 4), dtype=np.float32)
BIG = np.zeros(1 << 16, dtype=np.float32)


def feeding() -> int:
    """Return how many threads feed a stream."""
    code = _transport_sync._feed.__code__
    frames = [each for top in sys._current_frames().values() for each, _ in traceback.walk_stack(top)]
    return sum(each.f_code is code for each in frames)


@contextmanager
def no_thread_left() -> Iterator[None]:
    """Fail when a stream's feeding thread outlives the block."""
    yield
    until(lambda: feeding() == 0, what="the feeding threads have ended")


def test_a_stream_in_use_has_one_feeding_thread(echo: Echo) -> None:
    with no_thread_left(), Client(echo.address) as client, client.stream(timeout_s=60) as stream:
        stream.infer("m", {"x": ROW})
        until(lambda: feeding() == 1, what="the thread waits for the next request")


def test_a_failed_request_leaves_the_stream_usable(echo: Echo) -> None:
    with Client(echo.address) as client, client.stream(timeout_s=60) as stream:
        with pytest.raises(StreamError) as caught:
            stream.infer("fail", {"x": ROW})
        assert (caught.value.id, caught.value.code) == ("mesh-1", Code.NOT_FOUND)
        assert stream.infer("m", {"x": ROW}).id == "mesh-2"


def test_sending_after_half_close_is_told(echo: Echo) -> None:
    with no_thread_left(), Client(echo.address) as client, client.stream(timeout_s=60) as stream:
        stream.send("m", {"x": ROW})
        stream.half_close()
        stream.half_close()
        with pytest.raises(MeshClientError, match="was half-closed") as caught:
            stream.send("m", {"x": ROW})
        assert caught.value.code is Code.FAILED_PRECONDITION
        assert [each.id for each in stream] == ["mesh-1"]
        assert stream.receive() is None


async def test_async_sending_after_half_close_is_told(echo: Echo) -> None:
    async with AsyncClient(echo.address) as client, client.stream(timeout_s=60) as stream:
        await stream.send("m", {"x": ROW})
        await stream.half_close()
        await stream.half_close()
        with pytest.raises(MeshClientError, match="was half-closed"):
            await stream.send("m", {"x": ROW})
        assert [each.id async for each in stream] == ["mesh-1"]
        assert await stream.receive() is None


async def test_half_closing_at_once_is_an_empty_stream(echo: Echo) -> None:
    async with AsyncClient(echo.address) as client, client.stream(timeout_s=60) as stream:
        await stream.half_close()
        assert await stream.receive() is None


def test_the_reason_of_an_end_is_told_by_receive_and_send_alike(echo: Echo) -> None:
    with no_thread_left(), Client(echo.address) as client, client.stream(timeout_s=60) as stream:
        with pytest.raises(Unavailable, match="going away"):
            stream.infer("die", {"x": ROW})
        with pytest.raises(Unavailable, match="going away"):
            stream.send("m", {"x": ROW})
        with pytest.raises(Unavailable, match="going away"):
            stream.receive()


async def test_the_reason_of_an_end_is_told_by_async_receive_and_send_alike(echo: Echo) -> None:
    async with AsyncClient(echo.address) as client, client.stream(timeout_s=60) as stream:
        with pytest.raises(Unavailable, match="going away"):
            await stream.infer("die", {"x": ROW})
        with pytest.raises(Unavailable, match="going away"):
            await stream.send("m", {"x": ROW})
        with pytest.raises(Unavailable, match="going away"):
            await stream.receive()


async def test_a_stream_that_the_server_ended_well_is_over(echo: Echo) -> None:
    with Client(echo.address) as client, client.stream(timeout_s=60) as stream:
        stream.send("finish", {"x": ROW})
        assert stream.receive() is None
        with pytest.raises(MeshClientError, match="is over: open another"):
            stream.send("m", {"x": ROW})
    async with AsyncClient(echo.address) as other, other.stream(timeout_s=60) as two:
        await two.send("finish", {"x": ROW})
        assert await two.receive() is None
        with pytest.raises(MeshClientError, match="is over: open another"):
            await two.send("m", {"x": ROW})


async def test_nobody_there_says_what_to_do() -> None:
    with (
        Client("127.0.0.1:1") as client,
        client.stream(timeout_s=60) as stream,
        pytest.raises(Unavailable, match="`mesh up`"),
    ):
        stream.infer("m", {"x": ROW})
    async with AsyncClient("127.0.0.1:1") as other, other.stream(timeout_s=60) as two:
        with pytest.raises(Unavailable, match="`mesh up`"):
            await two.infer("m", {"x": ROW})


async def test_the_timeout_of_a_stream_ends_it(echo: Echo) -> None:
    with Client(echo.address) as client, client.stream(timeout_s=0.3) as stream, pytest.raises(DeadlineExceeded):
        stream.infer("silent", {"x": ROW})
    async with AsyncClient(echo.address) as other, other.stream(timeout_s=0.3) as two:
        with pytest.raises(DeadlineExceeded):
            await two.infer("silent", {"x": ROW})


def test_leaving_while_the_server_is_silent_ends_it_there_and_here(echo: Echo) -> None:
    with no_thread_left(), Client(echo.address) as client:
        with client.stream() as stream:
            stream.send("silent", {"x": ROW})
            assert echo.waiting.wait(60)
        assert echo.ended.wait(60)
        with pytest.raises(Cancelled, match="was left or cancelled"):
            stream.receive()
        with pytest.raises(Cancelled, match="was left or cancelled"):
            stream.send("m", {"x": ROW})


def test_a_full_stream_that_is_left_lets_its_sender_go(echo: Echo) -> None:
    ended: list[MeshClientError] = []

    def send(stream: Stream) -> None:
        try:
            while True:
                stream.send("m", {"x": BIG})
        except MeshClientError as error:
            ended.append(error)

    with no_thread_left(), Client(echo.address) as client:
        with client.stream() as stream:
            stream.send("silent", {"x": ROW})
            sender = threading.Thread(target=send, args=(stream,))
            sender.start()
            assert echo.waiting.wait(60)
        sender.join(60)
        assert not sender.is_alive()
    assert [type(each) for each in ended] == [Cancelled]


def test_a_stream_without_a_context_that_the_server_ends_leaves_no_thread(echo: Echo) -> None:
    with Client(echo.address) as client, no_thread_left():
        stream = client.stream(timeout_s=60)
        with pytest.raises(Unavailable):
            stream.infer("die", {"x": ROW})


def test_closing_the_client_ends_its_streams(echo: Echo) -> None:
    with no_thread_left():
        client = Client(echo.address)
        stream = client.stream()
        stream.infer("m", {"x": ROW})
        client.close()
        with pytest.raises(Cancelled):
            stream.receive()


async def test_closing_the_async_client_is_no_cancellation_of_who_receives(echo: Echo) -> None:
    client = AsyncClient(echo.address)
    stream = client.stream()
    await stream.send("silent", {"x": ROW})
    receiving = asyncio.create_task(stream.receive())
    assert await asyncio.to_thread(echo.waiting.wait, 60)
    await client.close()
    with pytest.raises(Cancelled):
        await receiving


async def send_until_full(stream: AsyncStream) -> None:
    while True:
        await stream.send("m", {"x": BIG})


async def receive(stream: AsyncStream) -> None:
    await stream.receive()


async def infer(stream: AsyncStream) -> None:
    await stream.infer("m", {"x": ROW})


@pytest.mark.parametrize("waiting", [send_until_full, receive, infer])
async def test_cancelled_while_waiting_gives_the_stream_up(
    echo: Echo, waiting: Callable[[AsyncStream], Awaitable[None]]
) -> None:
    async with AsyncClient(echo.address) as client:
        async with client.stream() as stream:
            await stream.send("silent", {"x": ROW})
            task = asyncio.ensure_future(waiting(stream))
            assert await asyncio.to_thread(echo.waiting.wait, 60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(echo.ended.wait, 60)
            for method in (stream.receive(), stream.send("m", {"x": ROW})):
                with pytest.raises(Cancelled, match="was left or cancelled"):
                    await method
        assert (await client.infer("m", {"x": ROW}, timeout_s=60)).model_name == "m"


async def test_leaving_while_it_still_connects_lets_a_sender_go() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(1)
        async with AsyncClient(f"127.0.0.1:{deaf.getsockname()[1]}") as client:
            async with client.stream() as stream:
                sending = asyncio.create_task(stream.send("m", {"x": ROW}))
                connection, _ = await asyncio.to_thread(deaf.accept)
            with connection, pytest.raises(Cancelled):
                await sending


async def test_the_server_gone_in_mid_stream_is_told() -> None:
    with serving() as echo:
        client = Client(echo.address)
        stream = client.stream(timeout_s=60)
        stream.infer("m", {"x": ROW})
        other = AsyncClient(echo.address)
        two = other.stream(timeout_s=60)
        await two.infer("m", {"x": ROW})
    with client, stream, pytest.raises(MeshClientError):
        stream.infer("m", {"x": ROW})
    async with other, two:
        with pytest.raises(MeshClientError):
            await two.infer("m", {"x": ROW})
