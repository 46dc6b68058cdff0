"""One leader at a time, and another soon after the first is gone."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from mesh.registry.etcd_client import EtcdClient
from mesh.registry.keys import LEADER
from mesh.registry.leader import Election
from tests.fixtures.etcd import EtcdServer, Registry, eventually
from tests.fixtures.mesh import ROOT

Connect = Callable[..., EtcdClient]


@asynccontextmanager
async def running(*elections: Election) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each.run()) for each in elections]
    try:
        yield
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def leads(election: Election) -> None:
    await asyncio.wait_for(election.wait_for(leader=True), 60)


async def test_a_lone_candidate_leads_and_says_so(store: EtcdClient) -> None:
    changes: list[bool] = []
    election = Election(store, LEADER, "one", 5, on_change=changes.append)
    assert not election.is_leader
    async with running(election):
        await leads(election)
        entry = await store.get(LEADER)
        assert entry is not None
        assert (entry.value, entry.lease != 0) == (b"one", True)
        assert repr(election) == f"<Election {LEADER} candidate=one leader=True>"
        await election.resign()
        assert await store.get(LEADER) is None
    assert changes == [True, False]


async def test_of_several_candidates_one_leads_and_the_next_follows_its_resignation(store: EtcdClient) -> None:
    elections = [Election(store, LEADER, str(each), 5) for each in range(4)]
    async with running(*elections):
        left = set(elections)
        while left:
            await eventually(lambda: any(each.is_leader for each in left), what="one leads")
            (leader,) = [each for each in elections if each.is_leader]
            left.discard(leader)
            await leader.resign()
            assert not leader.is_leader


CANDIDATE = """
import asyncio, sys
from mesh.registry.config import RegistryConfig
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.leader import Election

async def main():
    client = EtcdClient(RegistryConfig(endpoints=(sys.argv[1],), timeout_s=30))
    election = Election(client, sys.argv[2], "victim", 2, on_change=lambda leader: print(leader, flush=True))
    await election.run()

asyncio.run(main())
"""


async def test_when_the_leader_is_killed_another_leads(shared_etcd: EtcdServer, connect: Connect) -> None:
    key = f"{LEADER}-killed"
    victim = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CANDIDATE, shared_etcd.address, key), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    store = connect(shared_etcd.address)
    second = Election(store, key, "second", 2)
    try:
        assert victim.stdout is not None
        assert await victim.stdout.readline() == b"True\n"
        async with running(second):
            entry = await store.get(key)
            assert entry is not None
            assert entry.value == b"victim"
            assert not second.is_leader
            victim.kill()
            await leads(second)
            await second.resign()
    finally:
        with suppress(ProcessLookupError):
            victim.kill()
        await victim.wait()


async def test_a_leader_that_cannot_renew_steps_down_before_its_lease_can_end_elsewhere(
    restartable: Registry, connect: Connect
) -> None:
    ttl_s = 4
    election = Election(connect(restartable.address, timeout_s=1), LEADER, "one", ttl_s)
    async with running(election):
        await leads(election)
        await restartable.stop()
        stopped_s = time.monotonic()
        await asyncio.wait_for(election.wait_for(leader=False), 60)
        # No renewal was sent after the stop, so the lease runs out at the latest a time to live after it.
        assert election._until_s <= stopped_s + ttl_s
        await restartable.start()
        await leads(election)
        await election.resign()


async def test_a_leader_whose_key_was_deleted_by_hand_steps_down(store: EtcdClient) -> None:
    changes: list[bool] = []
    election = Election(store, LEADER, "one", 5, on_change=changes.append)
    async with running(election):
        await leads(election)
        await store.delete(LEADER)
        await eventually(lambda: changes[:3] == [True, False, True], what="stepped down and led again")


async def test_a_leader_whose_lease_was_revoked_steps_down_and_campaigns_again(store: EtcdClient) -> None:
    changes: list[bool] = []
    election = Election(store, LEADER, "one", 5, on_change=changes.append)
    async with running(election):
        await leads(election)
        entry = await store.get(LEADER)
        assert entry is not None
        await store.revoke(entry.lease)
        await eventually(lambda: changes[:3] == [True, False, True], what="stepped down and led again")


async def test_leading_ends_with_its_time_even_when_the_loop_does_not_run(store: EtcdClient) -> None:
    election = Election(store, LEADER, "one", 60)
    async with running(election):
        await leads(election)
        election._until_s = time.monotonic()
        assert not election.is_leader


async def test_cancelled_while_campaigning_leading_and_waiting(store: EtcdClient) -> None:
    leader, follower = Election(store, LEADER, "one", 5), Election(store, LEADER, "two", 5)
    first = asyncio.create_task(leader.run())
    await leads(leader)
    second = asyncio.create_task(follower.run())
    waiter = asyncio.create_task(follower.wait_for(leader=True))
    await asyncio.sleep(0)
    for each in (waiter, second, first):
        each.cancel()
        with pytest.raises(asyncio.CancelledError):
            await each
    assert not leader.is_leader
    assert not [each for each in asyncio.all_tasks() if each.get_name().startswith("election")]
    await leader.resign()
    assert await store.get(LEADER) is None
