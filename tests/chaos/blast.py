"""Good models under steady load beside models that crash, exit, hang, leak, print, fork and keep the interpreter.

Run it as ``python -m tests.chaos.blast --seconds 120``; the suite runs a short one. It fails when a good model lost a
call or answered wrongly, when a process of the mesh ended or does not answer, and when a process of a model is left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from mesh_client import AsyncClient, Client, MeshClientError
from tests.chaos.bad_models import BAD, add_bad_models
from tests.chaos.good_models import TIMEOUT_S, Answers, add_good_models, load_good_models
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import Process, start_node, start_router, until
from tests.fixtures.sessions import folded
from tests.fixtures.workers import descendants

NAMES: Final = "abc"
PAUSE_S: Final = 0.005
"""Between two calls of one caller of a good model: the load is steady, and leaves the machine some room."""
BAD_PAUSE_S: Final = 0.1
CALLERS: Final = 2
"""Of each good model."""
STEPS: Final = 20

Seen = tuple[int, str]
"""A process: its number, and when it was started, as numbers are given again."""


@dataclass
class Report:
    """What was seen."""

    took_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Of each good model: how long each call took."""
    wrong: Counter[str] = field(default_factory=Counter)
    """What must not be."""
    bad: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """What callers of each bad model got."""
    recovered_s: list[float] = field(default_factory=list)
    """From each death of `crash` to the next good answer of it."""
    quarantines: Counter[str] = field(default_factory=Counter)
    held_bytes: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Resident memory of each node's own process, every second."""
    most_processes: int = 0
    stopped_s: float = 0.0
    logged_bytes: int = 0

    def lines(self) -> Iterator[str]:
        """Yield it as a person reads it."""
        for name, took_s in sorted(self.took_s.items()):
            p50, p99 = np.percentile(took_s, (50, 99)) * 1000
            yield f"good {name}: {len(took_s)} calls, p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {max(took_s):.2f} s"
        for name in BAD:
            seen = self.bad[name]
            yield f"bad {name}: {seen.total()} calls, quarantined {self.quarantines[name]} times"
            yield from (f"    {count:6d} {text}" for text, count in seen.most_common())
        if self.recovered_s:
            spread = " ".join(f"{each:.2f}" for each in sorted(self.recovered_s))
            yield f"crash answered again after s: {spread}"
        for name, held in sorted(self.held_bytes.items()):
            begin, most, end = (each / 1e6 for each in (held[0], max(held), held[-1]))
            yield f"node {name}: {begin:.0f} MB at the start, {most:.0f} MB at most, {end:.0f} MB at the end"
        yield f"at most {self.most_processes} processes below the nodes; {self.logged_bytes / 1e6:.1f} MB of logs"
        yield f"the mesh stopped in {self.stopped_s:.1f} s"
        yield from (f"WRONG {count}: {text}" for text, count in self.wrong.most_common())


@dataclass
class Mesh:
    """A router, three nodes, and every process that was ever seen below these."""

    folder: Path
    router: Process
    nodes: dict[str, Process]
    seen: set[Seen] = field(default_factory=set)

    def look(self, report: Report) -> None:
        """Note what runs and what it holds."""
        below = set[int]()
        for name, node in self.nodes.items():
            below |= descendants(node.pid)
            with contextlib.suppress(OSError):
                pages = int(Path(f"/proc/{node.pid}/statm").read_text().split()[1])
                report.held_bytes[name].append(pages * os.sysconf("SC_PAGE_SIZE"))
        self.seen |= set(_started(below))
        report.most_processes = max(report.most_processes, len(below))

    def left(self) -> list[str]:
        """Return what still runs of all that was seen."""
        return [
            f"{pid} {_command(pid)}"
            for pid, begun in _started(pid for pid, _ in self.seen)
            if (pid, begun) in self.seen
        ]

    def stop(self, report: Report) -> None:
        """Stop it as an operator does; nothing of it may be left."""
        begun_s = time.monotonic()
        for name, node in self.nodes.items():
            if not node.running:
                report.wrong[f"node {name} ended with {node.wait()}"] += 1
        processes = {"router": self.router, **self.nodes}
        for process in processes.values():
            process.send(signal.SIGTERM)
        for name, process in processes.items():
            if code := process.wait():
                report.wrong[f"{name} ended with {code} when it was stopped"] += 1
        report.stopped_s = time.monotonic() - begun_s
        for each in self.left():
            report.wrong[f"left behind: {each}"] += 1
        report.logged_bytes = sum(each.stat().st_size for each in self.folder.glob("*.log"))

    def kill(self) -> None:
        for process in (self.router, *self.nodes.values()):
            process.kill()


def _started(pids: Iterable[int]) -> Iterator[Seen]:
    """Yield those that run, with the time of their start."""
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                yield pid, fields[19]


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return "(gone)"


def write_models(repository: Path) -> None:
    """Write the good models and the bad ones."""
    repository.mkdir()
    add_good_models(repository)
    add_bad_models(repository)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Mesh]:
    """Run an etcd and a mesh of three nodes with the models, good ones loaded."""
    models = folder / "models"
    write_models(models)
    etcd = EtcdServer(folder / "etcd")
    etcd.launch_and_wait()
    registry = etcd.address
    nodes = {name: start_node(registry, name, models=models, log=folder / f"{name}.log") for name in NAMES}
    mesh = Mesh(folder, start_router(registry, log=folder / "router.log"), nodes)
    try:
        for process in (mesh.router, *nodes.values()):
            process.wait_ready()
        with Client(mesh.router.grpc, timeout_s=TIMEOUT_S) as client:
            until(lambda: len(client.nodes()) == len(NAMES), what="every node is known")
            load_good_models(client)
        yield mesh
    finally:
        mesh.kill()
        etcd.kill()


