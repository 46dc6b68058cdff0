"""A whole mesh while its parts are killed, frozen, cut off and their clocks set: every answer against the right one.

Three nodes, two routers and three etcd members, each a real process behind links that can be cut. At any time at most
one node, one router and one member are disturbed. Run it as ``python -m tests.chaos.faults --seconds 300``. It fails
at a wrong answer and a lost session; while no router is disturbed, also at a call that took over `STALL_S`, as another
copy is there, and at one that failed for more than the death of the node that ran it, or its
silence where the message was too long for another attempt.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from mesh_client import AsyncClient, Client, MeshClientError, Unavailable
from tests.chaos.good_models import TIMEOUT_S, Answers, add_good_models, load_good_models
from tests.chaos.parts import Member, Node, Part, Router
from tests.fixtures.clocks import clock_library
from tests.fixtures.link import Links
from tests.fixtures.mesh import until
from tests.fixtures.sessions import folded

COPIES: Final = "scaling: {min_copies: 2}\n"
RESUME_S: Final = 90.0
STALL_S: Final = 3.0
"""Longest time that a call may take while a copy is there that nothing disturbs."""
AFTER_S: Final = 1.0
"""How long after its end a fault is still a call's cause."""
CALLERS: Final = 2
"""Of each kind, at each router first."""
STEPS: Final = 40
KINDS: Final = ("node", "router", "etcd")
SILENT: Final = ("frozen", "cut off", "cut off from callers")
"""What makes a node say nothing to its routers. Some of `echo`'s messages are longer than those keep (128 KiB)."""


@dataclass
class Fault:
    """One disturbance, from begin to end."""

    part: str
    what: str
    begun_s: float
    ended_s: float | None = None

    def met(self, begun_s: float, ended_s: float) -> bool:
        """Tell whether a call of that time may have suffered from it."""
        return self.begun_s < ended_s and (self.ended_s is None or begun_s < self.ended_s + AFTER_S)

    def __str__(self) -> str:
        """Return it as a cause: without the part's number."""
        return f"{self.part.rstrip('0123456789')} {self.what}"


@dataclass
class Report:
    """What was seen."""

    took_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Of each kind of call, answered or not."""
    faults: list[Fault] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    """By cause and error."""
    sessions: Counter[str] = field(default_factory=Counter)
    slow: list[tuple[float, str]] = field(default_factory=list)
    """Calls that took over `STALL_S`, with their causes."""
    wrong: Counter[str] = field(default_factory=Counter)
    """What must not be."""

    def ended(self, kind: str, begun_s: float, error: MeshClientError | None) -> None:
        """Note a call that ended now."""
        now_s = time.monotonic()
        took_s = now_s - begun_s
        self.took_s[kind].append(took_s)
        met = [each for each in self.faults if each.met(begun_s, now_s)]
        causes = ", ".join(sorted(str(each) for each in met)) or "nothing"
        excused = any(each.part.startswith("router") for each in met)
        nodes = {each.what for each in met if each.part.startswith("node")}
        lost = "killed" in nodes or (kind == "echo" and not nodes.isdisjoint(SILENT))
        if took_s > STALL_S:
            self.slow.append((took_s, f"{kind} during {causes}"))
            if not excused:
                self.wrong[f"{kind}: {took_s:.1f} s during {causes}"] += 1
        if error is not None:
            self.failed[f"{causes}: {type(error).__name__}"] += 1
            if not excused and not (lost and isinstance(error, Unavailable)):
                self.wrong[f"{kind} during {causes}: {type(error).__name__}: {error}"[:300]] += 1

    def lines(self) -> Iterator[str]:
        """Yield it as a person reads it."""
        for kind, took_s in sorted(self.took_s.items()):
            p50, p99 = np.percentile(took_s, (50, 99)) * 1000
            yield f"{kind}: {len(took_s)} calls, p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {max(took_s):.2f} s"
        yield f"sessions: {dict(self.sessions)}"
        yield f"faults: {dict(Counter(str(each) for each in self.faults))}"
        yield from (f"failed {count}: {text}" for text, count in self.failed.most_common())
        yield from (f"slow {took_s:.1f} s: {text}" for took_s, text in sorted(self.slow, reverse=True)[:20])
        yield from (f"WRONG {count}: {text}" for text, count in self.wrong.most_common(30))


class Mesh:
    """The parts, and where clients find them."""

    def __init__(self, folder: Path, links: Links, lease_s: int | None) -> None:
        self.members = Member.three(folder, links)
        self.nodes = [Node(folder, links, self.members, number, lease_s) for number in range(3)]
        self.routers = [Router(folder, links, self.members, number) for number in range(2)]

    def addresses(self, first: int) -> str:
        return ",".join(self.routers[(first + at) % len(self.routers)].address for at in range(len(self.routers)))

    def start(self) -> None:
        for member in self.members:
            member.server.launch()
        until(lambda: all(each.server.healthy() for each in self.members), what="etcd has a leader")
        for part in (*self.nodes, *self.routers):
            part.start()
        with Client(self.addresses(0), timeout_s=TIMEOUT_S) as client:
            until(lambda: len(client.nodes()) == len(self.nodes), what="every node is known")
            load_good_models(client, each=2)
            for router in self.routers:
                with Client(router.address, timeout_s=TIMEOUT_S) as each:
                    until(lambda each=each: each.model_ready("both"), what="both routers know the pipeline")  # type: ignore[misc] # bound

    def stop(self) -> None:
        for part in (*self.routers, *self.nodes, *self.members):
            part.kill()


@contextlib.contextmanager
def running(folder: Path, *, lease_s: int | None = None) -> Iterator[Mesh]:
    """Run a mesh with the models, each on two nodes at least."""
    models = folder / "models"
    models.mkdir()
    add_good_models(models, COPIES)
    with Links() as links:
        mesh = Mesh(folder, links, lease_s)
        try:
            mesh.start()
            yield mesh
        finally:
            mesh.stop()


class Calls:
    """Callers who know the right answers."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._answers = Answers()
        self.kinds: dict[str, Callable[[AsyncClient, random.Random], Awaitable[None]]] = {
            "iris": lambda client, random_: self._seen("iris", self._answers.judged(client, "iris", random_)),
            "both": lambda client, random_: self._seen("both", self._answers.judged(client, "both", random_)),
            "echo": lambda client, random_: self._seen("echo", self._answers.echoed(client, random_)),
            "fold": self._folded,
        }

    async def repeat(self, mesh: Mesh, kind: str, number: int, until_s: float) -> None:
        """Call again and again; every second caller begins at the second router."""
        random_ = random.Random(f"{kind}{number}")
        async with AsyncClient(mesh.addresses(number % 2)) as client:
            while time.monotonic() < until_s:
                await self.kinds[kind](client, random_)
                await asyncio.sleep(0.02)

    async def _seen(self, kind: str, call: Awaitable[bool]) -> None:
        begun_s, failed = time.monotonic(), None
        try:
            self._right(kind, await call)
        except MeshClientError as error:
            failed = error
        self._report.ended(kind, begun_s, failed)

    def _right(self, kind: str, right: bool) -> None:
        if not right:
            self._report.wrong[f"{kind}: a wrong answer"] += 1

    async def _folded(self, client: AsyncClient, random_: random.Random) -> None:
        first = random_.randrange(1000)
        try:
            async with client.session("fold", resume_s=RESUME_S) as steps:
                for at, expected in enumerate(folded(range(first, first + STEPS))):
                    begun_s = time.monotonic()
                    answer = await steps.step({"x": np.array([[first + at]], np.int64)}, end=at == STEPS - 1)
                    self._report.ended("fold", begun_s, None)
                    self._right("fold", int(answer["y"][0, 0]) == expected)
                    await asyncio.sleep(0.02)
            self._report.sessions["whole"] += 1
        except MeshClientError as error:
            self._report.sessions["lost"] += 1
            self._report.wrong[f"a session was lost: {type(error).__name__}: {error}"[:300]] += 1


