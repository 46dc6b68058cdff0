"""Nodes that are stopped or cut off without a word, with a healthy copy beside them and without one.

Leases are long here: nobody hears of a node's state but by its own silence, unless a test says so.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesh_client import AsyncClient, Client, InferResult, Pipeline, Stream, Unavailable
from tests.fixtures.cluster import copies
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.link import Link, Links
from tests.fixtures.mesh import Process, free_port, start_node, start_router, until
from tests.fixtures.models import python_model
from tests.fixtures.scrape import value
from tests.fixtures.sessions import folded, folding_model, story, story_model

SIGNATURE = "inputs: [{name: x, dtype: FP32, shape: [-1]}]\noutputs: [{name: y, dtype: FP32, shape: [-1]}]\n"
BOTH = "scaling: {min_copies: 2}\n"
IN_TIME_S = 20.0
"""For calls that a healthy copy answers: much longer than it takes to leave a silent node, and shorter than the half
minute after which a connection that says nothing was given up before."""
KINDS = ("stopped", "cut off")


class Mesh:
    """Two nodes behind links, each with its own, and as many routers as the test wants."""

    def __init__(self, registry: str, repository: Path, links: Links, names: str, *, lease_s: int) -> None:
        self.links: dict[str, Link] = {}
        self.nodes: dict[str, Process] = {}
        for name in names:
            port = free_port()
            link = self.links[name] = links.to(f"127.0.0.1:{port}")
            where = ("--grpc-port", str(port), "--http-port", "0", "--advertise", link.address)
            more = ("--lease-ttl-s", str(lease_s))
            self.nodes[name] = start_node(registry, name, *where, *more, models=repository)
        self.routers: list[Process] = []

    @property
    def processes(self) -> list[Process]:
        return [*self.nodes.values(), *self.routers]

    @property
    def router(self) -> Process:
        return self.routers[0]

    def begin(self, name: str, kind: str) -> None:
        if kind == "stopped":
            self.nodes[name].send(signal.SIGSTOP)
        else:
            self.links[name].cut()

    def end(self, name: str, kind: str) -> None:
        if kind == "stopped":
            self.nodes[name].send(signal.SIGCONT)
        else:
            self.links[name].heal()

    def silent(self, router: Process | None = None) -> int:
        return int(value(router or self.router, "mesh_router_silent_nodes"))


@contextmanager
def mesh(
    etcd: EtcdServer, repository: Path, *, names: str = "ab", routers: int = 1, lease_s: int = 120
) -> Iterator[tuple[Mesh, Client]]:
    with Links() as links, ExitStack() as cleaning:
        made = Mesh(etcd.address, repository, links, names, lease_s=lease_s)
        made.routers += [start_router(etcd.address) for _ in range(routers)]
        for process in made.processes:
            cleaning.callback(process.kill)
            process.wait_ready()
        with Client(made.router.grpc, timeout_s=60) as client:
            until(lambda: len(client.nodes()) == len(names), what="every node is known")
            yield made, client


def loaded(client: Client, *models: str, each: int = 2) -> None:
    for model in models:
        client.load(model)
        until(lambda model=model: len(copies(client, model)) == each, what=f"{each} copies of {model}")  # type: ignore[misc] # bound


def received(stream: Stream, count: int) -> list[InferResult]:
    found = []
    for _ in range(count):
        result = stream.receive()
        assert result is not None
        found.append(result)
    return found


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


async def keep_calling(address: str, model: str, callers: int, disturb: Callable[[], None], each: int = 20) -> None:
    """Let callers call until each was answered so often after the disturbance began; a call that fails raises."""
    begun = asyncio.Event()

    async def call(client: AsyncClient, number: int) -> None:
        after = 0
        while after < each:
            sent = np.array([number, after], np.float32)
            answer = await client.infer(model, {"x": sent}, timeout_s=IN_TIME_S)
            assert np.array_equal(answer["y"], sent)
            after += begun.is_set()

    async with AsyncClient(address) as client, asyncio.TaskGroup() as tasks:
        for number in range(callers):
            tasks.create_task(call(client, number))
        await client.infer(model, {"x": np.zeros(1, np.float32)}, timeout_s=60)
        disturb()
        begun.set()


@pytest.mark.parametrize("kind", KINDS)
def test_calls_in_flight_at_a_silent_node_are_answered_by_the_other(
    etcd: EtcdServer, repository: Path, kind: str
) -> None:
    python_model(repository, "echo", SIGNATURE + BOTH, "time.sleep(0.01); return {'y': inputs['x']}")
    with mesh(etcd, repository) as (made, client):
        loaded(client, "echo")
        asyncio.run(keep_calling(made.router.grpc, "echo", 8, lambda: made.begin("a", kind)))
        assert made.silent() == 1
        made.end("a", kind)
        until(lambda: not made.silent(), what="the node answers again")
        asyncio.run(keep_calling(made.router.grpc, "echo", 8, lambda: made.begin("b", kind)))
        made.end("b", kind)


def test_messages_of_a_stream_are_answered_by_the_other_in_their_order(etcd: EtcdServer, repository: Path) -> None:
    python_model(repository, "echo", SIGNATURE + BOTH, "time.sleep(0.01); return {'y': inputs['x']}")
    with mesh(etcd, repository) as (made, client), client.stream(timeout_s=60) as stream:
        loaded(client, "echo")
        for at in range(200):
            stream.send("echo", {"x": np.array([at], np.float32)})
            if at == 50:
                made.begin("a", "stopped")
        answers = [float(result["y"][0]) for result in received(stream, 200)]
        made.end("a", "stopped")
    assert answers == list(range(200))


@pytest.mark.parametrize("kind", KINDS)
def test_the_only_copy_is_waited_for(etcd: EtcdServer, repository: Path, kind: str) -> None:
    python_model(repository, "echo", SIGNATURE, "time.sleep(0.5); return {'y': inputs['x']}")
    with mesh(etcd, repository, names="a") as (made, client), ThreadPoolExecutor() as pool:
        loaded(client, "echo", each=1)
        sent = np.ones(1, np.float32)
        calls = [pool.submit(client.infer, "echo", {"x": sent}, timeout_s=60) for _ in range(3)]
        until(lambda: value(made.router, "mesh_router_attempts_total", model="echo") >= 3, what="all are sent")
        made.begin("a", kind)
        until(made.silent, what="the node is taken for silent")
        late = pool.submit(client.infer, "echo", {"x": sent}, timeout_s=60)
        made.end("a", kind)
        for call in (*calls, late):
            assert np.array_equal(call.result(60)["y"], sent)


def test_a_call_that_cannot_be_repeated_is_told_so_while_another_copy_is_there(
    etcd: EtcdServer, repository: Path
) -> None:
    python_model(repository, "echo", SIGNATURE + BOTH, "time.sleep(1.0); return {'y': inputs['x'][:1]}")
    with mesh(etcd, repository) as (made, client), ThreadPoolExecutor() as pool:
        loaded(client, "echo")
        large = np.ones(200_000, np.float32)
        for _ in range(8):
            client.infer("echo", {"x": np.ones(1, np.float32)})  # Now there are connections to both.
        calls = [pool.submit(client.infer, "echo", {"x": large}, timeout_s=IN_TIME_S) for _ in range(8)]
        made.begin("a", "stopped")
        failed = [call.exception(60) for call in calls]
        assert {type(error) for error in failed if error is not None} <= {Unavailable}
        assert all("node 'a'" in str(error) for error in failed if error is not None)
        made.end("a", "stopped")


def test_calls_go_elsewhere_when_their_silent_node_leaves_the_mesh(etcd: EtcdServer, repository: Path) -> None:
    """Another node has no copy of the model yet: until the first one leaves, it may yet answer."""
    python_model(repository, "echo", SIGNATURE, "time.sleep(1.0); return {'y': inputs['x']}")
    with mesh(etcd, repository, lease_s=2) as (made, client), ThreadPoolExecutor() as pool:
        loaded(client, "echo", each=1)
        (first,) = [copy.node for copy in copies(client, "echo")]
        sent = np.ones(1, np.float32)
        client.infer("echo", {"x": sent})  # Now there is a connection.
        call = pool.submit(client.infer, "echo", {"x": sent}, timeout_s=IN_TIME_S)
        until(lambda: value(made.nodes[first], "mesh_node_outstanding"), what="it runs")
        made.begin(first, "stopped")
        assert np.array_equal(call.result(60)["y"], sent)
        made.end(first, "stopped")


@pytest.mark.parametrize("kind", KINDS)
def test_sessions_go_on_at_the_other_node_and_the_silent_one_forgets_them(
    etcd: EtcdServer, repository: Path, kind: str
) -> None:
    """Through another router too, which knows nothing of the sequence and asks the node that had it."""
    folding_model(repository, "fold", yaml=BOTH)
    with mesh(etcd, repository, routers=2) as (made, client), Client(made.routers[1].grpc, timeout_s=60) as other:
        loaded(client, "fold")
        until(lambda: other.model_ready("fold"), what="the other router knows it")
        ids = [f"s{at}" for at in range(8)]

        def step(through: Client, id_: str, at: int) -> int:
            asked: dict[str, Any] = {"sequence_id": id_, "sequence_start": at == 0}
            answer = through.infer("fold", {"x": np.array([[at]], np.int64)}, parameters=asked, timeout_s=IN_TIME_S)
            return int(answer["y"][0, 0])

        expected = folded(range(8))
        for at in range(3):
            assert [step(client, id_, at) for id_ in ids] == [expected[at]] * len(ids)
        made.begin("a", kind)
        for at in range(3, 5):
            assert [step(client, id_, at) for id_ in ids] == [expected[at]] * len(ids)
        made.end("a", kind)
        until(lambda: not made.silent(), what="the node answers again")
        held = [(made.nodes[name], "mesh_node_sequences_live") for name in "ab"]
        until(lambda: [value(*each) for each in held] == [0, len(ids)], what="the node forgot what moved")
        for at in range(5, 8):
            assert [step(other, id_, at) for id_ in ids] == [expected[at]] * len(ids)


def test_sessions_of_streams_go_on_and_so_does_a_generation(etcd: EtcdServer, repository: Path) -> None:
    folding_model(repository, "fold", yaml=BOTH)
    story_model(repository, "story", pause_s=0.01, yaml=BOTH)
    with mesh(etcd, repository) as (made, client), ThreadPoolExecutor() as pool:
        loaded(client, "fold", "story")
        frozen = threading.Event()

        def fold(number: int) -> list[int]:
            found, after = [], 0
            with client.session("fold") as steps:
                for at in range(10_000):
                    found.append(int(steps.step({"x": np.array([[number + at]], np.int64)})["y"][0, 0]))
                    after += frozen.is_set()
                    if after == 20:
                        break
            return found

        def tell() -> list[int]:
            with client.stream(timeout_s=60) as stream:
                stream.send("story", {"x": np.array([[1]], np.int64)}, parameters={"most": 600})
                return [int(result["y"].ravel()[0]) for result in received(stream, 600)]

        folding = [pool.submit(fold, number) for number in range(4)]
        telling = [pool.submit(tell) for _ in range(2)]
        until(lambda: value(made.router, "mesh_router_sessions_steps_total", model="fold") > 20, what="sessions go on")
        made.begin("a", "stopped")
        frozen.set()
        for number, run in enumerate(folding):
            found = run.result(IN_TIME_S)
            assert found == folded(range(number, number + len(found)))
        assert [run.result(60) for run in telling] == [story(1, 600)] * 2
        made.end("a", "stopped")


def test_pipelines_go_on_without_the_silent_node(etcd: EtcdServer, repository: Path) -> None:
    for name in ("one", "two", "three"):
        python_model(repository, name, SIGNATURE + BOTH, "time.sleep(0.01); return {'y': inputs['x'] + 1}")
    with mesh(etcd, repository, names="abc") as (made, client), ThreadPoolExecutor() as pool:
        loaded(client, "one", "two", "three")
        pipeline = Pipeline("all")
        x = pipeline.input("x")
        for name in ("one", "two", "three"):
            x = pipeline.step(name, name, {"x": x})["y"]
        pipeline.output("y", x)
        client.apply_pipeline(pipeline)
        begun = threading.Event()

        def call(number: int) -> None:
            after = 0
            while after < 20:
                answer = client.infer("all", {"x": np.array([number], np.float32)}, timeout_s=IN_TIME_S)
                assert answer["y"].tolist() == [number + 3]
                after += begun.is_set()

        calls = [pool.submit(call, number) for number in range(4)]
        until(lambda: value(made.router, "mesh_router_requests_total", model="all") > 50, what="pipelines run")
        made.begin("a", "stopped")
        begun.set()
        for each in calls:
            each.result(60)
        made.end("a", "stopped")


@pytest.mark.parametrize("kind", ["call", "session"])
def test_clients_leave_a_router_that_is_stopped(etcd: EtcdServer, repository: Path, kind: str) -> None:
    folding_model(repository, "fold", yaml=BOTH)
    python_model(repository, "echo", SIGNATURE + BOTH, "return {'y': inputs['x']}")
    python_model(repository, "slow", SIGNATURE + BOTH, "time.sleep(5.0); return {'y': inputs['x']}")
    with mesh(etcd, repository, routers=2) as (made, client), ThreadPoolExecutor() as pool:
        loaded(client, "fold", "echo", "slow")
        sent = np.ones(1, np.float32)
        with Client(f"{made.routers[0].grpc},{made.routers[1].grpc}", timeout_s=IN_TIME_S) as both:
            assert np.array_equal(both.infer("echo", {"x": sent})["y"], sent)
            if kind == "call":
                call = pool.submit(both.infer, "slow", {"x": sent}, timeout_s=14)
                held = [(node, "mesh_node_outstanding") for node in made.nodes.values()]
                until(lambda: any(value(*each) for each in held), what="it runs")
                made.router.send(signal.SIGSTOP)
                with pytest.raises(Unavailable):
                    call.result(60)
                assert np.array_equal(both.infer("echo", {"x": sent}, timeout_s=IN_TIME_S)["y"], sent)
            else:
                with both.session("fold") as steps:
                    for at, expected in enumerate(folded(range(10))):
                        if at == 5:
                            made.router.send(signal.SIGSTOP)
                        assert int(steps.step({"x": np.array([[at]], np.int64)})["y"][0, 0]) == expected
        made.router.send(signal.SIGCONT)
