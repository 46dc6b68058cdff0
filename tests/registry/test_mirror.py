"""The view follows the registry, and stays when the registry does not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from mesh.core.fold import Change, NodeChange, PlacementChange, fold
from mesh.core.types import Copy, CopyState, ModelName, ModelVersion, Node, NodeId, Placement, Version
from mesh.core.view import ClusterView
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.keys import ROOT, copy_key, model_key, node_key, placement_key
from mesh.registry.mirror import Mirror
from mesh.registry.records import encode
from tests.fixtures.etcd import EtcdServer, Registry, eventually

Connect = Callable[..., EtcdClient]
M, V = ModelName("m"), Version("1")
MODEL = ModelVersion(M, V, "onnx", "file:///m/1", "d", 1)
PLACEMENT = Placement(M, V, (NodeId("a"),))


def node(id_: str = "a", port: int = 1, *, draining: bool = False) -> Node:
    return Node(NodeId(id_), f"127.0.0.1:{port}", f"{id_}-1", draining=draining)


async def put_node(store: EtcdClient, record: Node) -> int:
    return await store.put(node_key(record.id), encode(record))


async def put_copy(store: EtcdClient, id_: str = "a", state: CopyState = CopyState.READY) -> int:
    return await store.put(copy_key(NodeId(id_), (M, V)), encode(Copy(M, V, state)))


@asynccontextmanager
async def following(store: EtcdClient, *, grace_s: float = 10.0) -> AsyncIterator[Mirror]:
    mirror = Mirror(store, grace_s=grace_s)
    task = asyncio.create_task(mirror.run())
    try:
        await asyncio.wait_for(mirror.wait_synced(), 60)
        yield mirror
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def view_when(mirror: Mirror, predicate: Callable[[ClusterView], bool]) -> ClusterView:
    return await asyncio.wait_for(mirror.wait_for(predicate), 60)


async def test_the_first_view_holds_what_was_there(store: EtcdClient) -> None:
    await put_node(store, node())
    await put_copy(store)
    await store.put(model_key(M, V), encode(MODEL))
    revision = await store.put(placement_key(M, V), encode(PLACEMENT))
    async with following(store) as mirror:
        view = mirror.view
        assert (view.revision, view.nodes, dict(view.models)) == (revision, {"a": node()}, {M: {V: MODEL}})
        assert dict(view.placements) == {(M, V): PLACEMENT}
        assert [each.node.address for each in view.serving[(M, V)]] == ["127.0.0.1:1"]
        assert mirror.live


async def test_the_view_follows_changes_and_deletions(store: EtcdClient) -> None:
    async with following(store) as mirror:
        await put_node(store, node())
        await store.put(placement_key(M, V), encode(PLACEMENT))
        await view_when(mirror, lambda view: (M, V) in view.placements and "a" in view.nodes)
        await put_copy(store)
        await view_when(mirror, lambda view: (M, V) in view.serving)
        await put_node(store, node(port=2))
        await store.delete(placement_key(M, V))
        await view_when(mirror, lambda view: not view.placements and view.nodes[NodeId("a")] == node(port=2))
        revision = await store.put(model_key(M, V), encode(MODEL))
        assert mirror.view.serving[(M, V)][0].node.address == "127.0.0.1:2"
        await store.delete(node_key(NodeId("a")))
        view = await view_when(mirror, lambda view: not view.nodes)
        assert dict(view.models) == {M: {V: MODEL}}
        assert view.revision == revision + 1
        assert not view.serving
        assert not view.copies
        await put_node(store, node(port=3))
        view = await view_when(mirror, lambda view: bool(view.serving))
        await store.delete(copy_key(NodeId("a"), (M, V)))
        await view_when(mirror, lambda view: not view.copies and not view.held)


async def test_following_gives_the_same_view_as_listing(store: EtcdClient) -> None:
    async with following(store) as follower:
        for each in range(10):
            await put_node(store, node(f"n{each % 4}", each))
            await put_copy(store, f"n{each % 3}", list(CopyState)[each % 4])
            await store.put(placement_key(M, Version(str(each))), encode(Placement(M, Version(str(each)))))
        revision = await store.put(model_key(M, V), encode(MODEL))
        followed = await view_when(follower, lambda view: view.revision >= revision)
        async with following(store) as lister:
            assert lister.view == followed


async def test_a_bad_record_is_logged_once_and_costs_nothing_else(
    store: EtcdClient, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(store) as mirror:
        await put_node(store, node())
        with caplog.at_level(logging.WARNING, logger="mesh.registry.mirror"):
            for _ in range(3):
                await store.put(node_key(NodeId("bad")), b"{")
            await store.put(f"{ROOT}nodes/a/b", encode(node()))
            await store.put(node_key(NodeId("other")), encode(node("a")))
            revision = await put_node(store, node(port=2))
            view = await view_when(mirror, lambda view: view.revision >= revision)
        assert view.nodes == {"a": node(port=2)}
        logged = [
            each.__dict__["mesh_fields"]["key"]
            for each in caplog.records
            if each.message.startswith("skipped a bad record")
        ]
        assert sorted(logged) == [f"{ROOT}nodes/a/b", f"{ROOT}nodes/bad", f"{ROOT}nodes/other"]


async def test_a_record_that_goes_bad_leaves_the_last_good_one(store: EtcdClient) -> None:
    async with following(store) as mirror:
        await put_node(store, node())
        await store.put(node_key(NodeId("a")), b"{")
        revision = await store.put(model_key(M, V), encode(MODEL))
        view = await view_when(mirror, lambda view: view.revision >= revision)
        assert view.nodes == {"a": node()}


async def test_keys_of_other_kinds_are_passed_over(store: EtcdClient, caplog: pytest.LogCaptureFixture) -> None:
    async with following(store) as mirror:
        for kind in ("routes", "leader"):
            revision = await store.put(f"{ROOT}{kind}/x", b"anything")
        view = await view_when(mirror, lambda view: view.revision >= revision)
        assert view == ClusterView(revision)
        assert not caplog.records


async def test_every_waiter_gets_the_next_view_and_a_cancelled_one_harms_no_other(store: EtcdClient) -> None:
    async with following(store) as mirror:
        seen = mirror.view
        waiters = [asyncio.create_task(mirror.next(seen)) for _ in range(5)]
        hopeless = asyncio.create_task(mirror.wait_for(lambda _: False))
        await asyncio.sleep(0)
        waiters[0].cancel()
        await put_node(store, node())
        views = await asyncio.wait_for(asyncio.gather(*waiters[1:]), 60)
        assert all(view is not seen and "a" in view.nodes for view in views)
        assert await mirror.next(seen) is mirror.view
        assert not hopeless.done()
        hopeless.cancel()
        for each in (waiters[0], hopeless):
            with pytest.raises(asyncio.CancelledError):
                await each


async def test_cancelled_while_waiting_for_the_first_listing(
    new_etcd: Callable[..., EtcdServer], connect: Connect
) -> None:
    mirror = Mirror(connect(new_etcd().address))
    tasks = [asyncio.create_task(mirror.run()), asyncio.create_task(mirror.wait_synced())]
    await asyncio.sleep(0)
    for each in tasks:
        each.cancel()
        with pytest.raises(asyncio.CancelledError):
            await each
    assert not mirror.live


async def test_a_registry_that_is_down_at_the_start_is_waited_for(
    new_etcd: Callable[..., EtcdServer], connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server = new_etcd()
    mirror = Mirror(connect(server.address, timeout_s=0.5))
    task = asyncio.create_task(mirror.run())
    await eventually(lambda: bool(caplog.records), what="logged that it waits")
    await server.start()
    await asyncio.wait_for(mirror.wait_synced(), 60)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_view_stays_while_the_registry_is_away_and_follows_again_after(
    restartable: Registry, connect: Connect
) -> None:
    writer = connect(restartable.address, timeout_s=60)
    await put_node(writer, node())
    async with following(connect(restartable.address, timeout_s=1), grace_s=60.0) as mirror:
        view = mirror.view
        await restartable.stop()
        await eventually(lambda: not mirror.live, what="the loss is seen")
        assert mirror.view is view
        await restartable.start()
        await put_node(writer, node(port=2))
        await view_when(mirror, lambda view: view.nodes[NodeId("a")] == node(port=2))
        assert mirror.live


async def test_a_node_that_is_gone_after_an_outage_is_dropped_when_the_grace_has_passed(
    restartable: Registry, connect: Connect
) -> None:
    writer = connect(restartable.address, timeout_s=60)
    await put_node(writer, node("a"))
    await put_node(writer, node("b"))
    await put_node(writer, node("drains", draining=True))
    grace_s = 8.0
    async with following(connect(restartable.address, timeout_s=1), grace_s=grace_s) as mirror:
        await restartable.stop()
        await eventually(lambda: not mirror.live, what="the loss is seen")
        await restartable.start()
        for id_ in ("a", "b", "drains"):
            await writer.delete(node_key(NodeId(id_)))
        await view_when(mirror, lambda view: "drains" not in view.nodes)
        held = asyncio.get_running_loop().time()
        assert set(mirror.view.nodes) == {"a", "b"}
        await put_node(writer, node("b", 2))
        await view_when(mirror, lambda view: view.nodes.get(NodeId("b")) == node("b", 2))
        view = await view_when(mirror, lambda view: "a" not in view.nodes)
        assert set(view.nodes) == {"b"}
        # `held` is after the grace began, so only the upper part of it is known to have passed.
        assert asyncio.get_running_loop().time() >= held
        await writer.delete(node_key(NodeId("b")))
        await view_when(mirror, lambda view: not view.nodes)


async def test_views_are_those_of_a_fold(store: EtcdClient) -> None:
    async with following(store) as mirror:
        await put_node(store, node())
        revision = await store.put(placement_key(M, V), encode(PLACEMENT))
        view = await view_when(mirror, lambda view: view.revision >= revision)
        changes: list[Change] = [NodeChange(NodeId("a"), node()), PlacementChange((M, V), PLACEMENT)]
        assert view == fold(ClusterView(), changes, revision)
        assert repr(mirror).startswith("<Mirror live=True <ClusterView ")


async def test_the_copies_of_a_node_that_went_with_the_registry_stay_until_the_grace_has_passed(
    restartable: Registry, connect: Connect
) -> None:
    writer = connect(restartable.address, timeout_s=60)
    await put_node(writer, node())
    await put_copy(writer)
    async with following(connect(restartable.address, timeout_s=1), grace_s=8.0) as mirror:
        await restartable.stop()
        await eventually(lambda: not mirror.live, what="the loss is seen")
        await restartable.start()
        await writer.write({copy_key(NodeId("a"), (M, V)): None, node_key(NodeId("a")): None})
        revision = await writer.put(model_key(M, V), encode(MODEL))
        view = await view_when(mirror, lambda view: view.revision >= revision)
        assert (M, V) in view.serving
        await put_node(writer, node())
        view = await view_when(mirror, lambda view: not view.serving)
        assert set(view.nodes) == {"a"}