async def disturb(parts: list[Part], until_s: float, random_: random.Random, report: Report) -> None:
    """Disturb one of these parts at a time, each in a way of its own, with a rest between."""
    while time.monotonic() < until_s:
        await asyncio.sleep(1 + random_.random() * 3)
        part = random_.choice(parts)
        what = random_.choice(part.faults())
        fault = Fault(part.name, what, time.monotonic())
        report.faults.append(fault)
        await asyncio.sleep(await asyncio.to_thread(part.disturb, what, random_))
        await asyncio.to_thread(part.mend, what)
        fault.ended_s = time.monotonic()


async def chaos(mesh: Mesh, *, seconds: float, seed: int, kinds: Sequence[str] = KINDS) -> Report:
    """Call for so many seconds while parts are disturbed."""
    report, until_s = Report(), time.monotonic() + seconds
    calls = Calls(report)
    async with asyncio.TaskGroup() as tasks:
        for kind in calls.kinds:
            for number in range(2 * CALLERS):
                tasks.create_task(calls.repeat(mesh, kind, number, until_s))
        parts: dict[str, list[Part]] = {"node": [*mesh.nodes], "router": [*mesh.routers], "etcd": [*mesh.members]}
        for at, kind in enumerate(KINDS):
            if kind in kinds:
                tasks.create_task(disturb(parts[kind], until_s, random.Random(seed * 10 + at), report))
    return report


def main() -> None:
    """Run it and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--parts", nargs="+", default=KINDS, choices=KINDS, help="what is disturbed")
    parser.add_argument("--lease-s", type=int, help="of the nodes, in place of their default")
    parser.add_argument("--keep-logs", type=Path, help="a folder for the logs of the processes")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with running(Path(folder), lease_s=flags.lease_s) as mesh:
            report = asyncio.run(chaos(mesh, seconds=flags.seconds, seed=flags.seed, kinds=flags.parts))
        if flags.keep_logs:
            flags.keep_logs.mkdir(parents=True, exist_ok=True)
            for log in Path(folder).glob("*.log"):
                shutil.copy(log, flags.keep_logs)
    print(f"seed {flags.seed}; clocks are {'set' if clock_library() else 'left alone: no libfaketime'}")
    print("\n".join(report.lines()))
    sys.exit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
