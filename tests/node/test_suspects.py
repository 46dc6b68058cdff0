"""What a node knows and tells of versions that ended processes, over a real registry."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Literal

import pytest

from mesh.core.errors import LoadFailed
from mesh.core.suspects import Death
from mesh.core.types import Isolation, ModelName, ModelVersion, NodeId, Version
from mesh.node.journal import Journal
from mesh.node.runtimes.base import Runtime
from mesh.node.runtimes.choice import Runtimes
from mesh.node.runtimes.onnx import OnnxRuntime
from mesh.node.runtimes.python import PythonRuntime
from mesh.node.runtimes.remote import RemoteRuntime
from mesh.node.suspects import Suspects
from mesh.node.workers.runtime import WorkerRuntime
from mesh.registry import records
from mesh.registry.config import RegistryConfig
from mesh.registry.embedded import EmbeddedRegistry
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.keys import model_key, suspect_key
from mesh.registry.mirror import Mirror
from mesh.telemetry.metrics import NodeMetrics

MODEL = ModelVersion(ModelName("m"), Version("1"), "python", "file:///r/m/1", "d", 1)
KEY = MODEL.name, MODEL.version
OFF = Journal(None, "a", ())


class Place:
    """A registry, its view, and the suspects of two nodes over it."""

    def __init__(self, store: EtcdClient, mirror: Mirror) -> None:
        self.store = store
        self.mirror = mirror
        self.metrics = NodeMetrics()
        self.a = Suspects(NodeId("a"), mirror=mirror, store=store, metrics=self.metrics)
        self.b = Suspects(NodeId("b"), mirror=mirror, store=store, metrics=self.metrics)

    async def deaths(self, count: int) -> None:
        await self.mirror.wait_for(lambda view: KEY in view.suspects and view.suspects[KEY].deaths == count)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    registry = EmbeddedRegistry()
    await registry.start()
    store = EtcdClient(RegistryConfig(endpoints=(registry.address,)))
    mirror = Mirror(store)
    following = asyncio.create_task(mirror.run())
    await mirror.wait_synced()
    place = Place(store, mirror)
    writing = [asyncio.create_task(each.run()) for each in (place.a, place.b)]
    yield place
    for task in (following, *writing):
        task.cancel()
    await asyncio.gather(following, *writing, return_exceptions=True)
    await store.close()
    await registry.stop()


async def test_a_death_counts_here_at_once_and_soon_on_every_node(place: Place) -> None:
    looked: list[str] = []
    place.a.on_change = lambda: looked.append("again")
    assert not place.a.must_isolate(MODEL)
    place.a.died(MODEL, Death.NODE, "segmentation fault")
    assert place.a.must_isolate(MODEL)
    assert 0 < place.a.pause_s(MODEL, time.time()) <= 1
    assert looked == ["again"]
    assert not place.b.must_isolate(MODEL)
    await place.deaths(1)
    assert place.b.must_isolate(MODEL)
    found = place.mirror.view.suspects[KEY]
    assert (found.node, found.text, found.digest) == ("a", "segmentation fault", "d")
    assert not place.b.must_isolate(replace(MODEL, digest="mended"))


async def test_deaths_on_several_nodes_at_once_are_all_counted(place: Place) -> None:
    for _ in range(5):
        place.a.died(MODEL, Death.WORKER, "out of memory")
        place.b.died(MODEL, Death.WORKER, "out of memory")
    await place.deaths(10)
    assert place.a.pause_s(MODEL, time.time()) > 5
    text = place.metrics.registry.get_sample_value(
        "mesh_node_model_deaths_total", {"model": "m", "version": "1", "process": "worker"}
    )
    assert text == 10


async def test_a_release_is_believed_though_the_node_saw_the_deaths_itself(place: Place) -> None:
    place.a.died(MODEL, Death.NODE, "segmentation fault")
    await place.deaths(1)
    await place.store.delete(suspect_key(*KEY))
    await place.mirror.wait_for(lambda view: KEY not in view.suspects)
    assert not place.a.must_isolate(MODEL)
    place.a.died(MODEL, Death.NODE, "segmentation fault")
    assert place.a.must_isolate(MODEL)
    await place.deaths(1)


async def test_files_that_were_replaced_say_nothing_against_the_new_ones(place: Place) -> None:
    mended = replace(MODEL, digest="mended")
    await place.store.put(model_key(*KEY), records.encode(mended))
    await place.mirror.wait_for(lambda view: bool(view.models))
    place.a.died(mended, Death.WORKER, "it broke")
    place.a.died(MODEL, Death.WORKER, "it broke")
    await place.deaths(1)
    assert place.mirror.view.suspects[KEY].digest == "mended"
    assert place.a.must_isolate(mended)


async def test_a_death_is_written_when_the_registry_answers_again() -> None:
    registry = EmbeddedRegistry()
    await registry.start()
    port = int(registry.address.rpartition(":")[2])
    store = EtcdClient(RegistryConfig(endpoints=(registry.address,), timeout_s=0.5))
    mirror = Mirror(store)
    suspects = Suspects(NodeId("a"), mirror=mirror, store=store, metrics=NodeMetrics())
    await registry.stop()
    writing = asyncio.create_task(suspects.run())
    suspects.died(MODEL, Death.WORKER, "it broke")
    assert suspects.must_isolate(MODEL)
    again = EmbeddedRegistry(port=port)
    await again.start()
    following = asyncio.create_task(mirror.run())
    await mirror.wait_for(lambda view: KEY in view.suspects)
    for task in (following, writing):
        task.cancel()
    await asyncio.gather(following, writing, return_exceptions=True)
    await store.close()
    await again.stop()


async def test_what_ended_a_node_is_not_loaded_into_one_again(place: Place) -> None:
    python, remote = PythonRuntime(), RemoteRuntime()
    workers = WorkerRuntime(place.a.worker_died, place.a.pause_left_s)
    runtimes = Runtimes({"python": python, "remote": remote}, place.a, OFF, workers, isolation="none")
    assert runtimes.of(MODEL) is python
    assert runtimes.of(replace(MODEL, isolation=Isolation("process"))) is workers
    place.a.died(MODEL, Death.NODE, "segmentation fault")
    assert runtimes.of(MODEL) is workers
    assert runtimes.of(replace(MODEL, runtime="remote")) is remote
    with pytest.raises(LoadFailed, match="no runtime 'fortran'"):
        runtimes.of(replace(MODEL, runtime="fortran"))


async def test_python_models_run_in_workers_unless_they_or_the_operator_say_otherwise(place: Place) -> None:
    python, onnx = PythonRuntime(), OnnxRuntime()
    workers = WorkerRuntime(place.a.worker_died, place.a.pause_left_s)
    trusted, other = replace(MODEL, isolation=Isolation("none")), replace(MODEL, runtime="onnx")

    def chosen(isolation: Literal["process", "none", "all"], model: ModelVersion) -> bool:
        kinds: dict[str, Runtime] = {"python": python, "onnx": onnx}
        return Runtimes(kinds, place.a, OFF, workers, isolation=isolation).of(model) is workers

    assert [chosen("process", each) for each in (MODEL, trusted, other)] == [True, False, False]
    assert [chosen("none", each) for each in (MODEL, trusted, other)] == [False, False, False]
    assert [chosen("all", each) for each in (MODEL, trusted, other)] == [True, True, False]
    assert chosen("none", replace(other, isolation=Isolation("process")))