class Good:
    """Callers of the good models; each knows the right answers."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._answers = Answers()
        self.kinds: dict[str, Callable[[random.Random], AsyncIterator[bool]]] = {
            "iris": lambda random_: self._judged("iris", random_),
            "both": lambda random_: self._judged("both", random_),
            "echo": self._echoed,
            "fold": self._folded,
        }

    async def _judged(self, model: str, random_: random.Random) -> AsyncIterator[bool]:
        yield await self._answers.judged(self._client, model, random_)

    async def _echoed(self, random_: random.Random) -> AsyncIterator[bool]:
        yield await self._answers.echoed(self._client, random_)

    async def _folded(self, random_: random.Random) -> AsyncIterator[bool]:
        first = random_.randrange(1000)
        async with self._client.session("fold") as steps:
            for at, expected in enumerate(folded(range(first, first + STEPS))):
                answer = await steps.step({"x": np.array([[first + at]], np.int64)}, end=at == STEPS - 1)
                yield int(answer["y"][0, 0]) == expected

    async def call(self, name: str, number: int, until_s: float, report: Report) -> None:
        """Ask one model again and again."""
        random_ = random.Random(f"{name}{number}")
        while time.monotonic() < until_s:
            begun_s = time.monotonic()
            try:
                async for right in self.kinds[name](random_):
                    now_s = time.monotonic()
                    report.took_s[name].append(now_s - begun_s)
                    if not right:
                        report.wrong[f"good {name}: a wrong answer"] += 1
                    await asyncio.sleep(PAUSE_S)
                    begun_s = time.monotonic()
            except MeshClientError as error:
                report.wrong[f"good {name}: {type(error).__name__}: {error}"] += 1
                await asyncio.sleep(PAUSE_S)


def _kind(error: MeshClientError) -> str:
    """Return an error's text without the numbers that differ from call to call."""
    return re.sub(r"\d+(\.\d+)?", "N", f"{type(error).__name__}: {error}").partition("\n")[0][:200]


async def call_bad(client: AsyncClient, name: str, until_s: float, report: Report) -> None:
    """Ask one bad model again and again. Of `crash`, see when it answers again."""
    died_s = 0.0
    while time.monotonic() < until_s:
        given = np.array([[0.0 if died_s else 1.0]], np.float32)
        try:
            await client.infer(name, {"x": given}, timeout_s=10.0)
            report.bad[name]["(an answer)"] += 1
            if died_s:
                report.recovered_s.append(time.monotonic() - died_s)
                died_s = 0.0
        except MeshClientError as error:
            report.bad[name][_kind(error)] += 1
            if name == "crash":
                died_s = died_s or time.monotonic()
        await asyncio.sleep(BAD_PAUSE_S)


async def release(client: AsyncClient, after_s: float, report: Report) -> None:
    """Count who is quarantined; be the operator who releases it, so that it dies more often in this time."""
    since_s: dict[str, float] = {}
    while True:
        found = {each.name for each in await client.repository_index() if "quarantined" in each.reason}
        now_s = time.monotonic()
        for name in found - since_s.keys():
            report.quarantines[name] += 1
            since_s[name] = now_s
        for name in [name for name, begun_s in since_s.items() if name not in found or now_s - begun_s > after_s]:
            if name in found:
                await client.release(name)
            del since_s[name]
        await asyncio.sleep(0.5)


async def watch(mesh: Mesh, report: Report) -> None:
    """Look at the processes every second."""
    while True:
        await asyncio.to_thread(mesh.look, report)
        await asyncio.sleep(1.0)


async def _while(work: Awaitable[Any], *beside: Awaitable[None]) -> None:
    """Do `work`, and the others for as long as it takes."""
    tasks = [asyncio.ensure_future(each) for each in beside]
    try:
        await work
    finally:
        for each in tasks:
            each.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for found in ended:
        if isinstance(found, Exception):
            raise found


async def blast(mesh: Mesh, *, seconds: float, release_s: float) -> Report:
    """Ask all models for so many seconds, stop the mesh, and say what was seen."""
    report, until_s = Report(), time.monotonic() + seconds
    async with AsyncClient(mesh.router.grpc) as client, AsyncClient(mesh.router.grpc) as other:
        good = Good(client)
        calls = [good.call(name, number, until_s, report) for name in good.kinds for number in range(CALLERS)]
        calls += [call_bad(other, name, until_s, report) for name in BAD]
        await _while(asyncio.gather(*calls), watch(mesh, report), release(other, release_s, report))
        known = {each.id for each in await client.nodes() if not each.draining}
        report.wrong.update(f"node {name} is not known any more" for name in mesh.nodes.keys() - known)
    for name, node in mesh.nodes.items():
        async with AsyncClient(node.grpc, timeout_s=TIMEOUT_S) as client:
            if not await client.server_ready():
                report.wrong[f"node {name} is not ready"] += 1
    await asyncio.to_thread(mesh.look, report)
    await asyncio.to_thread(mesh.stop, report)
    return report


def main() -> None:
    """Run it and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--release-s", type=float, default=5, help="after which a quarantined model is released")
    parser.add_argument("--keep-logs", type=Path, help="a folder for the logs of the processes")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as mesh:
        report = asyncio.run(blast(mesh, seconds=flags.seconds, release_s=flags.release_s))
        if flags.keep_logs:
            flags.keep_logs.mkdir(parents=True, exist_ok=True)
            for log in Path(folder).glob("*.log"):
                shutil.copy(log, flags.keep_logs)
    print("\n".join(report.lines()))
    sys.exit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
