"""Ending a loaded version, within its time."""

from __future__ import annotations

import asyncio
from typing import Final

from mesh.node.runtimes.base import Loaded
from mesh.node.served import Served
from mesh.node.threads import in_own_thread
from mesh.telemetry import logs

log = logs.get(__name__)

CLOSE_S: Final = 5.0
"""How long a model's own close may take. A process is ended then, a thread left behind."""


async def ended(served: Served, within_s: float) -> None:
    """Wait for what is in flight on a copy, `within_s` at most, then close it."""
    try:
        async with asyncio.timeout(within_s):
            await served.drained()
    except TimeoutError:
        log.warning("closing a model that is still at work", model=served.model.name, in_flight=served.in_flight)
    if served.sequences is not None:
        served.sequences.close()
    if raised := await close(served.loaded):
        log.warning("a model's close failed", model=served.model.name, error=raised)


async def close(loaded: Loaded) -> str:
    """Give the memory back; return what the model's close raised, or empty. Takes `CLOSE_S` at most."""
    if loaded.apart is not None:
        return await loaded.apart.shut(CLOSE_S)
    try:
        async with asyncio.timeout(CLOSE_S):
            await in_own_thread(loaded.close)
    except TimeoutError:
        return f"it did not end within {CLOSE_S:g} s"
    except Exception as error:  # noqa: BLE001 - a user's close can raise anything
        return f"{type(error).__name__}: {error}"
    return ""
