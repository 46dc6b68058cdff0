from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest

from mesh.wire.stream_order import Answer, Interleaved, Ordered, answer_stream


async def stream_of(*messages: bytes) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


async def collect(responses: AsyncIterator[bytes]) -> list[bytes]:
    return [response async for response in responses]


async def test_ordinary_responses_keep_the_order_of_requests() -> None:
    released = {name: asyncio.Event() for name in (b"1", b"2", b"3")}
    answered = {name: asyncio.Event() for name in released}
    finished: list[bytes] = []

    async def one(message: bytes) -> bytes:
        await released[message].wait()
        finished.append(message)
        answered[message].set()
        return message

    responses = asyncio.create_task(
        collect(answer_stream(stream_of(b"1", b"2", b"3"), lambda message: Ordered(one(message)), window=8))
    )
    for name in (b"3", b"2", b"1"):
        released[name].set()
        await answered[name].wait()
    assert await responses == [b"1", b"2", b"3"]
    assert finished == [b"3", b"2", b"1"]


async def test_several_response_requests_interleave_and_keep_their_own_order() -> None:
    released = {label: asyncio.Event() for label in (b"a0", b"a1", b"b0", b"b1")}

    async def several(name: bytes) -> AsyncGenerator[bytes]:
        for index in (b"0", b"1"):
            await released[name + index].wait()
            yield name + index

    order = [b"b0", b"a0", b"a1", b"b1"]
    async with aclosing(
        answer_stream(stream_of(b"a", b"b"), lambda message: Interleaved(several(message)), window=8)
    ) as responses:
        for label in order:
            released[label].set()
            assert await anext(responses) == label
        assert [response async for response in responses] == []


async def test_no_more_than_the_window_is_answered_at_a_time() -> None:
    running = most = 0

    async def one(message: bytes) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return message

    count = 50
    responses = await collect(
        answer_stream(stream_of(*[b"x"] * count), lambda message: Ordered(one(message)), window=4)
    )
    assert len(responses) == count
    assert most <= 4


async def test_an_answer_that_raises_ends_the_stream_with_its_error() -> None:
    async def broken() -> bytes:
        msg = "broken"
        raise ValueError(msg)

    with pytest.raises(ValueError, match="broken"):
        await collect(answer_stream(stream_of(b"1"), lambda _: Ordered(broken()), window=2))


async def test_cancelled_while_answers_run_cancels_them() -> None:
    cancelled = asyncio.Event()
    begun = asyncio.Event()

    async def endless() -> bytes:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return b""

    task = asyncio.create_task(collect(answer_stream(stream_of(b"1"), lambda _: Ordered(endless()), window=2)))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled.is_set()


async def test_closing_the_responses_closes_a_generator_that_waits_at_a_full_queue() -> None:
    closed = asyncio.Event()

    async def forever() -> AsyncGenerator[bytes]:
        try:
            while True:
                yield b"x"
        finally:
            closed.set()

    def answer(_: bytes) -> Answer:
        return Interleaved(forever())

    async with aclosing(answer_stream(stream_of(b"1"), answer, window=2)) as responses:
        assert await anext(responses) == b"x"
    assert closed.is_set()
