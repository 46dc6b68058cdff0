"""What a cold load costs while a node holds more and more copies: one node, one router, one etcd, small ONNX models.

``python -m benchmarks.loads``: loads models one after another until 10, 500, 1,500 and 5,000 are held, and at each of
these measures `--loads` cold calls, one at a time: p50 of the caller, and CPU of node, router and etcd per load. Beside
it what ONNX Runtime alone takes to open the same file, in a process of its own. ``--full`` gives the node no more room
than each of these, so that each load evicts a copy. ``--json`` prints one line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from benchmarks import models
from benchmarks.machine import cpu_s
from benchmarks.processes import etcd, mesh, ready_line
from benchmarks.thousands import repository_of
from mesh.core.placement.ledger import MIN_BYTES
from mesh_client import AsyncClient

AT_ONCE = 8
"""Loads on their way while a level is being reached: they are not measured."""
ALONE = """
import sys, time, onnxruntime
path, times = sys.argv[1], int(sys.argv[2])
onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
began_s, kept = time.process_time(), []
for _ in range(times):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    kept.append(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
print((time.process_time() - began_s) / times)
"""


def main() -> int:
    """Run; return the exit code."""
    given = _parser().parse_args()
    if shutil.which("etcd") is None:
        print("loads: expected etcd on the PATH; install it (apt-get install etcd-server)", file=sys.stderr)
        return 2
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        names = repository_of(repository, max(given.held) + given.loads * len(given.held))
        alone_ms = _alone_ms(repository / names[0] / "1" / "model.onnx", given.loads)
        if given.full:
            for held in given.held:
                found += _run(Path(folder) / f"etcd{held}", repository, names, [held], given.loads, room=held)
        else:
            found = _run(Path(folder) / "etcd", repository, names, given.held, given.loads, room=2 * len(names))
    if given.json:
        print(json.dumps({"onnx_runtime_ms": alone_ms, "levels": found}))
        return 0
    print(f"ONNX Runtime alone: {alone_ms:.2f} ms of CPU per load")
    print("copies held   p50 ms   CPU ms per load: node   without ONNX Runtime   router   etcd")
    for each in found:
        cpu = each["cpu_ms"]
        own = cpu["node"] - alone_ms
        row = f"{each['held']:>11,} {each['p50_ms']:>8.1f} {cpu['node']:>23.2f} {own:>22.2f}"
        print(f"{row} {cpu['router']:>8.2f} {cpu['etcd']:>6.2f}", flush=True)
    return 0


def _run(
    data: Path, repository: Path, names: list[str], levels: list[int], loads: int, *, room: int
) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        registry = stack.enter_context(etcd(data))
        flags = ("--registry", registry, "--json-ready")
        memory = ("--memory-bytes", str(room * MIN_BYTES))
        node = stack.enter_context(mesh("node", "--id", "n", "--models", str(repository), *memory, *flags))
        router = stack.enter_context(mesh("router", "--grpc-port", "0", "--no-http", "--trace-sample", "0", *flags))
        ready = [ready_line(process) for process in (node, router)]
        pids = {"node": node.pid, "router": router.pid, "etcd": _etcd_of(registry)}
        return asyncio.run(_measure(ready[-1]["grpc"], names, pids, levels, loads))


async def _measure(
    address: str, names: list[str], pids: Mapping[str, int], levels: list[int], loads: int
) -> list[dict[str, Any]]:
    rows, found, at = models.small().rows, [], 0
    async with AsyncClient(address, transport="wire") as client:

        async def load(name: str) -> float:
            began_s = time.monotonic()
            await client.infer(name, {"x": rows}, timeout_s=60)
            return time.monotonic() - began_s

        for level in levels:
            while at < level:
                some = names[at : min(level, at + AT_ONCE)]
                await asyncio.gather(*map(load, some))
                at += len(some)
            await asyncio.sleep(2.0)  # What is published late is not of the loads that are measured.
            before = {name: cpu_s(pid) for name, pid in pids.items()}
            took_s = [await load(name) for name in names[at : at + loads]]
            at += loads
            cpu = {name: (cpu_s(pid) - before[name]) / loads * 1000 for name, pid in pids.items()}
            found.append({"held": level, "p50_ms": statistics.median(took_s) * 1000, "cpu_ms": cpu})
    return found


def _etcd_of(registry: str) -> int:
    port = int(registry.rpartition(":")[2])
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "etcd" and any(each.laddr.port == port for each in process.net_connections("tcp")):
            return process.pid
    raise RuntimeError(f"no etcd listens at {registry}")


def _alone_ms(path: Path, times: int) -> float:
    """Return the CPU that opening the model takes in a process with nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(path), str(times)], capture_output=True, text=True, check=True
    )
    return float(done.stdout) * 1000


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loads", description=__doc__)
    parser.add_argument(
        "--held", type=int, nargs="+", default=[10, 500, 1500, 5000], help="copies held when it is measured"
    )
    parser.add_argument("--loads", type=int, default=60, help="loads that are measured at each")
    parser.add_argument("--full", action="store_true", help="room for just as many: each load evicts one")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
