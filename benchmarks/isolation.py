"""Isolation: what a worker process costs at a cold start, beside a busy neighbour, and in memory over many loads.

One node, not pinned: the neighbour needs a core of its own. The small ONNX model is asked one request at a time,
straight at the node, while a pure-Python model beside it is busy, and not. Memory is the node's and its processes'.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from benchmarks import models
from benchmarks.machine import children, forget_peak, memory_bytes
from benchmarks.processes import etcd, mesh, ready_line
from mesh_client import Client

MODELS: Final = 10
LARGE: Final = 10 * 1024 * 1024
START_S: Final = 120.0

_SUM: Final = """
class Model:
    def infer(self, inputs):
        return {"y": inputs["x"].sum(axis=1, keepdims=True)}
"""
_HELD: Final = """
import numpy as np

class Model:
    def load(self, context):
        self.held = np.ones(2_000_000)

    def infer(self, inputs):
        return {"y": inputs["x"].sum(axis=1, keepdims=True)}
"""
_BUSY: Final = """
import time

class Model:
    def infer(self, inputs):
        end_s, count = time.monotonic() + float(inputs["x"][0, 0]), 0
        while time.monotonic() < end_s:
            count += 1
        return {"y": inputs["x"]}
"""
_SIGNATURE: Final = (
    "inputs: [{name: x, dtype: FP32, shape: [-1, -1]}]\noutputs: [{name: y, dtype: FP32, shape: [-1, -1]}]\n"
)


@dataclass(frozen=True, slots=True)
class Place:
    """A running mesh of one node."""

    router: str
    node: str
    pid: int

    def bytes_held(self) -> int:
        """Return the resident memory of the node and of all its processes."""
        found, waiting = 0, [self.pid]
        while waiting:
            each = waiting.pop()
            with contextlib.suppress(OSError, ValueError, StopIteration):
                found += memory_bytes(each, "VmRSS")
            waiting += children(each)
        return found


def write_python(folder: Path, name: str, code: str, yaml: str = "") -> None:
    """Write a Python model with FP32 x and y of any two axes; `yaml` is what its model.yaml says besides."""
    version = folder / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(code, encoding="utf-8")
    (version.parent / "model.yaml").write_text(f"runtime: python\n{yaml}{_SIGNATURE}", encoding="utf-8")


def write_repository(folder: Path) -> None:
    """Write the models."""
    write_python(folder, "worker", _SUM)
    write_python(folder, "hosted", _SUM, "isolation: none\n")
    write_python(folder, "busy", _BUSY)
    for at in range(MODELS):
        write_python(folder, f"held{at}", _HELD)
    case = models.small()
    version = folder / case.name / "1"
    version.mkdir(parents=True)
    onnx.save(case.model, str(version / "model.onnx"))


def wait_ready(client: Client) -> None:
    """Wait until a router has heard of its node."""
    until_s = time.monotonic() + START_S
    while not client.server_ready() and time.monotonic() < until_s:
        time.sleep(0.1)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Place]:
    """Run a mesh of one node."""
    write_repository(folder / "models")
    with etcd(folder / "etcd") as registry, contextlib.ExitStack() as stack:
        words = ("--id", "a", "--models", str(folder / "models"), "--registry", registry, "--json-ready")
        node = stack.enter_context(mesh("node", *words))
        flags = ("--grpc-port", "0", "--no-http", "--json-ready", "--registry", registry)
        router = stack.enter_context(mesh("router", *flags))
        found = Place(ready_line(router)["grpc"], ready_line(node)["grpc"], node.pid)
        with Client(found.router, timeout_s=START_S) as client:
            wait_ready(client)
        yield found


def cold_starts(place: Place, runs: int) -> dict[str, float]:
    """Return the median seconds of a load, in a worker and in the node, in milliseconds."""
    found: dict[str, list[float]] = {"worker": [], "hosted": []}
    with Client(place.router, timeout_s=START_S) as client:
        for name in found:
            client.load(name)
        for _ in range(runs):
            for name, times in found.items():
                client.unload(name)
                began_s = time.perf_counter()
                client.load(name)
                times.append((time.perf_counter() - began_s) * 1e3)
    return {f"cold_{name}_ms": statistics.median(times) for name, times in found.items()}


def cycles(place: Place, count: int) -> dict[str, float]:
    """Load and unload ten models in turn; return the MB held after the first round, at most after one, and at last."""
    after: list[int] = []
    with Client(place.router, timeout_s=START_S) as client:
        for at in range(count):
            name = f"held{at % MODELS}"
            client.load(name)
            client.unload(name)
            if at % MODELS == MODELS - 1:
                after.append(_settled(place))
    return {"cycles": count, "first_mb": after[0] / 1e6, "most_mb": max(after) / 1e6, "last_mb": after[-1] / 1e6}


def _settled(place: Place) -> int:
    """Return what is held once the last worker is gone."""
    until_s = time.monotonic() + START_S
    while sum(len(children(each)) for each in children(place.pid)) > 0 and time.monotonic() < until_s:
        time.sleep(0.01)
    return place.bytes_held()


def large(place: Place, count: int) -> dict[str, float]:
    """Send requests of 10 MB one at a time; return the node's peak above rest, in requests."""
    rows = np.ones((1, LARGE // 4), np.float32)
    found = {}
    for name in ("worker", "hosted"):
        with Client(place.router, timeout_s=START_S) as client:
            client.load(name)
            with Client(place.node, timeout_s=START_S) as direct:
                direct.infer(name, {"x": rows[:, :4]})
                resting = memory_bytes(place.pid, "VmRSS")
                forget_peak(place.pid)
                for _ in range(count):
                    direct.infer(name, {"x": rows})
            found[f"large_{name}"] = (memory_bytes(place.pid, "VmHWM") - resting) / LARGE
            client.unload(name)
    return found


def neighbour(place: Place, runs: int, seconds: float) -> dict[str, float]:
    """Return the median latency of a small ONNX model, alone and beside a busy Python model, in microseconds."""
    case = models.small()
    alone: list[float] = []
    beside: list[float] = []
    with Client(place.router, timeout_s=START_S) as client, Client(place.node, timeout_s=START_S) as direct:
        client.load("busy")
        client.load(case.name)
        _p50(direct, case, 0.5)
        for _ in range(runs):
            alone.append(_p50(direct, case, seconds))
            work = np.array([[seconds + 1.0]], np.float32)
            busy = threading.Thread(target=direct.infer, args=("busy", {"x": work}))
            busy.start()
            beside.append(_p50(direct, case, seconds))
            busy.join()
        client.unload("busy")
    return {"alone_us": statistics.median(alone), "beside_us": statistics.median(beside)}


def _p50(client: Client, case: models.Case, seconds: float) -> float:
    times: list[float] = []
    until_s = time.perf_counter() + seconds
    while (began_s := time.perf_counter()) < until_s:
        client.infer(case.name, {"x": case.rows})
        times.append(time.perf_counter() - began_s)
    return statistics.median(times) * 1e6


def measure(runs: int, seconds: float, count: int) -> dict[str, float]:
    """Measure all; `count` cycles of loads, and large requests."""
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as scratch, running(Path(scratch)) as place:
        print("  cold starts", file=sys.stderr)
        found = cold_starts(place, max(5, runs * 3))
        print("  a busy neighbour", file=sys.stderr)
        found |= neighbour(place, runs, seconds)
        print(f"  {count} requests of 10 MB", file=sys.stderr)
        found |= large(place, count)
        print(f"  {count} loads", file=sys.stderr)
        return found | cycles(place, count)


def rows(found: dict[str, float]) -> list[tuple[str, str, str, str]]:
    """Return what was measured, the target and the verdict."""

    def row(what: str, shown: str, target: str, reached: bool) -> tuple[str, str, str, str]:  # noqa: FBT001 - a fact
        return what, shown, target, "reached" if reached else "MISSED"

    more_ms = found["cold_worker_ms"] - found["cold_hosted_ms"]
    slower = found["beside_us"] / found["alone_us"]
    grown = found["last_mb"] - found["first_mb"]
    return [
        row(
            "a load into a worker, and into the node",
            f"{found['cold_worker_ms']:.0f} ms, {found['cold_hosted_ms']:.0f} ms",
            "at most 50 ms more",
            more_ms <= 50,
        ),
        row(
            "small ONNX model beside a busy Python model: p50, of alone",
            f"{found['beside_us']:.0f} us, {slower:.2f}x",
            "1.3x",
            slower <= 1.3,
        ),
        *[
            row(
                f"requests of 10 MB one at a time, {where}: the node's peak",
                f"{found[f'large_{key}']:.1f}x a request",
                "3x",
                found[f"large_{key}"] <= 3,
            )
            for key, where in (("worker", "model in a worker"), ("hosted", "model in the node"))
        ],
        row(
            f"{found['cycles']:.0f} loads and unloads of {MODELS} models: MB after the first ten, most, last",
            f"{found['first_mb']:.0f}, {found['most_mb']:.0f}, {found['last_mb']:.0f}",
            "flat (10 MB)",
            grown <= 10,
        ),
    ]


if __name__ == "__main__":
    for line in rows(measure(3, 2.0, int(sys.argv[1]) if len(sys.argv) > 1 else 1000)):
        print("\t".join(line))
