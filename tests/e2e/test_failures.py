"""Nodes, registry and models come and go while requests run. What may take time takes time; nothing is lost."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest

from mesh_client import AsyncClient, Client
from tests.fixtures import raw
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import MODELS, Process, free_port, start_node, start_router, until

ROW = np.array([[5.1, 3.5, 1.4, 0.2]], dtype=np.float32)


@dataclass
class Load:
    """What a constant load through the SDK saw."""

    answered: int = 0
    lost: list[str] = field(default_factory=list)
    _moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def count(self) -> None:
        async with self._moved:
            self.answered += 1
            self._moved.notify_all()

    async def reached(self, goal: int) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: self.answered >= goal)


@asynccontextmanager
async def load(address: str, *models: str, callers: int = 4) -> AsyncIterator[Load]:
    """Keep `callers` calls in flight; a call that fails is lost."""
    seen = Load()
    stop = asyncio.Event()

    async def call(client: AsyncClient, model: str) -> None:
        while not stop.is_set():
            try:
                result = await client.infer(model, {"x": ROW}, timeout_s=60)
                assert result["label"].tolist() == [0]
                await seen.count()
            except Exception as error:  # noqa: BLE001 - every failure is what this counts
                seen.lost.append(f"{type(error).__name__}: {error}")

    async with AsyncClient(address) as client, asyncio.TaskGroup() as tasks:
        for index in range(callers):
            tasks.create_task(call(client, models[index % len(models)]))
        try:
            yield seen
        finally:
            stop.set()


async def answers(seen: Load, more: int, *, deadline_s: float = 60) -> None:
    """Wait until `more` further calls were answered."""
    goal = seen.answered + more
    async with asyncio.timeout(deadline_s):
        await seen.reached(goal)


@contextmanager
def cluster(registry: str, *names: str) -> Iterator[tuple[Process, dict[str, Process]]]:
    """Run a router and nodes on `registry`."""
    with start_router(registry) as router:
        nodes = {name: start_node(registry, name) for name in names}
        try:
            for node in nodes.values():
                node.wait_ready()
            router.wait_ready()
            yield router, nodes
        finally:
            for node in nodes.values():
                node.kill()


def ready(router: Process, model: str) -> bool:
    """Tell whether the router would try an inference on `model`."""
    with Client(router.grpc) as client:
        return client.model_ready(model)


def holders(router: Process, model: str) -> set[str]:
    """Return the nodes on which `model` is ready."""
    with Client(router.grpc) as client:
        return {
            copy.node for each in client.models() if each.name == model for copy in each.copies if copy.state == "ready"
        }


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM], ids=lambda sign: sign.name)
async def test_a_node_that_goes_under_load_loses_no_request(etcd: EtcdServer, sign: signal.Signals) -> None:
    with cluster(etcd.address, "a", "b") as (router, nodes):
        async with load(router.grpc, "iris") as seen:
            await answers(seen, 50)
            holder = min(await asyncio.to_thread(holders, router, "iris"))
            nodes[holder].send(sign)
            await answers(seen, 200)
            assert await asyncio.to_thread(nodes[holder].wait) == (0 if sign is signal.SIGTERM else -signal.SIGKILL)
            await answers(seen, 50)
        assert seen.lost == []
        assert seen.answered >= 300


async def test_a_restarted_node_takes_part_again(etcd: EtcdServer) -> None:
    with cluster(etcd.address, "a") as (router, nodes):
        async with load(router.grpc, "iris") as seen:
            await answers(seen, 20)
            nodes["a"].kill()
            nodes["a"] = start_node(etcd.address, "a")
            await asyncio.to_thread(nodes["a"].wait_ready)
            await answers(seen, 50)
        assert seen.lost == []


async def test_the_registry_restarts_under_load_and_nothing_is_lost(etcd: EtcdServer) -> None:
    with cluster(etcd.address, "a", "b") as (router, _):
        async with load(router.grpc, "iris") as seen:
            await answers(seen, 50)
            await etcd.stop()
            await answers(seen, 200)
            await etcd.start()
            await answers(seen, 100)
            # A model that nobody held yet needs the registry to be placed: the mesh works in full again.
            async with AsyncClient(router.grpc) as client:
                image = np.zeros((1, 8, 8), dtype=np.float32)
                result = await client.infer("digits", {"image": image}, timeout_s=60)
                assert result["label"].shape == (1,)
        assert seen.lost == []


def test_the_registry_is_down_at_start_and_everybody_waits_for_it(etcd: EtcdServer, tmp_path: Path) -> None:
    etcd.kill()
    logs = tmp_path / "router.log"
    with (
        start_router(etcd.address, log=logs) as router,
        start_node(etcd.address, "a", log=tmp_path / "node.log") as node,
    ):
        until(lambda: "waiting for the registry" in logs.read_text(), what="the router says what it waits for")
        assert router.running
        assert node.running
        etcd.launch_and_wait()
        node.wait_ready()
        router.wait_ready()
        until(lambda: ready(router, "iris"), what="the router has heard of the node and its models")
        with raw.channel_to(router.grpc) as channel:
            assert raw.infer(channel, raw.request("iris")).model_name == "iris"
        assert (router.stop(), node.stop()) == (0, 0)


def test_a_second_node_with_the_same_id_is_refused_and_the_first_goes_on(etcd: EtcdServer, tmp_path: Path) -> None:
    with cluster(etcd.address, "a") as (router, _):
        log = tmp_path / "second.log"
        with start_node(etcd.address, "a", log=log) as second:
            assert second.wait() == 1
        assert "'a'" in log.read_text()
        with raw.channel_to(router.grpc) as channel:
            assert raw.infer(channel, raw.request("iris")).model_name == "iris"


async def test_many_calls_for_a_cold_model_cause_one_load(etcd: EtcdServer, tmp_path: Path) -> None:
    with cluster(etcd.address, "a", "b") as (router, _):
        async with AsyncClient(router.grpc) as client:
            results = await asyncio.gather(*(client.infer("iris", {"x": ROW}, timeout_s=60) for _ in range(50)))
        assert len(results) == 50
        assert len(await asyncio.to_thread(holders, router, "iris")) == 1


def test_a_call_that_cannot_wait_for_a_cold_model_is_told_so_and_the_load_goes_on(etcd: EtcdServer) -> None:
    with cluster(etcd.address, "a") as (router, nodes):
        nodes["a"].kill()
        with raw.channel_to(router.grpc) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                raw.infer(channel, raw.request("iris"), timeout_s=1)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            nodes["a"] = start_node(etcd.address, "a").wait_ready()
            assert raw.infer(channel, raw.request("iris")).model_name == "iris"


def test_ports_in_use_are_told_in_one_sentence(tmp_path: Path) -> None:
    with Process(
        "up", "--nodes", "1", "--models", str(MODELS / "demo"), "--grpc-port", "0", "--http-port", "0", "--json"
    ) as first:
        first.wait_ready()
        port = first.grpc.rpartition(":")[2]
        log = tmp_path / "second.log"
        with Process(
            "up", "--nodes", "1", "--models", str(MODELS / "demo"), "--grpc-port", port, "--json", log=log
        ) as second:
            assert second.wait() == 1
        assert f"cannot listen on 127.0.0.1:{port}" in log.read_text()
        assert first.stop() == 0


def test_no_process_is_left_when_the_mesh_itself_is_killed() -> None:
    import psutil

    with Process(
        "up",
        "--nodes",
        "2",
        "--models",
        str(MODELS / "demo"),
        "--grpc-port",
        str(free_port()),
        "--http-port",
        str(free_port()),
        "--json",
    ) as mesh:
        mesh.wait_ready()
        children = psutil.Process(mesh.pid).children(recursive=True)
        assert len(children) >= 3
        mesh.kill()

        def gone() -> bool:
            return not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in children)

        until(gone, what="every child of the killed mesh has ended")
