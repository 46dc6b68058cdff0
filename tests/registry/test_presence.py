"""A process keeps its key registered, through whatever takes it away, and never two under one id."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from mesh.core.errors import Conflict
from mesh.core.types import Node, NodeId
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.keys import node_key
from mesh.registry.lease import Presence
from mesh.registry.records import encode
from tests.fixtures.etcd import EtcdServer, Registry, eventually
from tests.fixtures.etcd_full import FULL_BYTES, fill, make_room

KEY = node_key(NodeId("a"))
Connect = Callable[..., EtcdClient]


def record(incarnation: str, port: int = 1) -> bytes:
    return encode(Node(NodeId("a"), f"127.0.0.1:{port}", incarnation))


def presence_of(
    store: EtcdClient, incarnation: str, *, ttl_s: int = 5, events: list[str] | None = None, prefix: str = ""
) -> Presence:
    def is_mine(value: bytes) -> bool:
        return bool(json.loads(value)["incarnation"] == incarnation)

    said: list[str] = [] if events is None else events
    presence = Presence(store, KEY, prefix=prefix, ttl_s=ttl_s, is_mine=is_mine, on_event=said.append)
    presence.publish(record(incarnation))
    return presence


@asynccontextmanager
async def running(presence: Presence) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(presence.run())
    try:
        await asyncio.wait_for(presence.registered(), 60)
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def holds(store: EtcdClient, value: bytes) -> bool:
    entry = await store.get(KEY)
    return entry is not None and entry.value == value and entry.lease != 0


async def test_the_key_is_there_while_it_runs_and_gone_after_withdraw(store: EtcdClient) -> None:
    presence = presence_of(store, "i1")
    async with running(presence) as task:
        assert await holds(store, record("i1"))
        assert repr(presence).startswith(f"<Presence {KEY} held=True")
        await presence.withdraw()
        assert await store.get(KEY) is None
        await asyncio.wait_for(task, 60)
        await presence.withdraw()


async def test_nothing_is_registered_before_the_first_publish(store: EtcdClient) -> None:
    presence = Presence(store, KEY, ttl_s=5, is_mine=lambda _: True, on_event=lambda _: None)
    task = asyncio.create_task(presence.run())
    assert await store.get(KEY) is None
    presence.publish(b"x")
    await asyncio.wait_for(presence.registered(), 60)
    assert await holds(store, b"x")
    await presence.withdraw()
    await task


async def test_a_burst_of_publishes_costs_few_writes_and_ends_with_the_latest(store: EtcdClient) -> None:
    presence = presence_of(store, "i1")
    async with running(presence):
        for port in range(2, 1000):
            presence.publish(record("i1", port))
            await asyncio.sleep(0)
        await eventually(lambda: holds(store, record("i1", 999)), what="the latest value is written")
        entry = await store.get(KEY)
        assert entry is not None
        assert entry.version < 100


async def test_publishing_the_same_value_again_writes_nothing(store: EtcdClient) -> None:
    presence = presence_of(store, "i1")
    async with running(presence):
        presence.publish(record("i1"))
        presence.publish(record("i1", 2))
        presence.publish(record("i1"))
        presence.publish(record("i1", 3))
        await eventually(lambda: holds(store, record("i1", 3)), what="the latest value is written")
        entry = await store.get(KEY)
        assert entry is not None
        assert entry.version == 2


async def test_a_lease_lives_past_its_time_while_it_runs(store: EtcdClient) -> None:
    presence = presence_of(store, "i1", ttl_s=3)
    async with running(presence):
        entry = await store.get(KEY)
        end_s = asyncio.get_running_loop().time() + 5.0
        await eventually(lambda: asyncio.get_running_loop().time() > end_s, what="past the lease's first time")
        assert await store.get(KEY) == entry


async def test_a_lost_lease_is_replaced_and_the_key_registered_again(store: EtcdClient) -> None:
    events: list[str] = []
    presence = presence_of(store, "i1", events=events)
    async with running(presence):
        entry = await store.get(KEY)
        assert entry is not None
        await store.revoke(entry.lease)
        await eventually(lambda: holds(store, record("i1")), what="registered again")
        assert any("registering again" in each for each in events)


async def test_a_key_deleted_by_hand_is_registered_again(store: EtcdClient) -> None:
    presence = presence_of(store, "i1")
    async with running(presence):
        assert await store.delete(KEY)
        await eventually(lambda: holds(store, record("i1")), what="registered again")


async def test_a_restarted_registry_is_registered_with_again(restartable: Registry, connect: Connect) -> None:
    """The real one kept the key on disk, the embedded one lost it: both end with the latest value."""
    presence = presence_of(connect(restartable.address, timeout_s=1), "i1", ttl_s=3)
    async with running(presence):
        await restartable.stop()
        presence.publish(record("i1", 2))
        await restartable.start()
        other = connect(restartable.address, timeout_s=60)
        await eventually(lambda: holds(other, record("i1", 2)), what="the latest value is registered")
        await presence.withdraw()
        assert await other.get(KEY) is None


async def test_a_registry_that_is_down_at_the_start_is_waited_for(
    new_etcd: Callable[..., EtcdServer], connect: Connect
) -> None:
    server = new_etcd()
    events: list[str] = []
    presence = presence_of(connect(server.address, timeout_s=0.5), "i1", events=events)
    task = asyncio.create_task(presence.run())
    await eventually(lambda: len(events) >= 1, what="told that it is not registered")
    assert not task.done()
    await server.start()
    await asyncio.wait_for(presence.registered(), 60)
    await presence.withdraw()
    await task


async def test_an_outage_longer_than_the_lease_ends_registered(
    new_etcd: Callable[..., EtcdServer], connect: Connect
) -> None:
    server = new_etcd()
    await server.start()
    events: list[str] = []
    presence = presence_of(connect(server.address, timeout_s=0.5), "i1", ttl_s=2, events=events)
    async with running(presence):
        await server.stop()
        end_s = asyncio.get_running_loop().time() + 3.0
        await eventually(
            lambda: len(events) >= 2 and asyncio.get_running_loop().time() > end_s, what="down longer than the lease"
        )
        # The reason did not change meanwhile: said once of the writes, once of the lease.
        assert len(events) == 2
        assert not presence.held
        await server.start()
        other = connect(server.address, timeout_s=60)
        await eventually(lambda: holds(other, record("i1")), what="registered again")
        await eventually(lambda: presence.held, what="and known to be")


async def test_a_second_process_with_the_id_is_refused_while_the_first_lives(
    store: EtcdClient, connect: Connect
) -> None:
    first = presence_of(store, "i1", ttl_s=2)
    async with running(first):
        events: list[str] = []
        second = presence_of(connect(*store.config.endpoints), "i2", ttl_s=2, events=events)
        with pytest.raises(Conflict, match=r"node id 'a' is taken by .*127\.0\.0\.1:1.*give this node another --id"):
            await asyncio.wait_for(second.run(), 60)
        assert "waiting for it to go" in events[0]
        assert await holds(store, record("i1"))


async def test_of_two_that_start_at_once_one_wins_and_the_other_is_refused(store: EtcdClient, connect: Connect) -> None:
    both = [presence_of(connect(*store.config.endpoints), each, ttl_s=2) for each in ("i1", "i2")]
    tasks = [asyncio.create_task(each.run()) for each in both]
    done, pending = await asyncio.wait(tasks, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    assert (len(done), len(pending)) == (1, 1)
    assert isinstance(done.pop().exception(), Conflict)
    winner = both[tasks.index(pending.pop())]
    await winner.withdraw()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_crashed_predecessors_lease_is_waited_out(store: EtcdClient) -> None:
    lease = await store.grant(2)
    await store.put(KEY, record("crashed"), lease=lease)
    presence = presence_of(store, "i2", ttl_s=5)
    async with running(presence):
        assert await holds(store, record("i2"))


async def test_a_record_of_the_same_process_is_taken_over(store: EtcdClient) -> None:
    await store.put(KEY, record("i1", 9))
    async with running(presence_of(store, "i1")):
        assert await holds(store, record("i1"))


async def test_cancelled_while_registering_leaves_nothing_running(
    connect: Connect, new_etcd: Callable[..., EtcdServer]
) -> None:
    presence = presence_of(connect(new_etcd().address, timeout_s=60), "i1")
    task = asyncio.create_task(presence.run())
    waiter = asyncio.create_task(presence.registered())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for each in (waiter, task):
        each.cancel()
        with pytest.raises(asyncio.CancelledError):
            await each
    assert not [each for each in asyncio.all_tasks() if each.get_name().startswith("presence")]


async def test_cancelled_while_holding_leaves_the_key_to_its_lease_and_withdraw_ends_it(store: EtcdClient) -> None:
    presence = presence_of(store, "i1")
    async with running(presence) as task:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await holds(store, record("i1"))
        await presence.withdraw()
        assert await store.get(KEY) is None


async def test_withdraw_without_a_registry_is_told_and_ends(
    new_etcd: Callable[..., EtcdServer], connect: Connect
) -> None:
    server = new_etcd()
    await server.start()
    events: list[str] = []
    presence = presence_of(connect(server.address, timeout_s=1.0), "i1", events=events)
    async with running(presence) as task:
        await server.stop()
        await presence.withdraw()
        await asyncio.wait_for(task, 60)
        assert any("goes with its lease" in each for each in events)


PREFIX = "/mesh/v1/copies/a/"


async def belongings(store: EtcdClient) -> dict[str, bytes]:
    return {each.key.removeprefix(PREFIX): each.value for each in (await store.list(PREFIX)).entries if each.lease}


def of(**values: bytes) -> dict[str, bytes]:
    return {PREFIX + key: value for key, value in values.items()}


async def test_belongings_come_change_and_go_and_leave_with_the_key(store: EtcdClient) -> None:
    presence = presence_of(store, "i1", prefix=PREFIX)
    presence.publish(record("i1"), of(x=b"1", y=b"1"))
    async with running(presence):
        await eventually(lambda: _is(belongings(store), {"x": b"1", "y": b"1"}), what="all are there")
        before = {each.key: each.mod_revision for each in (await store.list(PREFIX)).entries}
        presence.publish(record("i1", 2), of(x=b"2", y=b"1", z=b"1"))
        await eventually(lambda: _is(belongings(store), {"x": b"2", "y": b"1", "z": b"1"}), what="they changed")
        assert await holds(store, record("i1", 2))
        after = {each.key: each.mod_revision for each in (await store.list(PREFIX)).entries}
        assert after[PREFIX + "y"] == before[PREFIX + "y"]
        entry = await store.get(KEY)
        assert entry is not None
        assert entry.mod_revision == after[PREFIX + "x"] == after[PREFIX + "z"]
        presence.publish(record("i1", 2), of(y=b"1"))
        await eventually(lambda: _is(belongings(store), {"y": b"1"}), what="two went")
        await presence.withdraw()
        assert await belongings(store) == {}
        assert await store.get(KEY) is None


async def test_thousands_of_belongings_are_written(store: EtcdClient) -> None:
    presence = presence_of(store, "i1", prefix=PREFIX)
    wanted = of(**{f"c{number}": b"1" for number in range(3000)})
    presence.publish(record("i1"), wanted)
    async with running(presence):
        await eventually(lambda: _is(store.count(PREFIX), 3000), what="all are there")
        presence.publish(record("i1"))
        await eventually(lambda: _is(store.count(PREFIX), 0), what="all went")


async def test_belongings_are_written_again_after_a_lost_lease_and_after_somebody_elses_hand(store: EtcdClient) -> None:
    presence = presence_of(store, "i1", ttl_s=3, prefix=PREFIX)
    presence.publish(record("i1"), of(x=b"1", y=b"1"))
    async with running(presence):
        await eventually(lambda: _is(belongings(store), {"x": b"1", "y": b"1"}), what="all are there")
        entry = await store.get(KEY)
        assert entry is not None
        await store.revoke(entry.lease)
        await eventually(lambda: _is(belongings(store), {"x": b"1", "y": b"1"}), what="they are back")
        await store.delete(PREFIX + "x")
        await eventually(lambda: _is(belongings(store), {"x": b"1", "y": b"1"}), what="x is back")
        await store.put(PREFIX + "stray", b"1")
        await eventually(lambda: _is(store.count(PREFIX), 2), what="the stray is gone")


async def test_what_a_dead_process_left_under_the_prefix_is_swept(store: EtcdClient) -> None:
    await store.put(PREFIX + "old", b"1")
    presence = presence_of(store, "i1", prefix=PREFIX)
    presence.publish(record("i1"), of(x=b"1"))
    async with running(presence):
        await eventually(lambda: _is(belongings(store), {"x": b"1"}), what="only its own are there")
        assert await store.count(PREFIX) == 1


async def test_nothing_is_written_for_a_key_that_another_process_took(store: EtcdClient, connect: Connect) -> None:
    """Whoever serves does not end for it: it waits, is not registered, and takes the key when it is free again."""
    events: list[str] = []
    presence = presence_of(store, "i1", ttl_s=2, prefix=PREFIX, events=events)
    presence.publish(record("i1"), of(x=b"1"))
    async with running(presence) as task:
        await eventually(lambda: _is(belongings(store), {"x": b"1"}), what="it is there")
        other = connect(store.config.endpoints[0], timeout_s=60)
        await other.put(KEY, record("i2"))
        presence.publish(record("i1"), of(x=b"2", y=b"2"))
        await eventually(lambda: bool(events) and not presence.held, what="it knows")
        end_s = asyncio.get_running_loop().time() + 5.0
        await eventually(lambda: asyncio.get_running_loop().time() > end_s, what="longer than a first process waits")
        assert not task.done()
        # What it was told meanwhile was never written.
        assert await belongings(store) in ({}, {"x": b"1"})
        await other.delete(KEY)
        await eventually(lambda: _is(belongings(store), {"x": b"2", "y": b"2"}), what="it is there again")
        assert presence.held


async def test_who_is_registered_is_known_by_ones_own_clock_and_told(
    new_etcd: Callable[..., EtcdServer], connect: Connect
) -> None:
    """The registry stands still: by the time the lease may have ended there, the process knows that it is not held."""
    server = new_etcd()
    await server.start()
    presence = presence_of(connect(server.address, timeout_s=30), "i1", ttl_s=2)
    told: list[bool] = []
    presence.on_change = lambda: told.append(presence.held)
    async with running(presence):
        await eventually(lambda: told == [True], what="told that it is registered")
        os.kill(server.pid, signal.SIGSTOP)
        try:
            await eventually(lambda: told == [True, False], what="told that the lease may have ended")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await eventually(lambda: presence.held, what="registered again")


async def test_a_registry_that_is_full_keeps_who_is_there(
    new_etcd: Callable[..., EtcdServer], connect: Connect
) -> None:
    """It takes no writes, and renews leases: who is registered stays, and what changed is written later."""
    server = new_etcd(quota_bytes=FULL_BYTES)
    await server.start()
    events: list[str] = []
    presence = presence_of(connect(server.address, timeout_s=60), "i1", ttl_s=2, events=events)
    other = connect(server.address, timeout_s=60)
    async with running(presence):
        await asyncio.to_thread(fill, server.address)
        presence.publish(record("i1", 2))
        await eventually(lambda: bool(events), what="told that it cannot be written")
        assert "database space exceeded" in events[0]
        end_s = asyncio.get_running_loop().time() + 5.0
        await eventually(lambda: asyncio.get_running_loop().time() > end_s, what="longer than the lease")
        assert presence.held
        assert await holds(other, record("i1"))
        assert len(events) == 1
        make_room(server)
        await eventually(lambda: holds(other, record("i1", 2)), what="written at last")


async def _is(asked: Awaitable[object], wanted: object) -> bool:
    return await asked == wanted


async def test_a_write_elsewhere_goes_along_in_the_same_transaction(store: EtcdClient) -> None:
    presence = presence_of(store, "i1", prefix="/mesh/v1/copies/a/")
    seen = await store.put("/mesh/v1/placements/m/1", b"before")
    async with running(presence):
        told = presence.along("/mesh/v1/placements/m/1", b"after", seen=seen)
        presence.change(record("i1"), {"/mesh/v1/copies/a/m/1": b"{}"})
        assert await asyncio.wait_for(told, 60)
        left, copy = await store.get("/mesh/v1/placements/m/1"), await store.get("/mesh/v1/copies/a/m/1")
        assert left is not None
        assert copy is not None
        assert left.value == b"after"
        assert left.mod_revision == copy.mod_revision
        assert (left.lease != 0, copy.lease != 0) == (False, True)
        await presence.withdraw()
        assert await store.get("/mesh/v1/placements/m/1") is not None


async def test_what_somebody_wrote_or_deleted_meanwhile_is_left_alone(store: EtcdClient) -> None:
    presence = presence_of(store, "i1", prefix="/mesh/v1/copies/a/")
    seen = await store.put("/mesh/v1/placements/gone/1", b"before")
    await store.put("/mesh/v1/placements/other/1", b"newer")
    await store.delete("/mesh/v1/placements/gone/1")
    async with running(presence):
        told = [presence.along(f"/mesh/v1/placements/{name}/1", b"mine", seen=seen) for name in ("gone", "other")]
        presence.change(record("i1"), {"/mesh/v1/copies/a/m/1": b"{}"})
        assert await asyncio.wait_for(asyncio.gather(*told), 60) == [False, False]
        await eventually(lambda: _there(store, "/mesh/v1/copies/a/m/1"), what="its own write")
        assert await store.get("/mesh/v1/placements/gone/1") is None
        other = await store.get("/mesh/v1/placements/other/1")
        assert other is not None
        assert other.value == b"newer"


async def test_however_many_go_along(store: EtcdClient) -> None:
    presence = presence_of(store, "i1", prefix="/mesh/v1/copies/a/")
    names = [f"/mesh/v1/placements/{at}/1" for at in range(150)]
    for name in names:
        seen = await store.put(name, b"before")
    async with running(presence):
        told = [presence.along(name, b"after", seen=seen) for name in names]
        presence.change(record("i1"), {f"/mesh/v1/copies/a/{at}/1": b"{}" for at in range(128)})
        assert all(await asyncio.wait_for(asyncio.gather(*told), 60))
        assert {entry.value for entry in (await store.list("/mesh/v1/placements/")).entries} == {b"after"}


async def _there(store: EtcdClient, key: str) -> bool:
    return await store.get(key) is not None
