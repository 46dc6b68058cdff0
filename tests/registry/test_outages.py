"""The registry goes away and comes back, loses its history or all it held, or has members that do not answer."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from mesh.registry.embedded import EmbeddedRegistry
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.store import Batch
from tests.fixtures.etcd import EtcdServer, Registry, Running, eventually
from tests.fixtures.faults import FaultyLink
from tests.fixtures.mesh import free_port

Connect = Callable[..., EtcdClient]


async def until_live(batches: AsyncGenerator[Batch, None]) -> list[Batch]:
    """Read up to the first batch that says the registry is back."""
    seen = [await anext(batches)]
    while not seen[-1].live:
        seen.append(await anext(batches))
    return seen


async def test_etcd_that_is_down_at_the_start_is_waited_for(
    new_etcd: Callable[..., EtcdServer], connect: Connect
) -> None:
    server = new_etcd()
    client = connect(server.address, timeout_s=0.5)
    said: list[str] = []
    ready = asyncio.create_task(client.wait_ready(said.append))
    await eventually(lambda: len(said) >= 1, what="told that it waits")
    assert said[0].startswith("waiting for the registry: ")
    assert server.address in said[0]
    assert not ready.done()
    await server.start()
    await asyncio.wait_for(ready, 60)


async def test_a_watch_resumes_after_a_restart_without_losing_a_change(
    new_etcd: Callable[..., EtcdServer], connect: Connect
) -> None:
    server = new_etcd()
    await server.start()
    watcher, writer = connect(server.address), connect(server.address, timeout_s=60)
    before = await writer.put("/t/a", b"1")
    async with aclosing(watcher.watch("/t/", after=before)) as batches:
        await writer.put("/t/a", b"2")
        assert (await anext(batches)).events[0].key == "/t/a"
        await server.stop()
        lost = await anext(batches)
        assert (lost.live, lost.events) == (False, ())
        await server.start()
        revision = await writer.put("/t/b", b"3")
        found = [event.key for batch in await until_live(batches) for event in batch.events]
        while "/t/b" not in found:
            batch = await anext(batches)
            assert not batch.relisted
            found.extend(event.key for event in batch.events)
        assert found == ["/t/b"]
        assert revision == before + 2


async def test_a_watch_lists_again_when_history_went_while_it_was_away(
    new_etcd: Callable[..., EtcdServer], connect: Connect
) -> None:
    from mesh.api.gen.etcd import rpc_pb2 as rpc

    server = new_etcd()
    await server.start()
    writer = connect(server.address, timeout_s=60)
    before = await writer.put("/t/a", b"1")
    await writer.put("/t/gone", b"1")
    # The watch stands at `before` while it cannot see what is written and compacted.
    blind = free_port()
    watcher = connect(f"127.0.0.1:{blind}", server.address, timeout_s=60)
    await writer.delete("/t/gone")
    revision = await writer.put("/t/b", b"1")
    await writer._caller.unary(
        "/etcdserverpb.KV/Compact", rpc.CompactionRequest(revision=revision), rpc.CompactionResponse
    )
    async with aclosing(watcher.watch("/t/", after=before)) as batches:
        lost = await anext(batches)
        assert not lost.live
        seen = await until_live(batches)
        while not seen[-1].relisted:
            seen.append(await anext(batches))
        assert [event.key for event in seen[-1].events] == ["/t/a", "/t/b"]


async def test_calls_go_to_the_endpoint_that_answers(registry: Running, connect: Connect) -> None:
    dead = f"127.0.0.1:{free_port()}"
    client = connect(dead, registry.address)
    revision = await client.put("/t/a", b"1")
    assert client._caller.endpoint == registry.address
    entry = await client.get("/t/a")
    assert entry is not None
    assert entry.mod_revision == revision


async def test_a_watch_goes_to_the_endpoint_that_answers(registry: Running, connect: Connect) -> None:
    writer = connect(registry.address)
    before = await writer.put("/t/a", b"1")
    watcher = connect(f"127.0.0.1:{free_port()}", registry.address)
    async with aclosing(watcher.watch("/t/", after=before)) as batches:
        await writer.put("/t/a", b"2")
        seen = await until_live(batches)
        while not seen[-1].events:
            seen.append(await anext(batches))
        assert [event.key for event in seen[-1].events] == ["/t/a"]


async def test_an_endpoint_that_is_silent_costs_its_share_of_the_timeout(registry: Running, connect: Connect) -> None:
    silent = FaultyLink(registry.address)
    silent.stalled = True
    await silent.start()
    client = connect(silent.address, registry.address, timeout_s=20.0)
    assert await client.put("/t/a", b"1") > 0
    assert client._caller.endpoint == registry.address
    await client.close()
    await silent.stop()


async def test_a_registry_that_lost_everything_is_listed_again(connect: Connect) -> None:
    registry = EmbeddedRegistry()
    await registry.start()
    client = connect(registry.address, timeout_s=60)
    for each in range(5):
        await client.put(f"/t/{each}", b"")
    listing = await client.list("/t/")
    try:
        async with aclosing(client.watch("/t/", after=listing.revision)) as batches:
            await client.put("/t/9", b"")
            await anext(batches)
            await registry.stop()
            assert not (await anext(batches)).live
            await registry.start()
            # More revisions than before: only the cluster's id shows that this is another history.
            for each in range(20):
                await client.put("/t/new", b"%d" % each)
            seen = await until_live(batches)
            assert seen[-1].relisted
            assert [event.key for event in seen[-1].events] == ["/t/new"]
    finally:
        await registry.stop()


async def test_a_compare_and_swap_that_was_cut_off_and_done_counts_as_won(
    restartable: Registry, connect: Connect
) -> None:
    """The answer is lost after etcd did the write: the second attempt finds just what it wanted to write."""
    cut = FaultyLink(restartable.address)
    await cut.start()
    client = connect(cut.address, timeout_s=60)
    await client.get("/t/a")
    cut.cut_answer_to = b"mine"
    revision = await client.replace("/t/a", b"mine", expected=0)
    entry = await client.get("/t/a")
    assert cut.cuts == 1
    assert entry is not None
    assert (entry.value, entry.mod_revision) == (b"mine", revision)
    await client.close()
    await cut.stop()


async def test_a_watch_whose_server_goes_silent_moves_to_another_endpoint(
    restartable: Registry, connect: Connect
) -> None:
    """A partition: the connection stands and nothing comes through. Only pings that go unanswered show it."""
    link = FaultyLink(restartable.address)
    await link.start()
    writer = connect(restartable.address, timeout_s=60)
    before = await writer.put("/t/a", b"1")
    watcher = connect(link.address, restartable.address, timeout_s=60)
    async with aclosing(watcher.watch("/t/", after=before)) as batches:
        await writer.put("/t/a", b"2")
        assert (await anext(batches)).events
        link.stalled = True
        await writer.put("/t/a", b"3")
        assert not (await asyncio.wait_for(anext(batches), 60)).live
        seen = await until_live(batches)
        while not seen[-1].events:
            seen.append(await anext(batches))
        assert seen[-1].events[0].entry is not None
        assert seen[-1].events[0].entry.value == b"3"
    await watcher.close()
    await link.stop()


async def test_calls_leave_an_endpoint_that_went_silent(restartable: Registry, connect: Connect) -> None:
    link = FaultyLink(restartable.address)
    await link.start()
    client = connect(link.address, restartable.address, timeout_s=20)
    await client.put("/t/a", b"1")
    assert client._caller.endpoint == link.address
    link.stalled = True
    await client.put("/t/a", b"2")
    assert client._caller.endpoint == restartable.address
    await client.close()
    await link.stop()


async def test_a_member_without_its_majority_is_left_by_a_watch(
    new_etcd: Callable[..., EtcdServer], connect: Connect
) -> None:
    """Three members, two killed: the third answers connections and knows no leader, so it must not be trusted."""
    members = [new_etcd() for _ in range(3)]
    for each in members:
        each.join(members)
    await asyncio.gather(*(each.start() for each in members))
    client = connect(*(each.address for each in members), timeout_s=60)
    before = await client.put("/t/a", b"1")
    alone = connect(members[0].address, timeout_s=1)
    async with aclosing(alone.watch("/t/", after=before)) as batches:
        await client.put("/t/a", b"2")
        assert (await anext(batches)).events
        for each in members[1:]:
            await each.stop()
        assert not (await asyncio.wait_for(anext(batches), 60)).live
        await members[1].start()
        seen = await asyncio.wait_for(until_live(batches), 60)
        assert seen[-1].live
        assert await client.put("/t/a", b"3") > before


async def test_an_etcd_that_was_wiped_is_noticed_though_it_has_more_revisions_by_now(
    new_etcd: Callable[..., EtcdServer], connect: Connect
) -> None:
    """Its name gives it its old cluster id. Only the mark tells the two histories apart."""
    server = new_etcd()
    await server.start()
    link = FaultyLink(server.address)
    await link.start()
    writer, watcher = connect(server.address, timeout_s=60), connect(link.address, timeout_s=60)
    await writer.put("/t/mark", b"one")
    before = await writer.put("/t/a", b"1")
    async with aclosing(watcher.watch("/t/", after=before, mark="/t/mark")) as batches:
        await writer.put("/t/b", b"2")
        assert [event.key for event in (await anext(batches)).events] == ["/t/b"]
        await link.stop()
        assert not (await anext(batches)).live
        await server.stop()
        shutil.rmtree(server.folder / "data")
        await server.start()
        for each in range(20):
            await writer.put("/t/new", b"%d" % each)
        await link.start()
        seen = await until_live(batches)
        while not seen[-1].relisted:
            seen.append(await anext(batches))
        assert seen[-1].anew
        assert [event.key for event in seen[-1].events] == ["/t/new"]
        await writer.put("/t/mark", b"two")
        seen = [await anext(batches)]
        assert [event.key for event in seen[-1].events] == ["/t/mark"]
        # The same history, cut off once more: nothing is listed again.
        await link.stop()
        assert not (await anext(batches)).live
        await writer.put("/t/c", b"3")
        await link.start()
        seen = await until_live(batches)
        while not seen[-1].events:
            seen.append(await anext(batches))
        assert not any(batch.relisted for batch in seen)
        assert [event.key for event in seen[-1].events] == ["/t/c"]
    await watcher.close()
    await link.stop()
