"""What the leading router does about copies on its own: minimums, load, nodes that leave or die, its own death."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np
import pytest

from mesh.registry.config import RegistryConfig
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.keys import LEADER
from mesh_client import AsyncClient, Client, Unavailable
from tests.fixtures.etcd import EtcdServer, eventually
from tests.fixtures.mesh import Process, start_node, start_router, until

pytestmark = pytest.mark.timeout(300)

PYTHON = """
import time

class Model:
    def infer(self, inputs):
        time.sleep(0.05)
        return {"y": inputs["x"] + 1}
"""
TENSORS = """
runtime: python
inputs: [{name: x, dtype: FP32, shape: [-1]}]
outputs: [{name: y, dtype: FP32, shape: [-1]}]
"""
X = {"x": np.zeros(1, np.float32)}


def write(repository: Path, name: str, scaling: str = "{}") -> None:
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(PYTHON)
    (folder.parent / "model.yaml").write_text(f"{TENSORS}scaling: {scaling}\n")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@contextmanager
def cluster(
    registry: str, repository: Path, *names: str, routers: int = 1
) -> Iterator[tuple[list[Process], dict[str, Process]]]:
    with ExitStack() as stack:
        started = [stack.enter_context(start_router(registry)) for _ in range(routers)]
        logs = repository.parent / "logs"
        logs.mkdir(exist_ok=True)
        nodes = {name: start_node(registry, name, models=repository, log=logs / name) for name in names}
        for node in nodes.values():
            stack.callback(node.kill)
        for process in (*nodes.values(), *started):
            process.wait_ready()
        yield started, nodes


def holders(router: Process, model: str) -> set[str]:
    """Return the nodes on which `model` is ready."""
    with Client(router.grpc) as client:
        (found,) = client.models(model)
        return {copy.node for copy in found.copies if copy.state == "ready"}


@asynccontextmanager
async def asked(address: str, model: str, callers: int) -> AsyncIterator[list[str]]:
    """Keep `callers` calls in flight; yield what failed."""
    failed: list[str] = []
    stop = asyncio.Event()

    async def call(client: AsyncClient) -> None:
        while not stop.is_set():
            try:
                await client.infer(model, X, timeout_s=60)
            except Exception as error:  # noqa: BLE001 - every failure counts
                failed.append(f"{type(error).__name__}: {error}")

    async with AsyncClient(address) as client, asyncio.TaskGroup() as tasks:
        for _ in range(callers):
            tasks.create_task(call(client))
        try:
            yield failed
        finally:
            stop.set()


async def leading(etcd: EtcdServer, routers: list[Process]) -> Process | None:
    """Return the router that leads, None while nobody does."""
    store = EtcdClient(RegistryConfig(endpoints=(etcd.address,)))
    entry = await store.get(LEADER)
    await store.close()
    leader = entry.value.decode() if entry is not None else ""
    return next((each for each in routers if leader.endswith(f"-{each.pid}")), None)


async def when(condition: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(until, condition, what=what, deadline_s=120)


async def test_a_minimum_is_there_before_anybody_asks_and_again_after_a_node_died(
    etcd: EtcdServer, repository: Path
) -> None:
    write(repository, "two", "{min_copies: 2}")
    with cluster(etcd.address, repository, "a", "b", "c") as ((router,), nodes):
        await when(lambda: len(holders(router, "two")) == 2, "two copies are ready")
        gone = min(holders(router, "two"))
        nodes[gone].send(signal.SIGKILL)
        await when(lambda: len(holders(router, "two") - {gone}) == 2, "two copies are ready without the node that died")


async def test_copies_come_with_load_and_go_one_by_one(etcd: EtcdServer, repository: Path) -> None:
    scaling = "{target: 2, target_utilization: 1.0, window_s: 4, panic_window_s: 2, max_copies: 3}"
    write(repository, "busy", scaling)
    with cluster(etcd.address, repository, "a", "b", "c", "d") as ((router,), _):
        async with asked(router.grpc, "busy", 12) as failed:
            await when(lambda: len(holders(router, "busy")) == 3, "as many copies as it may have")
        assert failed == []
        seen = {3}

        def one() -> bool:
            seen.add(len(holders(router, "busy")))
            return min(seen) == 1

        await when(one, "one copy is left")
        assert seen == {1, 2, 3}


async def test_the_last_copy_goes_when_it_is_idle_and_the_model_says_so(etcd: EtcdServer, repository: Path) -> None:
    write(repository, "rare", "{scale_to_zero: idle, idle_s: 3, window_s: 1, panic_window_s: 1}")
    write(repository, "kept")
    with cluster(etcd.address, repository, "a") as ((router,), _), Client(router.grpc) as client:
        for name in ("rare", "kept"):
            client.infer(name, X)
        assert holders(router, "rare") == {"a"}
        await when(lambda: not holders(router, "rare"), "nobody asked for it for a while")
        assert holders(router, "kept") == {"a"}, "under pressure only, unless told otherwise"
        assert client.infer("rare", X)["y"].tolist() == [1.0]


async def test_a_call_too_short_for_the_load_is_refused_at_once_and_says_when_to_call_again(
    etcd: EtcdServer, repository: Path
) -> None:
    write(repository, "slow", "{scale_to_zero: idle, idle_s: 1, window_s: 1, panic_window_s: 1}")
    file = repository / "slow" / "1" / "model.py"
    file.write_text(
        PYTHON.replace("class Model:", "class Model:\n    def load(self, context):\n        time.sleep(5)\n")
    )
    with cluster(etcd.address, repository, "a") as ((router,), _):
        with Client(router.grpc) as client:
            client.infer("slow", X, timeout_s=60)
            await when(lambda: not holders(router, "slow"), "it is gone again")
            with pytest.raises(Unavailable, match=r"which takes about [45]\.\d s more, and this call has") as refused:
                client.infer("slow", X, timeout_s=2)
            assert refused.value.reason == "LOADING"
            assert refused.value.facts["model"] == "slow"
            assert 4 <= float(refused.value.facts["estimate_s"]) <= 6
            assert refused.value.retry_after_s is not None
        async with AsyncClient(router.grpc, transport="wire") as other:
            with pytest.raises(Unavailable) as refused:
                await other.infer("slow", X, timeout_s=1)
            assert refused.value.reason == "LOADING"
            await when(lambda: holders(router, "slow") == {"a"}, "the load went on")


async def test_a_node_that_leaves_hands_its_models_over_before_it_goes(etcd: EtcdServer, repository: Path) -> None:
    write(repository, "m", "{max_copies: 1}")
    with cluster(etcd.address, repository, "a", "b") as ((router,), nodes):
        async with asked(router.grpc, "m", 2) as failed:
            await when(lambda: bool(holders(router, "m")), "it serves")
            # Enough of a history that it is known to be in demand.
            await asyncio.sleep(3)
            (home,) = holders(router, "m")
            nodes[home].send(signal.SIGTERM)
            assert await asyncio.to_thread(nodes[home].wait) == 0
            assert holders(router, "m") == {"a", "b"} - {home}
        assert failed == []
        assert "not all models in demand were moved in time" not in (repository.parent / "logs" / home).read_text()


async def test_a_model_in_demand_is_back_before_anybody_asks_again(etcd: EtcdServer, repository: Path) -> None:
    write(repository, "m", "{max_copies: 1}")
    with cluster(etcd.address, repository, "a", "b") as ((router,), nodes):
        async with asked(router.grpc, "m", 2):
            await when(lambda: bool(holders(router, "m")), "it serves")
            await asyncio.sleep(3)
        (home,) = holders(router, "m")
        nodes[home].send(signal.SIGKILL)
        await when(lambda: holders(router, "m") == {"a", "b"} - {home}, "it is loaded on the other node unasked")


async def test_the_duties_go_on_when_the_leader_dies(etcd: EtcdServer, repository: Path) -> None:
    write(repository, "two", "{min_copies: 2}")
    with cluster(etcd.address, repository, "a", "b", "c", routers=2) as (routers, nodes):
        await when(lambda: len(holders(routers[0], "two")) == 2, "two copies are ready")
        dead = await leading(etcd, routers)
        assert dead is not None
        (left,) = [each for each in routers if each is not dead]
        dead.send(signal.SIGKILL)
        gone = min(holders(left, "two"))
        nodes[gone].send(signal.SIGKILL)
        await when(lambda: len(holders(left, "two") - {gone}) == 2, "the next leader replaced the copy")


async def test_a_router_that_slept_through_changes_serves_at_once_and_the_mesh_agrees_again(
    etcd: EtcdServer, repository: Path
) -> None:
    for name in ("moves", "two"):
        write(repository, name, "{min_copies: 2}" if name == "two" else "{max_copies: 1}")
    with cluster(etcd.address, repository, "a", "b", "c", routers=2) as (routers, nodes):
        for router in routers:
            with Client(router.grpc) as client:
                assert client.infer("moves", X)["y"].tolist() == [1.0]
        await when(lambda: len(holders(routers[0], "two")) == 2, "two copies are ready")
        leader = await leading(etcd, routers)
        assert leader is not None
        (other,) = [each for each in routers if each is not leader]
        leader.send(signal.SIGSTOP)

        async def deposed() -> bool:
            return await leading(etcd, routers) is other

        try:
            (gone,) = holders(other, "moves")
            nodes[gone].send(signal.SIGKILL)
            with Client(other.grpc, timeout_s=60) as client:
                assert client.infer("moves", X)["y"].tolist() == [1.0]
            await when(
                lambda: len(holders(other, "two") - {gone}) == 2, "two copies are ready without the node that died"
            )
            await eventually(deposed, what="the other router leads")
        finally:
            leader.send(signal.SIGCONT)
        # Its view is as old as its sleep, and so may be its belief that it leads.
        with Client(leader.grpc, timeout_s=60) as client:
            for _ in range(20):
                assert client.infer("moves", X)["y"].tolist() == [1.0]
        await when(lambda: holders(leader, "two") == holders(other, "two"), "both see the same copies")
        settled = holders(other, "two")
        await asyncio.sleep(6.0)
        assert holders(leader, "two") == holders(other, "two") == settled, "two leaders would move copies to and fro"
        assert await leading(etcd, routers) is other
