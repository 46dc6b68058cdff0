"""The demo's crash: a model that ends its process, while another model of the same nodes is asked row after row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mesh_client import AsyncClient, MeshClientError

MODEL: Final = "brittle"
BEFORE: Final = 20
"""Rows of the other model that are asked before the crash, and as many after the model is back."""
BACK_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Crashed:
    """What came of it."""

    told: str
    """What the caller of the call that crashed it was told; empty: nothing went wrong, which is wrong."""
    back_s: float
    """Seconds until it answered again; 0: it did not."""
    beside: int
    """Requests of the other model that were answered meanwhile."""

    @property
    def right(self) -> bool:
        """Whether it went as it should."""
        return bool(self.told and self.back_s)


async def crash(client: AsyncClient, ask: Callable[[int], Coroutine[Any, Any, None]], rows: int) -> Crashed:
    """Crash the model while `ask` asks one of `rows` rows after the other. Raises `MeshClientError` before that."""
    await _root(client, 4.0)
    count, over = 0, asyncio.Event()

    async def beside() -> None:
        nonlocal count
        while not over.is_set():
            await ask(count % rows)
            count += 1

    asking = asyncio.create_task(beside())
    try:
        await _until(lambda: count >= BEFORE)
        told, began_s = "", time.monotonic()
        try:
            await _root(client, -1.0)
        except MeshClientError as error:
            told = str(error)
        back_s = 0.0
        while not back_s and time.monotonic() - began_s < BACK_S:
            try:
                await _root(client, 9.0)
                back_s = time.monotonic() - began_s
            except MeshClientError:
                await asyncio.sleep(0.05)
        more = count + BEFORE
        await _until(lambda: count >= more)
    finally:
        over.set()
        await asking
    return Crashed(told, back_s, count)


async def _root(client: AsyncClient, number: float) -> None:
    await client.infer(MODEL, {"x": np.array([number], np.float32)})


async def _until(reached: Callable[[], bool]) -> None:
    end_s = time.monotonic() + BACK_S
    while not reached() and time.monotonic() < end_s:  # noqa: ASYNC110 - what it waits for has a deadline
        await asyncio.sleep(0.01)
