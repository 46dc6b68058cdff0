"""Every process of a mesh is restarted, one after another, under load, and no request fails."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mesh_client import AsyncClient, Client
from tests.fixtures.etcd import EtcdServer, eventually
from tests.fixtures.mesh import Process, free_port, start_node, until

pytestmark = pytest.mark.timeout(600)

MODEL = """
import time

class Model:
    def infer(self, inputs):
        time.sleep(0.005)
        return {"y": inputs["x"] + 1}
"""
YAML = """
runtime: python
inputs: [{{name: x, dtype: FP32, shape: [-1]}}]
outputs: [{{name: y, dtype: FP32, shape: [-1]}}]
scaling: {scaling}
"""
X = {"x": np.zeros(1, np.float32)}
MODELS = {"two": "{min_copies: 2}", "one": "{max_copies: 1}", "rare": "{}"}


def write(repository: Path) -> None:
    for name, scaling in MODELS.items():
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / "model.py").write_text(MODEL)
        (repository / name / "model.yaml").write_text(YAML.format(scaling=scaling))


class Load:
    """Callers of all kinds, and what became of their requests."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stop = asyncio.Event()
        self.done: Counter[str] = Counter()
        self.failed: list[str] = []

    async def run(self) -> None:
        async with AsyncClient(self._address) as client, asyncio.TaskGroup() as tasks:
            for name, pause_s in (("two", 0.0), ("two", 0.0), ("one", 0.0), ("rare", 1.5)):
                tasks.create_task(self._call(client, name, pause_s))
            tasks.create_task(self._stream(client))

    def stop(self) -> None:
        self._stop.set()

    async def more(self, count: int = 50) -> None:
        """Return when so many more requests of each kind of caller that does not pause were answered."""
        goal = {name: self.done[name] + count for name in ("two", "one", "stream")}
        await eventually(lambda: all(self.done[name] >= wanted for name, wanted in goal.items()), what=f"{goal}")

    async def _call(self, client: AsyncClient, name: str, pause_s: float) -> None:
        while not self._stop.is_set():
            try:
                result = await client.infer(name, X, timeout_s=60)
                assert result["y"].tolist() == [1.0]
                self.done[name] += 1
            except Exception as error:  # noqa: BLE001 - every failure counts
                self.failed.append(f"{name}: {type(error).__name__}: {error}")
            await asyncio.sleep(pause_s)

    async def _stream(self, client: AsyncClient) -> None:
        while not self._stop.is_set():
            try:
                async with client.stream(timeout_s=60) as stream:
                    for _ in range(20):
                        await stream.send("two", X)
                    await stream.half_close()
                    answered = 0
                    async for result in stream:
                        assert result["y"].tolist() == [1.0]
                        answered += 1
                assert answered == 20
                self.done["stream"] += answered
            except Exception as error:  # noqa: BLE001 - every failure counts
                self.failed.append(f"stream: {type(error).__name__}: {error}")


async def test_every_process_restarts_one_after_another_and_no_request_fails(etcd: EtcdServer, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write(repository)
    ports = [free_port(), free_port()]
    running: dict[str, Process] = {}

    def start(name: str) -> Process:
        if name.startswith("router"):
            port = str(ports[int(name[-1])])
            flags = ("--registry", etcd.address, "--grpc-port", port, "--no-http", "--json-ready")
            running[name] = Process("router", *flags, log=tmp_path / f"{name}.log")
        else:
            running[name] = start_node(etcd.address, name, models=repository, log=tmp_path / f"{name}.log")
        return running[name]

    def stop_and_start(name: str) -> None:
        before = running[name]
        before.send(signal.SIGTERM)
        assert before.wait() == 0
        start(name).wait_ready()

    try:
        for name in ("a", "b", "c", "router0", "router1"):
            start(name)
        for process in running.values():
            process.wait_ready()
        with Client(f"127.0.0.1:{ports[0]}") as client:
            until(lambda: len(client.models()) == len(MODELS), what="the models are known")
        load = Load(f"ipv4:127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}")
        asking = asyncio.create_task(load.run())
        await load.more()
        # Enough of a history that models in demand are known as such.
        await asyncio.sleep(3.0)
        for name in ("a", "b", "c", "router0", "router1", "a"):
            await asyncio.to_thread(stop_and_start, name)
            await load.more()
        etcd.kill()
        await load.more()
        await asyncio.to_thread(etcd.launch_and_wait)
        await load.more()
        await asyncio.to_thread(stop_and_start, "b")
        await load.more()
        load.stop()
        await asyncio.wait_for(asking, 120)
        assert load.failed == []
        assert load.done["rare"] > 5
    finally:
        for process in running.values():
            process.kill()
