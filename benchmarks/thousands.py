"""Thousands of models on a few nodes, for real: etcd, a router, nodes, and Zipf demand for more than fits.

``python -m benchmarks.thousands``: 2,000 small ONNX models, 4 nodes with room for 200 together, two minutes. Prints how
many calls found their model loaded, how long those waited that did not, and errors. ``--kill`` takes a node away with
SIGKILL at half time and reports how long calls took until they were as quick as before. ``--json`` prints one line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models
from benchmarks.machine import cpu_s
from benchmarks.processes import etcd_counts, etcd_process, mesh, ready_line
from mesh.core.placement.ledger import MIN_BYTES
from mesh.core.types import Version
from mesh.registry.config import RegistryConfig
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.mirror import Mirror
from mesh_client import AsyncClient, MeshClientError

_V = Version("1")


@dataclass(slots=True)
class Seen:
    """What the callers saw."""

    warm_s: list[float] = field(default_factory=list)
    cold_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    ends: list[tuple[float, bool]] = field(default_factory=list)
    """(when it ended, whether it was cold), of all that were answered."""
    killed_s: float = 0.0


def main() -> int:
    """Run; return the exit code: 1 when a call failed."""
    given = _parser().parse_args()
    if shutil.which("etcd") is None:
        print("thousands: expected etcd on the PATH; install it (apt-get install etcd-server)", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        repository = Path(folder) / "models"
        names = repository_of(repository, given.models)
        registry, etcd_pid = stack.enter_context(etcd_process(Path(folder) / "etcd"))
        flags = ("--registry", registry, "--json-ready")
        each = given.room * MIN_BYTES // given.nodes
        began_s = time.monotonic()
        nodes = [
            stack.enter_context(
                mesh("node", "--id", f"n{at}", "--models", str(repository), "--memory-bytes", str(each), *flags)
            )
            for at in range(given.nodes)
        ]
        router = stack.enter_context(mesh("router", "--grpc-port", "0", "--no-http", "--trace-sample", "0", *flags))
        ready = [ready_line(process) for process in (*nodes, router)]
        started_s = time.monotonic() - began_s
        pids = {"router": [router.pid], "nodes": [node.pid for node in nodes], "etcd": [etcd_pid]}
        before, counted = {pid: cpu_s(pid) for each in pids.values() for pid in each}, etcd_counts(registry)
        seen = asyncio.run(_ask(ready[-1]["grpc"], registry, names, given, nodes[0] if given.kill else None))
        if given.kill:
            pids["nodes"].remove(nodes[0].pid)
        cpu = {name: sum(cpu_s(pid) - before[pid] for pid in each) for name, each in pids.items()}
        work = {name: count - counted.get(name, 0) for name, count in etcd_counts(registry).items()}
    found = _figures(seen, given, started_s, cpu) | {"etcd": work}
    _show(found, as_json=given.json)
    return 1 if seen.errors else 0


async def _ask(
    address: str, registry: str, names: list[str], given: argparse.Namespace, victim: subprocess.Popen[bytes] | None
) -> Seen:
    """Call until the time is over. A call is cold when the registry shows no copy that serves as it begins."""
    chance = np.random.default_rng(given.seed)
    weights = 1.0 / np.arange(1, len(names) + 1) ** given.alpha
    order = chance.permutation(len(names))
    seen, begin_s = Seen(), time.monotonic()
    end_s = begin_s + given.seconds
    rows = models.small().rows

    async def call(client: AsyncClient, own: np.random.Generator) -> None:
        cumulative = np.cumsum(weights / weights.sum())
        while time.monotonic() < end_s:
            model = names[order[int(np.searchsorted(cumulative, own.random()))]]
            started_s = time.monotonic()
            cold = (model, _V) not in mirror.view.serving
            try:
                await client.infer(model, {"x": rows}, timeout_s=60)
            except MeshClientError as error:
                seen.errors.append(f"{model}: {error.message}")
                continue
            took_s = time.monotonic() - started_s
            (seen.cold_s if cold else seen.warm_s).append(took_s)
            seen.ends.append((time.monotonic() - begin_s, cold))

    store = EtcdClient(RegistryConfig(endpoints=(registry,)))
    mirror = Mirror(store)
    following = asyncio.create_task(mirror.run())
    await mirror.wait_synced()
    async with AsyncClient(address, transport="wire") as client, asyncio.TaskGroup() as tasks:
        for _ in range(given.callers):
            tasks.create_task(call(client, np.random.default_rng(chance.integers(1 << 62))))
        if victim is not None:
            await asyncio.sleep(given.seconds / 2)
            seen.killed_s = time.monotonic() - begin_s
            victim.send_signal(signal.SIGKILL)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await store.close()
    return seen


def _figures(seen: Seen, given: argparse.Namespace, started_s: float, cpu: dict[str, float]) -> dict[str, Any]:
    warm, cold, calls = seen.warm_s, seen.cold_s, len(seen.warm_s) + len(seen.cold_s)
    found = {
        "models": given.models,
        "room": given.room,
        "nodes": given.nodes,
        "calls": calls,
        "cold": len(cold),
        "errors": len(seen.errors),
        "calls_per_s": round(calls / given.seconds, 1),
        "hit_rate": round(len(warm) / max(1, calls), 4),
        "warm_p50_ms": _ms(warm, 50),
        "warm_p99_ms": _ms(warm, 99),
        "cold_p50_ms": _ms(cold, 50),
        "cold_p99_ms": _ms(cold, 99),
        "started_s": round(started_s, 1),
        "cpu_s": {name: round(value, 1) for name, value in cpu.items()},
        "first_errors": seen.errors[:5],
    }
    if seen.killed_s:
        found["recovered_s"] = _recovered_s(seen)
    return found


def _recovered_s(seen: Seen) -> float:
    """Return the seconds from the kill until the share of cold calls was what it had been, over windows of a second."""

    def share(since_s: float, until_s: float) -> float:
        inside = [cold for at_s, cold in seen.ends if since_s <= at_s < until_s]
        return sum(inside) / max(1, len(inside))

    usual = share(seen.killed_s / 2, seen.killed_s)
    at_s, last_s = seen.killed_s, seen.ends[-1][0]
    while at_s < last_s and share(at_s, at_s + 1.0) > 1.25 * usual + 0.02:
        at_s += 0.25
    return round(at_s - seen.killed_s, 2)


def _ms(times_s: list[float], percentile: float) -> float:
    return round(float(np.percentile(times_s, percentile)) * 1000, 2) if times_s else 0.0


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))
        return
    room = f"{found['nodes']} nodes with room for {found['room']}"
    print(f"{found['models']:,} models, {room}; started in {found['started_s']} s")
    rate = f"{found['calls_per_s']}/s, {found['errors']} errors"
    print(f"{found['calls']:,} calls, {rate}, hit rate {found['hit_rate']:.3f}")
    print(f"loaded:     p50 {found['warm_p50_ms']} ms, p99 {found['warm_p99_ms']} ms")
    print(f"cold start: p50 {found['cold_p50_ms']} ms, p99 {found['cold_p99_ms']} ms")
    print("CPU seconds: " + ", ".join(f"{name} {used}" for name, used in found["cpu_s"].items()))
    cold = max(1, found["cold"])
    print(
        f"for each of {cold:,} cold calls: "
        + ", ".join(f"{v / cold * 1000:.2f} ms {n}" for n, v in found["cpu_s"].items())
    )
    print("etcd, for each: " + ", ".join(f"{count / cold:.2f} {name}" for name, count in found["etcd"].items()))
    if "recovered_s" in found:
        print(f"a node was killed; models were found loaded as often as before after {found['recovered_s']} s")
    for error in found["first_errors"]:
        print(f"failed: {error}")


def repository_of(folder: Path, count: int) -> list[str]:
    """Write `count` models of one kind; return their names."""
    names = [f"mlp-{number:05}" for number in range(count)]
    data = models.small().model.SerializeToString()
    for name in names:
        version = folder / name / "1"
        version.mkdir(parents=True)
        (version / "model.onnx").write_bytes(data)
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="thousands", description=__doc__)
    parser.add_argument("--models", type=int, default=2000)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--room", type=int, default=200, help="models that fit, over all nodes")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--callers", type=int, default=8, help="calls in flight")
    parser.add_argument("--alpha", type=float, default=1.0, help="Zipf's exponent")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kill", action="store_true", help="kill a node at half time")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
