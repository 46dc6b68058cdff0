"""The leader's duties beside placement."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from mesh.registry.etcd_client import EtcdClient
from mesh.registry.mirror import Mirror
from mesh.router.channels import Channels
from mesh.router.steward import Steward
from mesh.wire.engine import Carrier
from mesh.wire.transport import Limits
from tests.fixtures.etcd import eventually


async def test_the_leader_lets_the_registry_forget_its_history(store: EtcdClient) -> None:
    first = await store.put("/t/a", b"0")
    mirror = Mirror(store)
    carrier = Carrier("mesh", Limits(), asyncio.get_running_loop())
    steward = Steward(mirror, store, Channels(carrier.connector(None)), "one", compact_s=0.2)
    tasks = [asyncio.create_task(mirror.run())]
    await mirror.wait_synced()
    tasks.append(asyncio.create_task(steward.run()))
    written = 0

    async def forgotten() -> bool:
        nonlocal written
        written += 1
        await store.put("/t/a", str(written).encode())
        async with aclosing(store.watch("/t/", after=first)) as batches:
            return (await anext(batches)).relisted

    try:
        await eventually(forgotten, what="the first revision is compacted")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
