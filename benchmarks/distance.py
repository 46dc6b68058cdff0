"""Distance: how fast large tensors go up and down when the caller is far, beside the grpcio engine in the same run.

A proxy in a process of its own holds every byte back by half a round trip each way; nothing is lost. An unmodified
grpcio client sends and fetches 16 MB, one call after the other, through a router with either engine. The first call on
a channel is not counted: what counts is a channel that has learned its distance.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import grpc
import numpy as np

from benchmarks.isolation import START_S, wait_ready, write_python
from benchmarks.machine import free_port
from benchmarks.processes import etcd, mesh, ready_line
from mesh.api.messages import ModelInferRequest
from mesh.wire.transport import MODEL_INFER
from mesh_client import Client

SIZE: Final = 16 * 1024 * 1024
TRIPS_MS: Final = (1, 10, 50, 150)
ENGINES: Final = ("mesh", "grpcio")
WARM: Final = 2
TARGET: Final = 0.9

_TAKES: Final = """
class Model:
    def infer(self, inputs):
        return {"y": inputs["x"][:, :1].copy()}
"""
_GIVES: Final = """
import numpy as np

class Model:
    def infer(self, inputs):
        return {"y": np.ones((1, int(inputs["x"][0, 0])), np.float32)}
"""


# -- the proxy -------------------------------------------------------------------------------------------------------


class _Late(asyncio.Protocol):
    """One side of a connection: what comes here goes to `other` after `wait_s`."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._held: deque[tuple[float, bytes]] = deque()
        self.other: asyncio.Transport | None = None

    def data_received(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        self._held.append((loop.time() + self._wait_s, data))
        if len(self._held) == 1:
            loop.call_at(self._held[0][0], self._pass)

    def _pass(self) -> None:
        loop = asyncio.get_running_loop()
        while self._held and self._held[0][0] <= loop.time():
            _, data = self._held.popleft()
            if self.other is not None:
                self.other.write(data)
        if self._held:
            loop.call_at(self._held[0][0], self._pass)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self.other is not None:
            self.other.close()


class _Caller(_Late):
    def __init__(self, wait_s: float, port: int) -> None:
        super().__init__(wait_s)
        self._port = port
        self._joining: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._joining = asyncio.get_running_loop().create_task(self._join(transport))

    async def _join(self, transport: asyncio.BaseTransport) -> None:
        loop = asyncio.get_running_loop()
        there, far = await loop.create_connection(lambda: _Late(self._wait_s), "127.0.0.1", self._port)
        assert isinstance(transport, asyncio.Transport)
        self.other, far.other = there, transport


async def _proxy(port: int, target: int, wait_s: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Caller(wait_s, target), "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def far_away(address: str, trip_ms: float) -> Iterator[str]:
    """Yield an address that is `trip_ms` from `address`, there and back."""
    port = free_port()
    words = [str(port), address.rpartition(":")[2], str(trip_ms / 2e3)]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.distance", *words], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


# -- the measurement -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """Run a node and a router of each engine; yield the routers' addresses."""
    for name, code in (("takes", _TAKES), ("gives", _GIVES)):
        write_python(folder / "models", name, code, "isolation: none\n")
    with etcd(folder / "etcd") as registry, contextlib.ExitStack() as stack:
        node = ("--id", "a", "--models", str(folder / "models"), "--registry", registry, "--json-ready")
        ready_line(stack.enter_context(mesh("node", *node)))
        found = {}
        for engine in ENGINES:
            flags = ("--grpc-port", "0", "--no-http", "--json-ready", "--registry", registry, "--wire", engine)
            found[engine] = ready_line(stack.enter_context(mesh("router", *flags)))["grpc"]
            with Client(found[engine], timeout_s=START_S) as client:
                wait_ready(client)
                client.load("takes")
                client.load("gives")
        yield found


def _message(model: str, values: np.ndarray) -> bytes:
    request = ModelInferRequest(model_name=model, raw_input_contents=[values.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=values.shape)
    return request.SerializeToString()


UP: Final = _message("takes", np.ones((1, SIZE // 4), np.float32))
DOWN: Final = _message("gives", np.array([[SIZE // 4]], np.float32))


def _seconds(address: str, message: bytes, runs: int) -> float:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(address, options=options) as channel:
        call = channel.unary_unary(MODEL_INFER, None, None)
        times = []
        for _ in range(WARM + runs):
            began_s = time.perf_counter()
            call(message, timeout=START_S)
            times.append(time.perf_counter() - began_s)
    return statistics.median(times[WARM:])


def measure(runs: int) -> dict[str, float]:
    """Return MB/s by direction, round trip and engine: "up 50 mesh"."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as scratch, running(Path(scratch)) as routers:
        for trip_ms in TRIPS_MS:
            print(f"  {trip_ms} ms away", file=sys.stderr)
            for _ in range(runs):
                for engine, address in routers.items():
                    with far_away(address, trip_ms) as there:
                        for way, message in (("up", UP), ("down", DOWN)):
                            rate = SIZE / 1e6 / _seconds(there, message, 3)
                            found.setdefault(f"{way} {trip_ms} {engine}", []).append(rate)
    return {key: statistics.median(rates) for key, rates in found.items()}


def rows(found: dict[str, float]) -> list[tuple[str, str, str, str]]:
    """Return what was measured, the target and the verdict."""
    shown = []
    for way in ("up", "down"):
        for trip_ms in TRIPS_MS:
            ours, theirs = (found[f"{way} {trip_ms} {engine}"] for engine in ENGINES)
            verdict = "reached" if ours >= TARGET * theirs else "MISSED"
            rate = f"{ours:,.0f} MB/s, --wire grpcio {theirs:,.0f}: {ours / theirs:.2f}x"
            shown.append((f"16 MB {way}, {trip_ms} ms away", rate, f"at least {TARGET}x", verdict))
    return shown


if __name__ == "__main__":
    asyncio.run(_proxy(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
