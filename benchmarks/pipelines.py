"""Pipelines: what a chain of three costs in one hop and over three nodes, beside the same calls made by a client.

In one hop, servers have one core and the load another, and CPU is compared. Over three nodes the servers of the mesh
use all cores, as on a machine of one's own, and throughput is compared, each side with as many requests in flight as
suit it best. Figures are medians of the runs; peers take turns. Every answer of a run is as long as one that was
checked (`benchmarks.load`); what the tritonclient chains answer is not looked at.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import grpc
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.calls import Job
from benchmarks.chained import WIDTH
from benchmarks.load import INFER, STREAM, send
from benchmarks.machine import LOAD_CORE, SERVER_CORE, cpu_s, pin, pinned
from benchmarks.models import Case
from benchmarks.peers.base import Unavailable
from benchmarks.peers.mlserver import MlServer
from benchmarks.processes import etcd, mesh, ready_line
from mesh.api.messages import ModelInferRequest, ModelInferResponse, control
from mesh_client import Client

STEPS: Final = ("s1", "s2", "s3")
WAITS: Final = {"w1": 0.002, "w2": 0.004, "w3": 0.002}
"""Steps that wait, as for a GPU, and for how many seconds: what a stream's stages can do side by side."""
LARGE: Final = 1_000_000
"""Elements of 4 bytes between two steps."""
THREADS: Final = (8, 32)
"""Of a Python client that keeps more than one chain in flight: they share its interpreter."""
START_S: Final = 120.0


def weights(name: str) -> onnx.ModelProto:
    """Return a layer of WIDTH x WIDTH with a ReLU."""
    random = np.random.default_rng(len(name) + ord(name[-1]))
    w = numpy_helper.from_array((random.normal(size=(WIDTH, WIDTH)) / 8).astype(np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])],
        [w],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def write_repository(folder: Path) -> None:
    """Write the models, one of each kind for each node, by labels."""
    signature = "inputs: [{name: x, dtype: FP32, shape: [-1]}]\noutputs: [{name: y, dtype: FP32, shape: [-1]}]\n"
    for at, name in enumerate(STEPS):
        made = _folder(folder, name, f"runtime: onnx\nmax_batch_size: 64\nnode_labels: {{n{at}: 'yes'}}\n")
        onnx.save(weights(name), str(made / "model.onnx"))
    for at, (name, seconds) in enumerate(WAITS.items()):
        made = _folder(folder, name, f"runtime: python\nnode_labels: {{n{at}: 'yes'}}\n{signature}")
        _python(made, f"time.sleep({seconds}); return {{'y': inputs['x']}}")
    grow = f"return {{'y': numpy.full({LARGE}, inputs['x'][0], numpy.float32)}}"
    for at, (name, body) in enumerate({"grow": grow, "shrink": "return {'y': inputs['x'][:1]}"}.items()):
        made = _folder(folder, name, f"runtime: python\nnode_labels: {{n{at}: 'yes'}}\n{signature}")
        _python(made, body)


def _folder(root: Path, name: str, yaml: str) -> Path:
    made = root / name / "1"
    made.mkdir(parents=True)
    (made.parent / "model.yaml").write_text(yaml, encoding="utf-8")
    return made


def _python(folder: Path, body: str) -> None:
    code = f"import time\nimport numpy\n\nclass Model:\n    def infer(self, inputs, request):\n        {body}\n"
    (folder / "model.py").write_text(code, encoding="utf-8")


@dataclass
class Running:
    """A mesh, its pipelines applied and every model loaded."""

    address: str
    router: int
    nodes: list[int]

    def cpu_s(self) -> float:
        """Return the CPU seconds of its processes."""
        return sum(cpu_s(pid) for pid in (self.router, *self.nodes))

    def moved_bytes(self) -> int:
        """Return what the router has read and written, as the kernel counts it."""
        lines = Path(f"/proc/{self.router}/io").read_text(encoding="ascii").splitlines()
        counts = dict(line.split(": ") for line in lines)
        return int(counts["rchar"]) + int(counts["wchar"])


