"""Sessions: what batching across them is worth, what their snapshots cost, how long a failover takes, and an echo.

A small GRU whose state is a tensor steps a thousand sequences, one step of each in turn, over sixteen streams. The node
has one core, the router and the load the other. Figures are medians of the runs; what is compared takes turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.calls import FIRST_ID, Job
from benchmarks.client import varint
from benchmarks.load import INFER, STREAM, send
from benchmarks.machine import LOAD_CORE, SERVER_CORE, cpu_s, free_port, pin, pinned
from benchmarks.peers.base import SERVERS
from benchmarks.processes import etcd, mesh, ready_line
from mesh.api.messages import ModelInferRequest
from mesh_client import AsyncClient, Client

SESSIONS: Final = 1000
STREAMS: Final = 16
WINDOW: Final = 64
INPUT: Final = 32
HIDDEN: Final = 256
WIDE: Final = 1024
"""Hidden values of the model whose state has 4 KB."""
START_S: Final = 120.0


def gru(hidden: int) -> onnx.ModelProto:
    """Return one GRU cell with its state as input and output: x [n, INPUT], h [n, hidden] -> y [n, 4], h_next."""
    random = np.random.default_rng(hidden)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((random.normal(size=shape) / shape[-1] ** 0.5).astype(np.float32), name)

    held = [
        weights("w", 1, 3 * hidden, INPUT),
        weights("r", 1, 3 * hidden, hidden),
        weights("b", 1, 6 * hidden),
        weights("o", hidden, 4),
        numpy_helper.from_array(np.array([0], np.int64), "axis"),
    ]
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axis"], ["xs"]),
        helper.make_node("Unsqueeze", ["h", "axis"], ["hs"]),
        helper.make_node("GRU", ["xs", "w", "r", "b", "", "hs"], ["", "last"], hidden_size=hidden),
        helper.make_node("Squeeze", ["last", "axis"], ["h_next"]),
        helper.make_node("MatMul", ["h_next", "o"], ["y"]),
    ]

    def tensor(name: str, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])

    graph = helper.make_graph(
        nodes,
        "gru",
        [tensor("x", INPUT), tensor("h", hidden)],
        [tensor("y", 4), tensor("h_next", hidden)],
        held,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def dense() -> onnx.ModelProto:
    """Return y = x w: what single calls ask, as large as a step."""
    held = [numpy_helper.from_array(np.ones((INPUT, 4), np.float32), "w")]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", INPUT])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "plain", [x], [y], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


PYTHON_GRU: Final = """
import numpy as np

HIDDEN, INPUT = 64, 32

class Model:
    def __init__(self):
        random = np.random.default_rng(1)
        self.w = (random.normal(size=(INPUT, 3 * HIDDEN)) / INPUT**0.5).astype(np.float32)
        self.r = (random.normal(size=(HIDDEN, 3 * HIDDEN)) / HIDDEN**0.5).astype(np.float32)
        self.out = random.normal(size=(HIDDEN, 4)).astype(np.float32)

    def infer(self, inputs, sequences):
        zero = np.zeros(HIDDEN, np.float32)
        h = np.stack([each.state.get("h", zero) for each in sequences])
        x, b = inputs["x"] @ self.w, h @ self.r
        z, r = (1 / (1 + np.exp(-(x[:, at : at + HIDDEN] + b[:, at : at + HIDDEN]))) for at in (0, HIDDEN))
        h = (1 - z) * np.tanh(x[:, 2 * HIDDEN :] + r * b[:, 2 * HIDDEN :]) + z * h
        for each, row in zip(sequences, h):
            each.state["h"] = row.copy()
        return {"y": h @ self.out}
