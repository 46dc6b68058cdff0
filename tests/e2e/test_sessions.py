"""Sessions on real processes: steps in order, states that outlive their node and router, generations that go on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from mesh_client import AsyncClient, Client, InvalidInput, SessionEnded, StreamError
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import Process, start_node, start_router, until
from tests.fixtures.scrape import value
from tests.fixtures.sessions import folded, folding_model, story, story_model
from tests.fixtures.tools import need
from tests.telemetry.receiver import attributes, receiving

pytestmark = pytest.mark.timeout(180)

TWO = "scaling: {min_copies: 2}\n"
MODELS = ("fold", "large", "once", "story", "slow", "counted")


def x(value: int) -> dict[str, np.ndarray]:
    return {"x": np.array([[value]], np.int64)}


@dataclass
class Mesh:
    """Two routers and the nodes a and b, each of which holds every model."""

    registry: str
    models: Path
    routers: list[Process] = field(default_factory=list)
    nodes: dict[str, Process] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return ",".join(router.grpc for router in self.routers)

    def start(self, name: str) -> None:
        old = self.nodes.get(name)
        if old is not None:
            old.kill()
        self.nodes[name] = start_node(self.registry, name, models=self.models).wait_ready()

    def whole(self) -> None:
        """Wait until every model has its two copies, whatever a test before this one did."""
        for name, node in list(self.nodes.items()):
            if not node.running:
                self.start(name)
        for at, router in enumerate(self.routers):
            if not router.running:
                self.routers[at] = start_router(self.registry).wait_ready()
        for router in self.routers:
            with Client(router.grpc, timeout_s=60) as client:
                for name in MODELS:
                    until(partial(client.model_ready, name), what=f"{name} is known")
                    client.load(name)
                until(lambda: all(held(client, name) == {"a", "b"} for name in MODELS), what="two copies of each")


def held(client: Client, name: str) -> set[str]:
    return {copy.node for copy in client.models(name)[0].copies if copy.state == "ready"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    need("etcd")
    etcd = EtcdServer(tmp_path_factory.mktemp("etcd"))
    etcd.launch_and_wait()
    models = tmp_path_factory.mktemp("models")
    folding_model(models, "fold", yaml=TWO)
    folding_model(models, "counted", yaml=TWO)
    folding_model(models, "large", "{snapshot_messages: 8}", pad=100_000, yaml=TWO)
    folding_model(models, "once", "{replayable: false}", waits=True, yaml=TWO)
    story_model(models, "story", yaml=TWO)
    story_model(models, "slow", pause_s=0.02, yaml=TWO)
    mesh = Mesh(etcd.address, models)
    with contextlib.ExitStack() as stack:
        stack.callback(etcd.kill)
        try:
            for name in "ab":
                mesh.start(name)
            mesh.routers = [start_router(etcd.address).wait_ready() for _ in range(2)]
            yield mesh
        finally:
            for process in (*mesh.nodes.values(), *mesh.routers):
                stack.callback(process.kill)


@pytest.fixture
def mesh(running: Mesh) -> Mesh:
    running.whole()
    return running


async def folds(address: str, model: str, count: int, seen: list[int], session: int) -> None:
    """Run one session of `count` steps, and hold every answer against an undisturbed run."""
    expected = folded(range(session, session + count))
    async with AsyncClient(address) as client, client.session(model) as s:
        for at in range(count):
            result = await s.step(x(session + at), end=at == count - 1)
            assert int(result["y"][0, 0]) == expected[at], f"step {at} of session {session}"
            seen[0] += 1


async def reached(seen: list[int], goal: int) -> None:
    async with asyncio.timeout(60):
        while seen[0] < goal:  # noqa: ASYNC110 - what is counted is not ours to signal
            await asyncio.sleep(0.01)


def test_steps_of_single_calls_and_of_a_stream_are_one_sequence(mesh: Mesh) -> None:
    expected = folded(range(6))
    with Client(mesh.address) as client, client.stream() as stream:
        for at in range(6):
            told = {"sequence_id": 11, "sequence_start": at == 0, "sequence_end": at == 5}
            result = (stream if at % 2 else client).infer("fold", x(at), parameters=told)
            assert int(result["y"][0, 0]) == expected[at]
            assert "session_state" not in result.parameters


def test_any_router_finds_a_sequence_that_another_began(mesh: Mesh) -> None:
    expected = folded(range(8))
    with Client(mesh.routers[0].grpc) as one, Client(mesh.routers[1].grpc) as other:
        for at in range(8):
            told: dict[str, bool | str] = {"sequence_id": "shared", "sequence_start": at == 0}
            result = (other if at % 2 else one).infer("fold", x(at), parameters=told)
            assert int(result["y"][0, 0]) == expected[at]


def test_a_stream_of_many_sequences_keeps_each_in_order(mesh: Mesh) -> None:
    rounds, sequences = 12, 40
    with Client(mesh.address) as client, client.stream() as stream:
        expected = {n: folded(range(n, n + rounds)) for n in range(sequences)}
        answers: dict[int, list[int]] = {n: [] for n in range(sequences)}
        for at in range(rounds):
            for n in range(sequences):
                told = {"sequence_id": 1000 + n, "sequence_start": at == 0, "sequence_end": at == rounds - 1}
                stream.send("fold", x(n + at), id=str(n), parameters=told)
            for _ in range(sequences):
                result = stream.receive()
                assert result is not None
                answers[int(result.id)].append(int(result["y"][0, 0]))
        assert answers == expected


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"sequence_id": 77}, "must specify the START flag"),
        ({"sequence_id": "", "sequence_start": True}, "must specify a non-zero or non-empty correlation ID"),
        ({}, "must specify a non-zero or non-empty correlation ID"),
        ({"sequence_id": 78, "sequence_start": 1}, "expected 'sequence_start' as true or false, got 1"),
        ({"sequence_id": 1.5, "sequence_start": True}, "expected 'sequence_id' as a whole number or a text, got 1.5"),
    ],
)
def test_requests_that_are_no_steps_are_refused(
    mesh: Mesh, parameters: dict[str, bool | int | float | str], said: str
) -> None:
    with Client(mesh.address) as client:
        with pytest.raises(InvalidInput, match=said):
            client.infer("fold", x(1), parameters=parameters)
        with client.stream() as stream, pytest.raises(StreamError, match=said):
            stream.infer("fold", x(1), parameters=parameters)


def test_a_batch_is_no_step(mesh: Mesh) -> None:
    rows = triton.InferInput("x", [2, 1], "INT64")
    rows.set_data_from_numpy(np.zeros((2, 1), np.int64))
    router, *_ = mesh.address.split(",")
    with triton.InferenceServerClient(router) as client, pytest.raises(InferenceServerException) as caught:
        client.infer("fold", [rows], sequence_id=79, sequence_start=True)
    assert caught.value.message() == (
        "inference request to model 'fold' must specify batch-size 1 due to requirements of sequence batcher"
    )


def test_a_step_that_fails_leaves_the_state_as_it_was(mesh: Mesh) -> None:
    expected = folded([1, 2])
    with Client(mesh.address) as client, client.session("fold") as session:
        assert int(session.step(x(1))["y"][0, 0]) == expected[0]
        with pytest.raises(StreamError, match="a step that cannot be run"):
            session.step(x(-1))
        assert int(session.step(x(2))["y"][0, 0]) == expected[1]


def test_a_session_that_is_left_is_forgotten_at_once(mesh: Mesh) -> None:
    with Client(mesh.address) as client:
        with client.session("fold", id=90) as session:
            session.step(x(1))

        def refused() -> bool:
            try:
                client.infer("fold", x(1), parameters={"sequence_id": 90})
            except InvalidInput:
                return True
            return False

        until(refused, what="the sequence is gone from its node")


@pytest.mark.parametrize("model", ["fold", "large"])
@pytest.mark.parametrize("how", ["kill", "drain"])
async def test_sessions_outlive_their_node(mesh: Mesh, model: str, how: str) -> None:
    seen, count, sessions = [0], 60, 12
    async with asyncio.TaskGroup() as tasks:
        for n in range(sessions):
            tasks.create_task(folds(mesh.routers[0].grpc, model, count, seen, n))
        await reached(seen, sessions * count // 4)
        node = mesh.nodes["a"]
        await asyncio.to_thread(node.kill if how == "kill" else node.stop)
    assert seen[0] == sessions * count


@contextlib.contextmanager
def small_router(registry: str, room: int) -> Iterator[Process]:
    """Run a router with so many bytes of room for sessions."""
    router = start_router(registry, "--session-bytes", str(room)).wait_ready()
    try:
        yield router
    finally:
        router.kill()


@pytest.mark.parametrize("how", ["kill", "drain"])
async def test_states_that_a_router_has_no_room_for_are_kept_by_another_node(mesh: Mesh, how: str) -> None:
    sessions, steps = 30, 40
    with small_router(mesh.registry, 1_000_000) as router:
        async with AsyncClient(router.grpc) as client:
            opened = [client.session("large") for _ in range(sessions)]
            for at in range(steps // 2):
                for session, s in enumerate(opened):
                    result = await s.step(x(session + at))
                    assert int(result["y"][0, 0]) == folded(range(session, session + at + 1))[-1]
            (group,) = await client.sessions()
            assert group.kept_elsewhere >= sessions // 2
            assert group.unprotected == 0
            assert group.kept_bytes <= 1_250_000
            await asyncio.to_thread(mesh.nodes["a"].kill if how == "kill" else mesh.nodes["a"].stop)
            for at in range(steps // 2, steps):
                for session, s in enumerate(opened):
                    result = await s.step(x(session + at), end=at == steps - 1)
                    assert int(result["y"][0, 0]) == folded(range(session, session + at + 1))[-1]
            (group,) = await client.sessions()
            assert (group.live, group.lost, group.kept_elsewhere) == (0, 0, 0)
            assert group.failovers >= 1 or how == "drain"


async def test_a_client_that_keeps_the_state_goes_on_where_the_router_lost_it(mesh: Mesh) -> None:
    sequences = range(16)
    with small_router(mesh.registry, 0) as router:
        async with AsyncClient(router.grpc) as client:
            sessions = [client.session("fold") for _ in sequences]

            async def plain(n: int, value: int, *, start: bool = False) -> int:
                told: dict[str, bool | str] = {"sequence_id": f"plain {n}", "sequence_start": start}
                return int((await client.infer("fold", x(value), parameters=told))["y"][0, 0])

            for n in sequences:
                await sessions[n].step(x(n))
                await plain(n, n, start=True)
            await asyncio.to_thread(mesh.nodes["a"].kill)
            lost = 0
            for n in sequences:
                assert int((await sessions[n].step(x(5)))["y"][0, 0]) == folded([n, 5])[1]
                try:
                    assert await plain(n, 5) == folded([n, 5])[1]
                except SessionEnded:
                    assert await plain(n, 5, start=True) == folded([5])[0]
                    lost += 1
            assert 0 < lost < len(sequences)
            assert sum(session.resumed for session in sessions) > 0


async def test_sessions_outlive_their_router(mesh: Mesh) -> None:
    seen, count, sessions = [0], 60, 12
    async with asyncio.TaskGroup() as tasks:
        for n in range(sessions):
            tasks.create_task(folds(mesh.address, "fold", count, seen, n))
        await reached(seen, sessions * count // 4)
        await asyncio.to_thread(mesh.routers[0].kill)
    assert seen[0] == sessions * count


async def test_a_step_that_must_not_run_twice_ends_its_session_when_its_node_dies(mesh: Mesh) -> None:
    """Sessions with nothing on its way are saved all the same: their state was told."""
    async with AsyncClient(mesh.address) as client:
        sessions = [client.session("once") for _ in range(32)]
        for session in sessions:
            await session.step(x(1))
        under_way = [asyncio.create_task(session.step(x(100))) for session in sessions[:16]]
        await asyncio.sleep(0.2)
        await asyncio.to_thread(mesh.nodes["a"].kill)
        ended = []
        for result in await asyncio.gather(*under_way, return_exceptions=True):
            if isinstance(result, SessionEnded):
                ended.append(result.message)
            else:
                assert not isinstance(result, BaseException), result
                assert int(result["y"][0, 0]) == folded([1, 100])[1]
        assert 0 < len(ended) < 16, ended
        assert all("the model's steps must not run twice" in said for said in ended), ended
        for session in sessions[16:]:
            assert int((await session.step(x(2)))["y"][0, 0]) == folded([1, 2])[1]


async def test_generations_come_as_they_are_made_and_are_batched(mesh: Mesh) -> None:
    async def one(client: AsyncClient, begin: int) -> list[int]:
        return [int(each["y"][0, 0]) async for each in client.generate("slow", x(begin), parameters={"most": 20})]

    async with AsyncClient(mesh.address) as client:
        before = (await client.model_statistics("slow")).model_stats[0].execution_count
        async with asyncio.TaskGroup() as tasks:
            made = [tasks.create_task(one(client, begin)) for begin in range(16)]
        assert [task.result() for task in made] == [story(begin, 20) for begin in range(16)]
        statistics = (await client.model_statistics("slow")).model_stats[0]
        # One at a time they would have taken 16 x 20 runs.
        assert statistics.execution_count - before < 160


async def test_a_generation_that_nobody_reads_waits_and_one_that_is_left_ends(mesh: Mesh) -> None:
    async with AsyncClient(mesh.address) as client:
        responses = client.generate("story", x(1), parameters={"most": 1_000_000_000})
        got = [int((await anext(responses))["y"][0, 0]) for _ in range(3)]
        assert got == story(1, 3)
        await responses.aclose()  # type: ignore[attr-defined] # an async generator
        nodes = [AsyncClient(node.grpc) for node in mesh.nodes.values()]
        try:
            async with asyncio.timeout(30):
                while True:
                    counts = [(await node.model_statistics("story")).model_stats[0].execution_count for node in nodes]
                    await asyncio.sleep(0.1)
                    again = [(await node.model_statistics("story")).model_stats[0].execution_count for node in nodes]
                    if counts == again:
                        break
        finally:
            for node in nodes:
                await node.close()


@pytest.mark.parametrize("whom", ["node", "router"])
async def test_generations_outlive(mesh: Mesh, whom: str) -> None:
    async def one(client: AsyncClient, begin: int, seen: list[int]) -> None:
        expected, made = story(begin, 60), []
        async for each in client.generate("slow", x(begin), parameters={"most": 60}):
            made.append(int(each["y"][0, 0]))
            assert made == expected[: len(made)]
            seen[0] += 1
        assert made == expected

    seen = [0]
    async with AsyncClient(mesh.address) as client, asyncio.TaskGroup() as tasks:
        for begin in range(8):
            tasks.create_task(one(client, begin, seen))
        await reached(seen, 100)
        victim = mesh.nodes["a"] if whom == "node" else mesh.routers[0]
        await asyncio.to_thread(victim.kill)


async def test_a_thousand_sequences_step_together(mesh: Mesh) -> None:
    """One stream each: what is sent at once runs together."""
    async with AsyncClient(mesh.address, transport="wire") as client:
        sessions = [client.session("fold") for _ in range(300)]
        for value in range(3):
            results = await asyncio.gather(*(session.step(x(value + n)) for n, session in enumerate(sessions)))
            expected = [folded(range(n, n + value + 1))[value] for n in range(len(sessions))]
            assert [int(result["y"][0, 0]) for result in results] == expected
        await asyncio.gather(*(session.close() for session in sessions))


async def test_a_router_that_drains_lets_sessions_go_on_elsewhere_at_once(mesh: Mesh) -> None:
    """Its streams would otherwise be open until it cuts them."""
    seen, count, sessions = [0], 200, 6
    async with asyncio.TaskGroup() as tasks:
        for n in range(sessions):
            tasks.create_task(folds(mesh.address, "fold", count, seen, n))
        await reached(seen, 100)
        before_s = time.monotonic()
        assert await asyncio.to_thread(mesh.routers[0].stop) == 0
        assert time.monotonic() - before_s < 20, "the streams of sessions held the router"
    assert seen[0] == sessions * count


async def test_a_session_is_one_trace_with_a_span_for_each_step(mesh: Mesh) -> None:
    caller, other = "ab" * 16, "ef" * 16
    with receiving() as (receiver, endpoint):
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        flags = ("--registry", mesh.registry, "--grpc-port", "0", "--http-port", "0", "--json-ready")
        with Process("router", *flags, env=env) as router:
            router.wait_ready()
            with Client(router.grpc, timeout_s=60) as client:
                until(lambda: client.model_ready("fold"), what="the model is known")
                for at, trace in enumerate((caller, caller, other)):
                    metadata = (("traceparent", f"00-{trace}-{'cd' * 8}-01"),)
                    told = {"sequence_id": 21, "sequence_start": at == 0, "sequence_end": at == 2}
                    client.infer("fold", x(at), parameters=told, metadata=metadata)
            assert router.stop() == 0
        spans = [span for _, span in receiver.spans if span.trace_id.hex() == caller]
    (whole,) = [span for span in spans if span.name == "session fold"]
    steps = [span for span in spans if span.name == "session step"]
    assert [span.parent_span_id for span in steps] == [whole.span_id] * 3
    assert [[link.trace_id.hex() for link in span.links] for span in steps] == [[], [], [other]]
    assert attributes(steps[0])["mesh.node"] in {"a", "b"}


def test_a_session_stays_with_the_version_that_it_began_with(mesh: Mesh) -> None:
    folding_model(mesh.models, "grows", yaml=TWO)
    with Client(mesh.address, timeout_s=60) as client:
        until(lambda: client.model_ready("grows"), what="the model is known")
        with client.session("grows") as session:
            assert int(session.step(x(1))["y"][0, 0]) == folded([1])[0]
            shutil.copytree(mesh.models / "grows" / "1", mesh.models / "grows" / "2")
            until(lambda: client.model_ready("grows", version="2"), what="version 2 is known")
            told = {"sequence_id": 31, "sequence_start": True}
            until(lambda: client.infer("grows", x(1), parameters=told).model_version == "2", what="it is the latest")
            result = session.step(x(2))
            assert (result.model_version, int(result["y"][0, 0])) == ("1", folded([1, 2])[1])


def test_live_sessions_are_listed_counted_and_shown(mesh: Mesh) -> None:
    with Client(mesh.routers[0].grpc) as client, client.session("counted") as session:
        # Of a model of this test alone: others leave sessions behind, which end by their idle time in between.
        assert not [each for each in client.sessions() if each.model == "counted"]
        for at in range(5):
            session.step(x(at))
        (now,) = [each for each in client.sessions() if each.model == "counted"]
        assert now.live == 1
        assert sum(now.nodes.values()) == 1
        assert now.steps == 5
        assert now.kept_bytes > 0
        assert value(mesh.routers[0], "mesh_router_sessions_live", model="counted") == now.live
        words = [sys.executable, "-m", "mesh.cli.main", "top", "--once", "--interval", "0.1", "--address"]
        shown = subprocess.run([*words, mesh.routers[0].grpc], capture_output=True, text=True, check=True, timeout=60)
        (line,) = [line for line in shown.stdout.splitlines() if line.startswith("counted/1")]
        assert line.split()[1] == str(now.live)
        told = subprocess.run(
            [*words, mesh.routers[0].grpc, "--json"], capture_output=True, text=True, check=True, timeout=60
        )
        assert {"nodes", "models", "sessions"} == json.loads(told.stdout).keys()
