"""Waiting for the registry at the start of a process, until it answers or the process is told to stop."""

from __future__ import annotations

import asyncio

from mesh.registry.etcd_client import EtcdClient
from mesh.telemetry import logs

log = logs.get(__name__)


async def answers_before(stop: asyncio.Event, store: EtcdClient) -> bool:
    """Return True when the registry answers, False when `stop` is set first. Says in the log what it waits for.

    Raises `RegistryMisconfigured` for what no waiting mends.
    """
    waiting = asyncio.create_task(store.wait_ready(lambda text: log.warning("waiting for the registry", why=text)))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((waiting, stopped), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            waiting.result()
        return not stop.is_set()
    finally:
        waiting.cancel()
        stopped.cancel()
