"""Full load for minutes, with connections that come and go, and the memory of router and node meanwhile.

``python -m benchmarks.soak --minutes 10``: small calls, 600 KB calls and streams in turn from new connections each
round, calls cancelled in the middle among them. Prints resident memory over time; ends with 1 when it grew after the
first fifth of the time by more than a tenth, or when a call was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks import models
from benchmarks.load import INFER, STREAM
from mesh.core.errors import RemoteError
from mesh.wire.client import WireChannel
from mesh.wire.transport import Limits

ROUND_S = 5.0
"""How long a set of connections lives."""
GROWTH = 1.1
"""What the last tenth of the samples may be of those after the first fifth."""


def main() -> int:
    """Run; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    minutes: float = parser.parse_args().minutes
    cases = [models.small(), models.large()]
    with tempfile.TemporaryDirectory() as folder:
        models.write_repository(Path(folder), cases)
        command = [sys.executable, "-m", "mesh.cli.main", "up", "--nodes", "1", "--models", folder]
        command += ["--grpc-port", "0", "--http-port", "0", "--json", "--exit-with-stdin"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as mesh:
            assert mesh.stdout is not None
            ready = json.loads(mesh.stdout.readline())
            processes = {"router": ready["router"]["pid"], "node": ready["nodes"][0]["pid"]}
            lost = asyncio.run(soak(ready["router"]["grpc"], processes, minutes * 60, cases))
            assert mesh.stdin is not None
            mesh.stdin.close()
        return lost


async def soak(address: str, pids: dict[str, int], seconds: float, cases: list[models.Case]) -> int:
    """Load `address` for `seconds`; return 1 when memory grew or a call was lost."""
    watched = {name: psutil.Process(pid) for name, pid in pids.items()}
    samples: dict[str, list[float]] = {name: [] for name in watched}
    counts = {"calls": 0, "messages": 0, "cancelled": 0, "lost": 0}
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        await one_round(address, cases, counts)
        for name, process in watched.items():
            samples[name].append(process.memory_info().rss / 1e6)
        now = "  ".join(f"{name} {values[-1]:.0f} MB" for name, values in samples.items())
        print(f"{seconds - (end_s - time.monotonic()):6.0f} s  {now}  {counts}", flush=True)
    grew = [name for name, values in samples.items() if len(values) >= 10 and growth(values) > GROWTH]
    print("growth since the first fifth: " + ", ".join(f"{name} {growth(each):.2f}x" for name, each in samples.items()))
    return 1 if grew or counts["lost"] else 0


def growth(values: list[float]) -> float:
    """Return the mean of the last tenth over that of the tenth after the first fifth."""
    tenth = max(1, len(values) // 10)
    early = values[2 * tenth : 3 * tenth] or values[:1]
    return (sum(values[-tenth:]) / tenth) / (sum(early) / len(early))


async def one_round(address: str, cases: list[models.Case], counts: dict[str, int]) -> None:
    """Load through new connections for `ROUND_S` seconds."""
    until_s = time.monotonic() + ROUND_S
    channels = [WireChannel(address, limits=Limits()) for _ in range(8)]
    small, large = (case.request() for case in cases)
    workers = [calls(channel, small, until_s, counts) for channel in channels for _ in range(4)]
    workers += [calls(channel, large, until_s, counts) for channel in channels[:2]]
    workers += [messages(channel, small, until_s, counts) for channel in channels[:4]]
    await asyncio.gather(*workers)
    for channel in channels:
        await channel.close(0)


async def calls(channel: WireChannel, body: bytes, until_s: float, counts: dict[str, int]) -> None:
    """Call one after the other; give one in a hundred up in the middle."""
    while time.monotonic() < until_s:
        call = channel.unary(INFER, body, metadata=(("x-id", str(random.random())),), timeout_s=30)
        if random.random() < 0.01:
            task = asyncio.create_task(call)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            counts["cancelled"] += 1
            continue
        try:
            await call
            counts["calls"] += 1
        except RemoteError as error:
            print(error.status.name, error.message, flush=True)
            counts["lost"] += 1


async def messages(channel: WireChannel, body: bytes, until_s: float, counts: dict[str, int]) -> None:
    """Send messages on one stream, 16 in flight."""
    stream = channel.stream(STREAM, metadata=(), timeout_s=None)
    for _ in range(16):
        await stream.send(body)
    sent, received = 16, 0
    while received < sent:
        if await stream.receive() is None:
            counts["lost"] += 1
            return
        received += 1
        counts["messages"] += 1
        if time.monotonic() < until_s:
            await stream.send(body)
            sent += 1
    stream.cancel()


if __name__ == "__main__":
    sys.exit(main())
