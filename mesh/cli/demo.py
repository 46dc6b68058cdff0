"""`mesh demo`: starts a mesh, runs the demo models on real rows, kills a node meanwhile, and shows what came of it.

What is asked of the models is in `mesh.cli.demo_run`; here is the course of events and the verdict.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Final

import typer

from mesh.cli import process
from mesh.cli.tables import milliseconds, short, table
from mesh.cli.up import SAID, demo_models, unless

if TYPE_CHECKING:
    from mesh.cli.demo_run import Tally, Trial

Where = Mapping[str, AbstractSet[str]]
"""The models with a ready copy, per node id."""

START_S: Final = 120.0
STOP_S: Final = 60.0
BACK_S: Final = 60.0
"""How long a killed node may take to be there again: its lease (5 s) must end before its name is free."""


def demo() -> None:
    """Start a mesh, run models on real rows, kill a node meanwhile, and show what came of it. Under a minute."""
    process.set_logs("warning", as_json=False)
    folder = demo_models()
    ended: list[bool] = []

    async def main(stop: asyncio.Event) -> None:
        from mesh.cli.demo_run import Trial, read_data  # noqa: PLC0415 - numpy and grpc are slow to import

        data = read_data(folder.parent / "data")
        mesh = DemoMesh()
        try:
            begun_s = time.monotonic()
            say("starting a registry, a router and two nodes ...")
            started = await unless(stop, mesh.start())
            if started is None:
                return
            say(f"ready after {time.monotonic() - begun_s:.1f} s, gRPC on {started['router']['grpc']}")
            async with Trial(started["router"]["grpc"], data) as trial:
                right = await unless(stop, course(mesh, started, trial))
                if right is not None:
                    ended.append(right)
        finally:
            say("stopping ...")
            await mesh.stop()

    process.run(main, loop="asyncio")
    if not ended:
        raise typer.Exit(process.INTERRUPTED)
    if not ended[0]:
        raise typer.Exit(1)


async def crashes(trial: Trial) -> bool:
    """Crash a model beside another one, and tell what came of it; return whether that was right."""
    say("asking the model brittle for the root of -1, which ends its process, while iris is asked ...")
    crashed = await trial.crash()
    say(f"its caller was told: {short(crashed.told, 110) or 'NOTHING'}")
    say(
        f"it answered again after {crashed.back_s:.1f} s, in another process; the nodes went on, and {crashed.beside} "
        "requests for iris meanwhile"
    )
    say("")
    return crashed.right


async def course(mesh: DemoMesh, started: dict[str, Any], trial: Trial) -> bool:
    """Run everything; return whether all of it was right."""
    from mesh.cli.demo_story import HALF, MODEL, shown  # noqa: PLC0415 - numpy and grpc are slow to import

    say("")
    say("mesh explain digits, before anybody asks for it:")
    say(await trial.explained("digits"))
    say("")
    file = demo_models().parent / "pipelines" / "product-matching.yaml"
    await trial.apply(file, await asyncio.to_thread(file.read_text, encoding="utf-8"))
    say("asking iris, digits and the pipeline product-matching, row by row ...")
    await trial.warm()
    graph = await trial.watched(trial.rows())
    say("matching titles over one stream ...")
    await trial.conversation()
    say("")
    say("mesh pipelines show product-matching, while it was asked:")
    say(graph)
    say("")
    say("mesh explain product-matching:")
    say(await trial.cut())
    say("")
    held = await crashes(trial)
    say("letting the language model prose tell a story ...")
    telling = await trial.begin_story()
    before = await trial.where()
    victim = max(started["nodes"], key=lambda node: (MODEL in before.get(node["id"], ()), node["id"]))
    say(f"killing node {victim['id']} (SIGKILL), which tells it, while requests run ...")

    def kill() -> None:
        os.kill(victim["pid"], signal.SIGKILL)
        trial.story.killed.set()

    killed = await trial.under_load(kill, victim["id"], BACK_S)
    same = await trial.end_story(telling)
    report(trial, before, await trial.where())
    say("")
    say(f"the story: {shown(trial.story.text, HALF)}")
    say(
        f"it has {len(trial.story.text)} characters, and is "
        f"{'what' if same else 'NOT what'} an undisturbed run tells, character by character"
    )
    say("")
    say(
        f"node {victim['id']} was killed after {killed.before} requests of the last row; {killed.during} more were "
        f"answered before it was back, {killed.back_s:.1f} s later, and {killed.after} after that"
    )
    sent = sum(tally.sent for tally in trial.tallies)
    lost = [text for tally in trial.tallies for text in tally.lost]
    say(f"requests sent {sent}, lost {len(lost)}")
    for text in dict.fromkeys(lost):
        say(f"  lost {lost.count(text)}: {short(text, 160)}")
    for text in mesh.said:
        if text.startswith(SAID):
            say(f"  {text}")
    wrong = [tally for tally in trial.tallies if tally.accuracy < tally.least]
    for tally in wrong:
        say(f"  {tally.name}: expected at least {tally.least:.0%} right, got {tally.accuracy:.1%}")
    right = not lost and not wrong and same and held
    say("everything was right" if right else "NOT everything was right")
    return right


def report(trial: Trial, before: Where, after: Where) -> None:
    """Print the table of what was asked and answered, and where the models were before and after the kill."""

    def held(tally: Tally, where: Where) -> str:
        return ",".join(sorted(node for node, models in where.items() if set(tally.models) & models)) or "-"

    def ran_on(tally: Tally) -> str:
        return f"{held(tally, before)}, then {held(tally, after)}" if tally is trial.load else held(tally, before)

    rows = [
        (
            tally.name,
            str(tally.sent),
            str(len(tally.lost)),
            f"{tally.right}/{tally.judged}",
            f"{tally.accuracy:.1%}",
            milliseconds(tally.percentile(0.50)),
            milliseconds(tally.percentile(0.99)),
            ran_on(tally),
        )
        for tally in trial.tallies
    ]
    say("")
    say(table(("what", "requests", "lost", "right", "accuracy", "p50", "p99", "nodes"), rows))


class DemoMesh:
    """A `mesh up` in a process of its own, which ends with this one."""

    def __init__(self) -> None:
        self.said: deque[str] = deque(maxlen=20)
        """What it said of its processes."""
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None

    async def start(self) -> dict[str, Any]:
        """Start it; return its ready line. Raises `ChildFailed` with its sentence."""
        from mesh.cli.children import ChildFailed  # noqa: PLC0415 - help needs none of it

        argv = ("up", "--json", "--nodes", "2", "--grpc-port", "0", "--http-port", "0", "--exit-with-stdin")
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mesh.cli.main", *argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        assert self._process.stdout is not None
        self._listening = asyncio.create_task(self._listen(self._process), name="mesh up stderr")
        try:
            async with asyncio.timeout(START_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise ChildFailed(f"the mesh is not ready after {START_S:g} s") from None
        if not line:
            await self._listening
            why = next((text for text in self.said if text.startswith("error: ")), "it said nothing")
            raise ChildFailed(f"the mesh did not start: {why.removeprefix('error: ')}")
        found: dict[str, Any] = json.loads(line)
        return found

    async def stop(self) -> None:
        """Stop it and wait until it is gone. Idempotent."""
        if self._process is not None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(number)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(STOP_S):
                        await self._process.wait()
                        break
        if self._listening is not None:
            await self._listening

    async def _listen(self, running: asyncio.subprocess.Process) -> None:
        from mesh.cli.children import lines  # noqa: PLC0415 - help needs none of it

        assert running.stderr is not None
        async for line in lines(running.stderr):
            self.said.append(line)


def say(text: str) -> None:
    """Print one line of the demo."""
    print(text, flush=True)