"""


def write_repository(folder: Path) -> None:
    """Write the models: batched and not, with a state of 4 KB told always and never."""
    states = "states: [{input: h, output: h_next}]"
    kinds = {
        "together": (HIDDEN, 256, ""),
        "alone": (HIDDEN, 1, ""),
        "told": (WIDE, 256, "snapshot_messages: 1"),
        "untold": (WIDE, 256, "snapshot_messages: 1000000000"),
    }
    for name, rows_ in (("together_py", 256), ("alone_py", 1)):
        made = folder / name / "1"
        made.mkdir(parents=True)
        said = "idle_s: 3600, max_live: 100000"
        (made.parent / "model.yaml").write_text(
            f"runtime: python\nmax_batch_size: {rows_}\nsequence: {{{said}}}\n"
            f"inputs: [{{name: x, dtype: FP32, shape: [-1, {INPUT}]}}]\n"
            "outputs: [{name: y, dtype: FP32, shape: [-1, 4]}]\n"
        )
        (made / "model.py").write_text(PYTHON_GRU)
    made = folder / "plain" / "1"
    made.mkdir(parents=True)
    (made.parent / "model.yaml").write_text("runtime: onnx\nmax_batch_size: 64\n")
    onnx.save(dense(), str(made / "model.onnx"))
    for name, (hidden, rows, snapshot) in kinds.items():
        made = folder / name / "1"
        made.mkdir(parents=True)
        said = f"{states}{', ' + snapshot if snapshot else ''}, idle_s: 3600, max_live: 100000"
        yaml = f"runtime: onnx\nmax_batch_size: {rows}\nscaling: {{min_copies: 2}}\nsequence: {{{said}}}\n"
        (made.parent / "model.yaml").write_text(yaml)
        onnx.save(gru(hidden), str(made / "model.onnx"))


@dataclass
class Running:
    """A mesh with the models loaded."""

    address: str
    router: int
    nodes: list[int]
    forgetful: str = ""
    """The address of a second router, which keeps nothing of sessions."""


@contextlib.contextmanager
def running(folder: Path, nodes: int = 1) -> Iterator[Running]:
    """Run a mesh: the first node on the servers' core, the router on the load's."""
    write_repository(folder / "models")
    with etcd(folder / "etcd") as registry, contextlib.ExitStack() as stack:
        processes = []
        for at in range(nodes):
            words = ("--id", f"node-{at}", "--models", str(folder / "models"), "--registry", registry)
            processes.append(stack.enter_context(mesh("node", *words, "--json-ready")))
        flags = ("--grpc-port", "0", "--no-http", "--json-ready", "--trace-sample", "0", "--registry", registry)
        router = stack.enter_context(mesh("router", *flags))
        forgetful = stack.enter_context(mesh("router", *flags, "--session-bytes", "0"))
        for process in processes:
            ready_line(process)
        found = Running(ready_line(router)["grpc"], router.pid, [process.pid for process in processes])
        found.forgetful = ready_line(forgetful)["grpc"]
        for pid in (found.router, forgetful.pid):
            pin(pid, LOAD_CORE)
        for pid in found.nodes:
            pin(pid, SERVER_CORE)
        yield found


def request(model: str, id_: int, *, start: bool) -> bytes:
    """Return a step's bytes."""
    message = ModelInferRequest(model_name=model, raw_input_contents=[np.ones(INPUT, np.float32).tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=[1, INPUT])
    message.parameters["sequence_id"].int64_param = id_
    if start:
        message.parameters["sequence_start"].bool_param = True
    return message.SerializeToString()


def started(mesh: Running, model: str) -> Job:
    """Start the sequences, and return a job of one step of each; states that nobody is told nobody keeps."""
    address = mesh.forgetful if model == "untold" else mesh.address
    with Client(address, timeout_s=START_S) as client:
        until_s = time.monotonic() + START_S
        while not client.model_ready(model) and time.monotonic() < until_s:
            time.sleep(0.1)
        client.load(model)
        per_stream = -(-SESSIONS // STREAMS)
        with client.stream() as stream:
            for at in range(STREAMS * per_stream):
                told = {"sequence_id": FIRST_ID + at, "sequence_start": True}
                stream.send(model, {"x": np.ones((1, INPUT), np.float32)}, parameters=told)
                if at >= WINDOW:
                    stream.receive()
            for _ in range(WINDOW):
                stream.receive()
    body = request(model, FIRST_ID, start=False)
    with grpc.insecure_channel(address) as channel:
        (answer,) = channel.stream_stream(STREAM, None, None)(iter([body]), timeout=60)
    return Job(
        address=address,
        method=STREAM,
        body=body,
        answer_bytes=len(answer),
        count=SESSIONS,
        connections=1,
        streams=STREAMS,
        window=WINDOW,
        streaming=True,
        unique=False,
        sequences=per_stream,
        id_at=body.index(varint(FIRST_ID)),
    )


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a run of steps took."""

    rate: float
    node_us: float
    router_us: float


def step(mesh: Running, asked: Job, folder: Path) -> Stepped:
    """Send a job's steps; CPU is per step."""
    before = cpu_s(mesh.nodes[0]), cpu_s(mesh.router)
    sent = send(asked, folder, own=True)
    node_s, router_s = cpu_s(mesh.nodes[0]) - before[0], cpu_s(mesh.router) - before[1]
    return Stepped(asked.count / sent.seconds, node_s / asked.count * 1e6, router_s / asked.count * 1e6)


def stepping(folder: Path, runs: int, seconds: float) -> dict[str, float]:
    """Measure steps together and alone, with states told and not, and a single call of the same size."""
    found: dict[str, list[Stepped]] = {}
    unary: list[float] = []
    with running(folder) as mesh:
        jobs = {}
        for name in ("together", "alone", "together_py", "alone_py", "told", "untold"):
            asked = started(mesh, name)
            trial = step(mesh, replace(asked, count=2000), folder)
            jobs[name] = replace(asked, count=max(2000, int(trial.rate * seconds)))
        single = _single(mesh)
        single = replace(single, count=max(1000, int(500 * seconds)))
        for _ in range(runs):
            for name, asked in jobs.items():
                found.setdefault(name, []).append(step(mesh, asked, folder))
            before_s = cpu_s(mesh.router)
            send(single, folder)
            unary.append((cpu_s(mesh.router) - before_s) / single.count * 1e6)

    def ratio(one: str, other: str) -> float:
        return statistics.median(a.rate / b.rate for a, b in zip(found[one], found[other], strict=True))

    return {
        "together_rate": statistics.median(each.rate for each in found["together"]),
        "together": ratio("together", "alone"),
        "together_py": ratio("together_py", "alone_py"),
        "node_us": statistics.median(each.node_us for each in found["together"]),
        "router_us": statistics.median(each.router_us for each in found["together"]),
        "unary_us": statistics.median(unary),
        "told": ratio("told", "untold"),
    }


def _single(mesh: Running) -> Job:
    """Return single calls of a plain model of about a step's size."""
    with Client(mesh.address, timeout_s=START_S) as client:
        client.load("plain")
    message = ModelInferRequest(model_name="plain", raw_input_contents=[np.ones(INPUT, np.float32).tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=[1, INPUT])
    body = message.SerializeToString()
    with grpc.insecure_channel(mesh.address) as channel:
        answer = channel.unary_unary(INFER, None, None)(body, timeout=60)
    return Job(mesh.address, INFER, body, len(answer), 0, 1, 32, 1, streaming=False, unique=False)


async def _gaps(mesh: Running, count: int, kill: Any) -> list[float]:
    """Step `count` sessions without a pause; return how long each waited for the answer under way at the kill."""
    row = {"x": np.ones((1, INPUT), np.float32)}
    gaps: list[float] = []
    killed_s = 0.0
    done = asyncio.Event()

    async def one(client: AsyncClient) -> None:
        async with client.session("told") as session:
            while not done.is_set():
                asked_s = time.monotonic()
                await session.step(row)
                if asked_s <= killed_s <= time.monotonic():
                    gaps.append(time.monotonic() - killed_s)

    async with AsyncClient(mesh.address, transport="wire") as client, asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(one(client))
        await asyncio.sleep(1.0)
        killed_s = time.monotonic()
        kill()
        await asyncio.sleep(1.5)
        done.set()
    return gaps


def _ready(client: Client) -> int:
    return sum(copy.state == "ready" for copy in client.models("told")[0].copies)


def failover(folder: Path, runs: int) -> dict[str, float]:
    """Kill one of two nodes under forty sessions, again and again; return the 99th percentile of their gaps."""
    gaps: list[float] = []
    for at in range(runs):
        with running(folder / str(at), nodes=2) as mesh:
            with Client(mesh.address, timeout_s=START_S) as client:
                until_s = time.monotonic() + START_S
                while not client.model_ready("told") and time.monotonic() < until_s:
                    time.sleep(0.1)
                client.load("told")
                while _ready(client) < 2:
                    if time.monotonic() > until_s:
                        raise SystemExit("expected two warm copies of 'told', there are fewer")
                    time.sleep(0.1)
            gaps += asyncio.run(_gaps(mesh, 40, lambda mesh=mesh: os.kill(mesh.nodes[0], signal.SIGKILL)))
    ordered = sorted(gaps)
    return {
        "gap_s": ordered[int(0.99 * (len(ordered) - 1))],
        "gaps": len(ordered),
        "gap_median_s": statistics.median(gaps),
    }


def echoes(folder: Path, runs: int, seconds: float) -> dict[str, float]:
    """Compare the echo of a stream on our wire with that of grpc.aio, and with the whole way through the mesh."""
    body = b"x" * 64
    found: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        addresses = {}
        for name, script in (("wire", "wire_echo.py"), ("aio", "aio.py")):
            port = str(free_port())
            words = (str(SERVERS / script), *(("127.0.0.1", port) if name == "wire" else (f"127.0.0.1:{port}",)))
            process = subprocess.Popen(pinned(SERVER_CORE, sys.executable, *words))
            stack.callback(process.wait)
            stack.callback(process.kill)
            addresses[name] = f"127.0.0.1:{port}"
        for address in addresses.values():
            with grpc.insecure_channel(address) as channel:
                grpc.channel_ready_future(channel).result(timeout=START_S)
        jobs = {
            name: Job(address, STREAM, body, len(body), 2000, 1, 1, WINDOW, streaming=True, unique=False)
            for name, address in addresses.items()
        }
        for name, asked in jobs.items():
            rate = asked.count / send(asked, folder, own=True).seconds
            jobs[name] = replace(asked, count=int(rate * seconds))
        for _ in range(runs):
            for name, asked in jobs.items():
                found.setdefault(name, []).append(asked.count / send(asked, folder, own=True).seconds)
    return {
        "echo_rate": statistics.median(found["wire"]),
        "echo": statistics.median(a / b for a, b in zip(found["wire"], found["aio"], strict=True)),
    }


def measure(runs: int, seconds: float) -> dict[str, float]:
    """Measure everything."""
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as scratch:
        folder = Path(scratch)
        (folder / "a").mkdir()
        return {
            **stepping(folder / "a", runs, seconds),
            **failover(folder / "b", runs),
            **echoes(folder, runs, seconds),
        }


def rows(found: dict[str, float]) -> list[tuple[str, str, str, str]]:
    """Return what was measured, the target and the verdict."""

    def verdict(reached: bool) -> str:  # noqa: FBT001 - a fact
        return "reached" if reached else "MISSED"

    half = found["unary_us"] / 2
    return [
        (
            f"{SESSIONS} sessions of a GRU, one step each in turn: steps/s, of those alone",
            f"{found['together_rate']:,.0f}, {found['together']:.1f}x",
            "5x",
            verdict(found["together"] >= 5),
        ),
        (
            "a smaller one in Python (numpy, 64 values)",
            f"{found['together_py']:.1f}x",
            "5x",
            verdict(found["together_py"] >= 5),
        ),
        ("CPU per step on the node", f"{found['node_us']:.0f} us", "60 us", verdict(found["node_us"] <= 60)),
        (
            "CPU per step on the router, of a single call's",
            f"{found['router_us']:.0f} us, {found['unary_us']:.0f} us",
            f"half, {half:.0f} us",
            verdict(found["router_us"] <= half),
        ),
        (
            "a state of 4 KB told with every answer: rate, of that without",
            f"{found['told']:.2f}x",
            "0.85x",
            verdict(found["told"] >= 0.85),
        ),
        (
            "kill to next response, 99th percentile",
            f"{found['gap_s'] * 1e3:.0f} ms of {found['gaps']:.0f}, median {found['gap_median_s'] * 1e3:.0f} ms",
            "500 ms",
            verdict(found["gap_s"] < 0.5),
        ),
        (
            "one stream's echo: messages/s, of grpc.aio's",
            f"{found['echo_rate']:,.0f}, {found['echo']:.1f}x",
            "8x",
            verdict(found["echo"] >= 8),
        ),
    ]