CHAINS: Final = {"tiny": STEPS, "waiting": tuple(WAITS), "large": ("grow", "shrink")}


@contextlib.contextmanager
def running(folder: Path, nodes: int) -> Iterator[Running]:
    """Run a mesh of so many nodes; each has the labels of its models, one node all of them."""
    with etcd(folder / "etcd") as registry, contextlib.ExitStack() as stack:
        write_repository(folder / "models")
        processes = []
        for at in range(nodes):
            mine = range(3) if nodes == 1 else (at,)
            labels = [part for each in mine for part in ("--label", f"n{each}=yes")]
            words = ("--id", f"node-{at}", *labels, "--models", str(folder / "models"), "--registry", registry)
            processes.append(stack.enter_context(mesh("node", *words, "--json-ready")))
        flags = ("--grpc-port", "0", "--no-http", "--json-ready", "--trace-sample", "0", "--registry", registry)
        router = stack.enter_context(mesh("router", *flags))
        for process in processes:
            ready_line(process)
        found = Running(ready_line(router)["grpc"], router.pid, [process.pid for process in processes])
        if nodes == 1:
            for pid in (found.router, *found.nodes):
                pin(pid, SERVER_CORE)
        with Client(found.address, timeout_s=START_S) as client:
            _apply(client)
        yield found


def _apply(client: Client) -> None:
    until_s = time.monotonic() + START_S
    while len(client.models()) < len(STEPS) + len(WAITS) + 2 and time.monotonic() < until_s:
        time.sleep(0.1)
    for name, models in CHAINS.items():
        steps = [
            control.Step(name=model, model=model, inputs={"x": f"{models[at - 1]}.y" if at else "$x"})
            for at, model in enumerate(models)
        ]
        answer = client.apply_pipeline(control.Pipeline(name=name, steps=steps, outputs={"y": f"{models[-1]}.y"}))
        if answer.problems:
            raise SystemExit(f"pipeline {name}: {answer.problems[0].message}")
        for model in models:
            client.load(model)


