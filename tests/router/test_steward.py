"""The leader's duties beside placement."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from mesh.api.clock import steady_s
from mesh.core.placement.orphans import PLACEMENT_S
from mesh.core.sightings import FIRST_TOLD_S
from mesh.core.suspects import Suspect, pause_s
from mesh.core.types import ModelName, ModelVersion, Placement, Version
from mesh.core.view import VersionKey
from mesh.registry import records
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.keys import model_key, placement_key, suspect_key
from mesh.registry.mirror import Mirror
from mesh.router.channels import Channels
from mesh.router.steward import Steward
from mesh.router.tidy import Tidy
from mesh.wire.engine import Carrier
from mesh.wire.transport import Limits
from tests.fixtures.etcd import eventually


@asynccontextmanager
async def leading(store: EtcdClient, *, compact_s: float = 0.0, orphan_s: float = PLACEMENT_S) -> AsyncIterator[Mirror]:
    """Run a mirror and a leader over `store`."""
    mirror = Mirror(store)
    carrier = Carrier("mesh", Limits(), asyncio.get_running_loop())
    channels = Channels(carrier.connector(None))
    steward = Steward(mirror, store, channels, "one", compact_s=compact_s, orphan_s=orphan_s)
    tasks = [asyncio.create_task(mirror.run())]
    try:
        await mirror.wait_synced()
        tasks.append(asyncio.create_task(steward.run()))
        yield mirror
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_leader_lets_the_registry_forget_its_history(store: EtcdClient) -> None:
    first = await store.put("/t/a", b"0")
    written = 0

    async def forgotten() -> bool:
        nonlocal written
        written += 1
        await store.put("/t/a", str(written).encode())
        async with aclosing(store.watch("/t/", after=first)) as batches:
            return (await anext(batches)).relisted

    async with leading(store, compact_s=0.2):
        await eventually(forgotten, what="the first revision is compacted")


def key_of(number: int) -> VersionKey:
    return ModelName(f"m{number}"), Version("1")


async def put_model(store: EtcdClient, key: VersionKey) -> None:
    model = ModelVersion(name=key[0], version=key[1], runtime="onnx", source="file:///m/1", digest="d", size_bytes=1)
    await store.put(model_key(*key), records.encode(model))


async def put_placement(store: EtcdClient, key: VersionKey) -> None:
    await store.put(placement_key(*key), records.encode(Placement(*key, requested_s=1.0)))


async def test_the_leader_deletes_the_placements_of_models_that_are_gone(store: EtcdClient) -> None:
    """More than go into one transaction; that of the one model that is there stays."""
    keys = [key_of(number) for number in range(150)]
    here = keys[70]
    await asyncio.gather(*(put_placement(store, key) for key in keys))
    await put_model(store, here)
    async with leading(store, orphan_s=0.5) as mirror:
        await eventually(lambda: set(mirror.view.placements) == {here}, what="the others' placements are deleted")
    assert await store.get(placement_key(*here)) is not None


async def test_a_model_published_meanwhile_keeps_its_placement(store: EtcdClient) -> None:
    """The view of the one who deletes is behind: the registry itself says which version has a record."""
    gone, back = key_of(1), key_of(2)
    await put_placement(store, gone)
    await put_placement(store, back)
    mirror = Mirror(store)
    running = asyncio.create_task(mirror.run())
    try:
        await mirror.wait_synced()
        view, tidy = mirror.view, Tidy(store, placement_s=30.0)
        await tidy.step(view, [gone, back], 0.0)
        await put_model(store, back)
        await tidy.step(view, [gone, back], 30.0)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert await store.get(placement_key(*gone)) is None
    assert await store.get(placement_key(*back)) is not None


async def test_what_is_known_of_deaths_goes_long_after_its_model(store: EtcdClient) -> None:
    gone, here = key_of(1), key_of(2)
    await put_model(store, here)
    for key in (gone, here):
        await store.put(suspect_key(*key), records.encode(Suspect(*key, digest="d", deaths=1)))
    mirror = Mirror(store)
    running = asyncio.create_task(mirror.run())
    try:
        await mirror.wait_synced()
        tidy = Tidy(store, suspect_s=3600.0)
        await tidy.step(mirror.view, (), 0.0)
        await tidy.step(mirror.view, (), 3599.0)
        assert await store.get(suspect_key(*gone)) is not None
        await tidy.step(mirror.view, (), 3600.0)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert await store.get(suspect_key(*gone)) is None
    assert await store.get(suspect_key(*here)) is not None


async def test_the_leader_says_how_long_ago_a_version_ended_a_process(store: EtcdClient) -> None:
    """A process that starts later would take the death for new: its record's time is by a clock that may be off."""
    key = key_of(1)
    await put_model(store, key)
    await store.put(suspect_key(*key), records.encode(Suspect(*key, digest="d", deaths=1, isolated=True, last_s=7e9)))
    async with leading(store) as mirror:
        await eventually(
            lambda: key in mirror.view.suspects and mirror.view.suspects[key].quiet_s >= FIRST_TOLD_S,
            what="its age is told",
        )
        assert pause_s(mirror.view.suspects[key], "d", steady_s()) == 0
        late = Mirror(store)
        running = asyncio.create_task(late.run())
        await late.wait_synced()
        assert steady_s() - late.view.suspects[key].last_s >= FIRST_TOLD_S
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
