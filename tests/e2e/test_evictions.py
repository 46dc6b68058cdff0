"""What the registry sees of loads that take other copies' room."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from benchmarks.thousands import repository_of
from mesh.core.placement.ledger import MIN_BYTES
from mesh.registry.config import RegistryConfig
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.keys import COPIES, PLACEMENTS, ROOT
from mesh.registry.records import decode_placement
from mesh_client import AsyncClient
from tests.fixtures.etcd import EtcdServer, eventually
from tests.fixtures.mesh import start_node, start_router

pytestmark = pytest.mark.timeout(300)
X = {"x": np.zeros((1, 16), np.float32)}


async def test_a_copy_that_is_evicted_goes_with_its_placement(
    new_etcd: Callable[..., EtcdServer], tmp_path: Path
) -> None:
    """One transaction says both, and often that the next copy serves too: writes are what an etcd has least of."""
    etcd = new_etcd()
    await etcd.start()
    names = repository_of(tmp_path / "models", 8)
    room = ("--memory-bytes", str(2 * MIN_BYTES))
    store = EtcdClient(RegistryConfig(endpoints=(etcd.address,)))
    changed: dict[int, set[tuple[str, str]]] = defaultdict(set)

    async def follow(after: int) -> None:
        async with aclosing(store.watch(ROOT, after=after)) as batches:
            async for batch in batches:
                for event in batch.events:
                    if event.key.startswith(COPIES) and event.entry is None:
                        # A deletion has no entry; a batch of one revision is one transaction.
                        changed[batch.revision].add(("gone", event.key.split("/")[-2]))
                    if event.key.startswith(PLACEMENTS) and event.entry is not None:
                        placement = decode_placement(event.entry.value)
                        if not placement.nodes:
                            changed[event.entry.mod_revision].add(("left", placement.model))

    try:
        with (
            start_node(etcd.address, "a", *room, models=tmp_path / "models") as node,
            start_router(etcd.address) as router,
        ):
            node.wait_ready()
            router.wait_ready()
            following = asyncio.create_task(follow((await store.list(ROOT)).revision))
            async with AsyncClient(router.grpc) as client:
                for name in names:
                    await client.infer(name, X, timeout_s=60)
                    await asyncio.sleep(0.3)  # A copy in use is not evicted.

            def together() -> int:
                return sum(("left", name) in each for each in changed.values() for what, name in each if what == "gone")

            await eventually(
                lambda: together() == 6, what=f"copies gone together with their placements: {dict(changed)}"
            )
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
    finally:
        await store.close()
        await etcd.stop()
