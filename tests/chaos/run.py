"""Sessions while nodes and routers are killed and drained at random: every stream against an undisturbed run.

Run it as ``python -m tests.chaos.run --seconds 120 --sessions 200``; the suite runs a short one. A failure prints the
seed of the events; what the machine does between them is its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from mesh_client import AsyncClient, Client, MeshClientError
from tests.fixtures.cluster import copies
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import Process, free_port, start_node, until
from tests.fixtures.sessions import folded, folding_model, story, story_model

COPIES: Final = "scaling: {min_copies: 3}\n"
MODELS: Final = ("fold", "large", "slow")
STEPS: Final = (5, 60)
"""Fewest and most steps of a session, or responses of a generation."""
PAUSE_S: Final = 0.2
"""Most time between two steps of a session."""
RESUME_S: Final = 90.0
ROOM: Final = 256 * 1024 * 1024


@dataclass
class Report:
    """What was seen."""

    sessions: Counter[str] = field(default_factory=Counter)
    answers: int = 0
    resumed: int = 0
    events: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    """The longest wait for one answer."""


class Mesh:
    """Two routers on fixed ports and three nodes, any of which may be down for a moment."""

    def __init__(self, registry: str, models: Path, session_bytes: int) -> None:
        self.registry, self.models, self.session_bytes = registry, models, session_bytes
        self.ports = [free_port() for _ in range(2)]
        self.nodes: dict[str, Process | None] = {}
        self.routers: dict[int, Process | None] = {}

    @property
    def address(self) -> str:
        return ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def start(self) -> None:
        for name in "abc":
            self.start_node(name)
        for at in range(len(self.ports)):
            self.start_router(at)
        with Client(self.address, timeout_s=60) as client:
            for name in MODELS:
                until(lambda name=name: client.model_ready(name), what=f"{name} is known")  # type: ignore[misc] # bound
                client.load(name)
                until(lambda name=name: len(copies(client, name)) == 3, what=f"three copies of {name}")  # type: ignore[misc] # bound

    def start_node(self, name: str) -> None:
        self.nodes[name] = start_node(self.registry, name, "--settle-s", "0.5", models=self.models).wait_ready()

    def start_router(self, at: int) -> None:
        words = ("router", "--registry", self.registry, "--grpc-port", str(self.ports[at]), "--http-port", "0")
        bounds = ("--session-bytes", str(self.session_bytes), "--settle-s", "0.2", "--drain-s", "5")
        self.routers[at] = Process(*words, *bounds, "--json-ready").wait_ready()

    def stop(self) -> None:
        for process in (*self.nodes.values(), *self.routers.values()):
            if process is not None:
                process.kill()


async def session(client: AsyncClient, model: str, random_: random.Random, report: Report) -> None:
    """Run one session and hold every answer against an undisturbed run."""
    count, first = random_.randint(*STEPS), random_.randint(0, 1000)
    expected = folded(range(first, first + count))
    async with client.session(model, resume_s=RESUME_S) as running:
        for at in range(count):
            begun_s = time.monotonic()
            inputs = {"x": np.array([[first + at]], np.int64)}
            answer = int((await running.step(inputs, end=at == count - 1))["y"][0, 0])
            report.longest_s = max(report.longest_s, time.monotonic() - begun_s)
            if answer != expected[at]:
                report.wrong.append(f"{model}: step {at} of {count} gave {answer}, expected {expected[at]}")
                return
            report.answers += 1
            await asyncio.sleep(random_.random() * PAUSE_S)
        report.resumed += running.resumed


async def generation(client: AsyncClient, model: str, random_: random.Random, report: Report) -> None:
    """Run one generation and hold every response against an undisturbed run."""
    count, first = random_.randint(*STEPS), random_.randint(0, 1000)
    expected, made = story(first, count), []
    inputs = {"x": np.array([[first]], np.int64)}
    async for result in client.generate(model, inputs, parameters={"most": count}, resume_s=RESUME_S):
        made.append(int(result["y"][0, 0]))
        report.answers += 1
    if made != expected:
        report.wrong.append(f"{model}: {len(made)} responses {made[-3:]}, expected {count} {expected[-3:]}")


KINDS: Final[dict[str, Callable[[AsyncClient, str, random.Random, Report], Awaitable[None]]]] = {
    "fold": session,
    "large": session,
    "slow": generation,
}


async def caller(mesh: Mesh, number: int, until_s: float, seed: int, report: Report) -> None:
    """Run one session after another."""
    random_ = random.Random(seed * 1000 + number)
    model = MODELS[number % len(MODELS)]
    async with AsyncClient(mesh.address) as client:
        while time.monotonic() < until_s:
            try:
                await KINDS[model](client, model, random_, report)
            except MeshClientError as error:
                report.wrong.append(f"{model}: {type(error).__name__}: {error}")
            report.sessions[model] += 1


async def disturb(mesh: Mesh, until_s: float, seed: int, report: Report) -> None:
    """Kill and drain; at least one node and one router are there at any time."""
    random_ = random.Random(seed)
    back: set[asyncio.Task[None]] = set()

    async def down(kind: str, key: str | int, how: str) -> None:
        parts: dict[str | int, Process | None] = mesh.nodes if kind == "node" else mesh.routers  # type: ignore[assignment] # by kind
        process, parts[key] = parts[key], None
        assert process is not None
        await asyncio.to_thread(process.kill if how == "kill" else process.stop)
        await asyncio.sleep(random_.random() * 2)
        await asyncio.to_thread(mesh.start_node if kind == "node" else mesh.start_router, key)  # type: ignore[arg-type] # by kind

    while time.monotonic() < until_s:
        await asyncio.sleep(0.5 + random_.random() * 2.5)
        kind = random_.choice(("node", "node", "router"))
        parts = mesh.nodes if kind == "node" else mesh.routers
        there = [key for key, process in parts.items() if process is not None]
        if len(there) < 2:
            continue
        how = random_.choice(("kill", "drain"))
        report.events[f"{how} {kind}"] += 1
        task = asyncio.create_task(down(kind, random_.choice(there), how))
        back.add(task)
        task.add_done_callback(back.discard)
    await asyncio.gather(*back)


@contextlib.contextmanager
def running(folder: Path, *, session_bytes: int = ROOM) -> Iterator[Mesh]:
    """Run an etcd and a mesh with the models, whose routers have room for so much of sessions."""
    models = folder / "models"
    folding_model(models, "fold", yaml=COPIES)
    folding_model(models, "large", "{snapshot_messages: 6}", pad=100_000, yaml=COPIES)
    story_model(models, "slow", pause_s=0.05, yaml=COPIES)
    etcd = EtcdServer(folder / "etcd")
    etcd.launch_and_wait()
    mesh = Mesh(etcd.address, models, session_bytes)
    try:
        mesh.start()
        yield mesh
    finally:
        mesh.stop()
        etcd.kill()


async def chaos(mesh: Mesh, *, seconds: float, sessions: int, seed: int) -> Report:
    """Run sessions for so many seconds, and to their ends, while parts of the mesh come and go."""
    report, until_s = Report(), time.monotonic() + seconds
    async with asyncio.TaskGroup() as tasks:
        for number in range(sessions):
            tasks.create_task(caller(mesh, number, until_s, seed, report))
        tasks.create_task(disturb(mesh, until_s, seed, report))
    return report


def main() -> None:
    """Run it and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--session-bytes", type=int, default=ROOM, help="of each router; what is more goes to nodes")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), session_bytes=flags.session_bytes) as mesh:
        report = asyncio.run(chaos(mesh, seconds=flags.seconds, sessions=flags.sessions, seed=flags.seed))
    print(
        f"seed {flags.seed}: {sum(report.sessions.values())} sessions {dict(report.sessions)}, {report.answers} "
        f"answers, {report.resumed} resumed at another router, longest wait {report.longest_s:.1f} s; "
        f"{dict(report.events)}"
    )
    for text, count in Counter(report.wrong).most_common(20):
        print(f"WRONG {count}: {text}")
    sys.exit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
