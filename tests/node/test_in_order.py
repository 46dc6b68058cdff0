"""The responses of several requests of one copy, put in the order of the requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from mesh.node.in_order import InOrder


class Request:
    """One that makes a response for each `make`, and ends at `end`."""

    def __init__(self, order: InOrder, told: list[str], name: str) -> None:
        self.closed = False
        self._news: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self._told = told
        self.task = asyncio.create_task(self._run(order, name))

    async def _made(self) -> AsyncGenerator[str]:
        try:
            while (news := await self._news.get()) is not None:
                if isinstance(news, Exception):
                    raise news
                yield news
        finally:
            self.closed = True

    async def _run(self, order: InOrder, name: str) -> None:
        try:
            async with aclosing(order.of(self._made())) as responses:
                async for response in responses:
                    self._told.append(f"{name} {response}")
            self._told.append(f"{name} ends")
        except ValueError:
            self._told.append(f"{name} fails")

    def make(self, *news: str | Exception | None) -> None:
        for each in news:
            self._news.put_nowait(each)


async def settled() -> None:
    """Let everything go on that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def begun(order: InOrder, told: list[str], names: str) -> list[Request]:
    found = []
    for name in names:
        found.append(Request(order, told, name))
        await settled()
    return found


async def test_each_follows_the_one_before_it() -> None:
    order, told = InOrder(), []  # type: InOrder, list[str]
    a, b, c = await begun(order, told, "abc")
    c.make("1", None)
    b.make("1", "2", None)
    await settled()
    assert told == []
    a.make("1")
    await settled()
    assert told == ["a 1"]
    a.make("2", None)
    await asyncio.gather(a.task, b.task, c.task)
    assert told == ["a 1", "a 2", "a ends", "b 1", "b 2", "b ends", "c 1", "c ends"]
    assert order._last is None


async def test_an_error_waits_for_its_turn_and_ends_it() -> None:
    order, told = InOrder(), []  # type: InOrder, list[str]
    a, b, c = await begun(order, told, "abc")
    b.make(ValueError("no"))
    c.make("1", None)
    await settled()
    assert told == []
    assert b.closed
    a.make(ValueError("no"))
    await asyncio.gather(a.task, b.task, c.task)
    assert told == ["a fails", "b fails", "c 1", "c ends"]


@pytest.mark.parametrize("made", [True, False])
async def test_one_that_is_given_up_leaves_its_turn_to_the_next(made: bool) -> None:
    order, told = InOrder(), []  # type: InOrder, list[str]
    a, b, c = await begun(order, told, "abc")
    c.make("1", None)
    if made:
        b.make("1")
    await settled()
    b.task.cancel()
    await settled()
    assert b.closed
    assert told == [], "the first is still at it"
    a.task.cancel()
    await c.task
    assert told == ["c 1", "c ends"]
    d = (await begun(order, told, "d"))[0]
    d.make("1")
    await settled()
    assert told[-1] == "d 1", "nobody is before it"
    d.task.cancel()