def request(model: str, width: int) -> bytes:
    """Return a ModelInferRequest's bytes."""
    rows = np.ones((1, width) if width > 1 else (1,), np.float32)
    message = ModelInferRequest(model_name=model, raw_input_contents=[rows.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=rows.shape)
    return message.SerializeToString()


def job(
    address: str, model: str, count: int, *, width: int = WIDTH, in_flight: int = 32, streaming: bool = False
) -> Job:
    """Return what to send, with the length of the right answer."""
    body = request(model, width)
    with grpc.insecure_channel(address) as channel:
        if streaming:
            (answer,) = channel.stream_stream(STREAM, None, None)(iter([body]), timeout=60)
        else:
            answer = channel.unary_unary(INFER, None, None)(body, timeout=60)
            assert ModelInferResponse.FromString(answer).outputs, answer
    method, streams = (STREAM, 1) if streaming else (INFER, in_flight)
    window = in_flight if streaming else 1
    return Job(address, method, body, len(answer), count, 1, streams, window, streaming=streaming, unique=False)


@dataclass
class Bench:
    """How much is measured, and where scratch files go."""

    runs: int
    seconds: float
    folder: Path

    def median(self, measure: Callable[[], float]) -> float:
        """Return the median of the runs."""
        return statistics.median(measure() for _ in range(self.runs))

    def rate(self, asked: Job, *, own: bool = False) -> float:
        """Return requests a second, of a run as long as asked for."""
        return asked.count / send(asked, self.folder, own=own).seconds

    def sized(self, mesh: Running, model: str, *, streaming: bool = False, width: int = WIDTH) -> Job:
        """Return a job that takes about as long as a run."""
        trial = job(mesh.address, model, 300, width=width, streaming=streaming)
        rate = trial.count / send(trial, self.folder).seconds
        return job(mesh.address, model, max(200, int(rate * self.seconds)), width=width, streaming=streaming)


def fused(bench: Bench, mesh: Running) -> dict[str, float]:
    """Compare a chain in one hop with one of its steps: CPU, latency of one at a time, and streams.

    What is compared is measured one right after the other, and the median is that of the ratios.
    """
    names = ("s2", "tiny")
    jobs = {name: bench.sized(mesh, name) for name in names}
    streams = {name: bench.sized(mesh, name, streaming=True) for name in names}
    alone = {name: job(mesh.address, name, max(200, int(500 * bench.seconds)), in_flight=1) for name in names}
    found: dict[str, list[tuple[float, float]]] = {"cpu": [], "latency": [], "stream": []}

    def cpu(name: str) -> float:
        before_s = mesh.cpu_s()
        bench.rate(jobs[name])
        return (mesh.cpu_s() - before_s) / jobs[name].count

    for _ in range(bench.runs):
        found["cpu"].append((cpu("s2"), cpu("tiny")))
        latencies = [send(alone[name], bench.folder, own=True).latency_s for name in names]
        found["latency"].append((latencies[0], latencies[1]))
        rates = [bench.rate(streams[name]) for name in names]
        found["stream"].append((rates[0], rates[1]))
    ratios = {what: statistics.median(chain / step for step, chain in pairs) for what, pairs in found.items()}
    return {
        "fused_cpu_us": statistics.median(chain for _, chain in found["cpu"]) * 1e6,
        "step_cpu_us": statistics.median(step for step, _ in found["cpu"]) * 1e6,
        "fused_cpu": ratios["cpu"],
        "fused_latency_us": statistics.median(chain for _, chain in found["latency"]) * 1e6,
        "step_latency_us": statistics.median(step for step, _ in found["latency"]) * 1e6,
        "fused_latency": ratios["latency"],
        "fused_stream": ratios["stream"],
    }


def chained(address: str, seconds: float, threads: int) -> float:
    """Return the rate of a client that calls the steps one after another."""
    words = (sys.executable, "-m", "benchmarks.chained", address, str(seconds), str(threads), *STEPS)
    done = subprocess.run(pinned(LOAD_CORE, *words), stdout=subprocess.PIPE, check=True)
    rate: float = json.loads(done.stdout)["rate"]
    return rate


def spread(bench: Bench, mesh: Running, mlserver: str) -> dict[str, float]:
    """Compare a chain over three nodes with the same steps called one after another; streams; and a large tensor."""
    tiny = bench.sized(mesh, "tiny")
    more = replace(tiny, streams=128)
    found: dict[str, list[float]] = {"mesh": [], "one": [], "client": [], "mlserver": [], "waiting": [], "slowest": []}
    stream_count = max(300, int(100 * bench.seconds))
    waiting = job(mesh.address, "waiting", stream_count, width=1, streaming=True)
    slowest = job(mesh.address, "w2", stream_count, width=1, streaming=True)
    for _ in range(bench.runs):
        found["mesh"].append(max(bench.rate(tiny), bench.rate(more)))
        found["one"].append(chained(mesh.address, bench.seconds, 1))
        found["client"].append(max(chained(mesh.address, bench.seconds, threads) for threads in THREADS))
        if mlserver:
            found["mlserver"].append(max(chained(mlserver, bench.seconds, threads) for threads in THREADS))
        found["waiting"].append(bench.rate(waiting))
        found["slowest"].append(bench.rate(slowest))
    moved = {}
    for model in ("large", "w1"):
        asked = job(mesh.address, model, 20, width=1, in_flight=4)
        before = mesh.moved_bytes()
        send(asked, bench.folder)
        moved[model] = (mesh.moved_bytes() - before) / asked.count
    middle = {key: statistics.median(values) for key, values in found.items() if values}
    told = {
        "spread_rate": middle["mesh"],
        "client_rate": middle["client"],
        "spread_to_client": middle["mesh"] / middle["client"],
        "spread_to_one": middle["mesh"] / middle["one"],
        "stream_to_slowest": middle["waiting"] / middle["slowest"],
        "large_router_bytes": moved["large"],
        "small_router_bytes": moved["w1"],
    }
    if mlserver:
        told |= {"mlserver_rate": middle["mlserver"], "spread_to_mlserver": middle["mesh"] / middle["mlserver"]}
    return told


def long_stream(bench: Bench, mesh: Running, count: int) -> dict[str, float]:
    """Send one long stream through three steps; every answer is counted."""
    asked = job(mesh.address, "tiny", count, streaming=True)
    return {"long_stream_rate": bench.rate(asked)}


@contextlib.contextmanager
def mlserver(folder: Path) -> Iterator[str]:
    """Run MLServer with the same three models; give its address, empty when it cannot run."""
    peer = MlServer()
    rows = np.ones((1, WIDTH), np.float32)
    try:
        peer.start(folder, [Case(name, "one layer", weights(name), rows) for name in STEPS])
    except (Unavailable, AssertionError) as error:
        print(f"MLServer is left out: {error}", file=sys.stderr)
        yield ""
    else:
        yield peer.address
    finally:
        peer.stop()


def measure(runs: int, seconds: float, messages: int) -> dict[str, float]:
    """Return every figure."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as scratch:
        folder = Path(scratch)
        bench = Bench(runs, seconds, folder)
        with running(folder / "one", 1) as one:
            found |= fused(bench, one)
            found |= long_stream(bench, one, messages)
        with running(folder / "three", 3) as three, mlserver(folder) as other:
            found |= spread(bench, three, other)
    return found


_FUSED: Final = "three small steps in one hop to the largest of them alone: "
_GOALS: Final = (
    (f"{_FUSED}CPU", "fused_cpu", ("<=", 1.4)),
    (f"{_FUSED}latency", "fused_latency", ("<=", 1.4)),
    (f"{_FUSED}rate of a stream", "fused_stream", (">=", 0.8)),
    ("a stream of many messages through it, messages/s", "long_stream_rate", None),
    ("a stream through three steps that wait, to the slowest alone: rate", "stream_to_slowest", (">=", 0.8)),
    ("three nodes: chains/s", "spread_rate", None),
    ("three nodes: rate to a tritonclient's in one thread that calls one after another", "spread_to_one", (">=", 3.0)),
    ("three nodes: the same in as many threads as suit it best", "spread_to_client", (">=", 3.0)),
    ("three nodes: rate to MLServer's, chained by a client", "spread_to_mlserver", (">=", 5.0)),
    ("4 MB between two nodes: bytes through the router per request", "large_router_bytes", None),
    ("the same for one small model", "small_router_bytes", None),
)


def rows(found: dict[str, float]) -> list[tuple[str, ...]]:
    """Return a row per figure that has a place in the table: what, measured, target, verdict."""
    made: list[tuple[str, ...]] = []
    for what, key, target in _GOALS:
        if key not in found:
            continue
        shown = f"{found[key]:,.2f}" if found[key] < 100 else f"{found[key]:,.0f}"
        if target is None:
            made.append((what, shown, "-", "-"))
            continue
        sign, bound = target
        met = found[key] <= bound if sign == "<=" else found[key] >= bound
        made.append((what, shown, f"{sign} {bound:g}", "met" if met else "MISSED"))
    return made


def main() -> None:
    """Measure and print, with --json as one line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipelines", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a run")
    parser.add_argument("--messages", type=int, default=10_000, help="of the long stream")
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    found = measure(flags.runs, flags.seconds, flags.messages)
    if flags.json:
        print(json.dumps({key: round(value, 3) for key, value in found.items()}))
    else:
        for key, value in found.items():
            print(f"{key:24} {value:,.3f}")


if __name__ == "__main__":
    main()
