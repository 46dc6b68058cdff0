"""The servers that are compared, each started as its users start it, on one core."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc

from benchmarks.models import Case, write_repository

SERVER_CORE = "0"
START_S = 120.0
BENCH_VENV = Path(__file__).resolve().parent.parent / ".bench-venv"

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


class Unavailable(Exception):
    """A peer cannot run on this machine, and why."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def pinned(*command: str) -> list[str]:
    """Return `command` on the servers' core, where taskset is there."""
    return ["taskset", "-c", SERVER_CORE, *command] if shutil.which("taskset") else list(command)


class Peer:
    """A server. `parts` are the processes whose CPU time counts, by name."""

    name = ""
    streams = True

    def __init__(self) -> None:
        self.address = ""
        self.parts: dict[str, int] = {}
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self, folder: Path, cases: list[Case]) -> None:
        """Start and wait until it answers. Raises `Unavailable`."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop it."""
        if self._popen is not None:
            self._popen.terminate()
            try:
                self._popen.wait(60)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()

    def wait(self, case: Case) -> None:
        """Wait until `case` is answered, and check the answer."""
        end_s = time.monotonic() + START_S
        while True:
            try:
                with grpc.insecure_channel(self.address, options=[("grpc.max_receive_message_length", -1)]) as channel:
                    case.check(channel.unary_unary(INFER, None, None)(case.request(), timeout=30))
            except grpc.RpcError:
                if time.monotonic() > end_s:
                    raise
                time.sleep(0.2)
            else:
                return


class Mesh(Peer):
    """`mesh up` with one node: the router and the node share the core."""

    name = "mesh (router + node)"

    def start(self, folder: Path, cases: list[Case]) -> None:
        """Start `mesh up`."""
        repository = folder / "mesh"
        write_repository(repository, cases)
        command = [sys.executable, "-m", "mesh.cli.main", "up", "--nodes", "1", "--models", str(repository), "--json"]
        ports = ["--grpc-port", str(free_port()), "--http-port", str(free_port())]
        self._popen = subprocess.Popen(pinned(*command, *ports), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._popen.stdout is not None
        ready = json.loads(self._popen.stdout.readline())
        self.address = ready["router"]["grpc"]
        self.parts = {"router": ready["router"]["pid"], "node": ready["nodes"][0]["pid"]}
        self.node = ready["nodes"][0]["grpc"]
        for case in cases:
            self.wait(case)


class Node(Peer):
    """The same node, called straight: it speaks the same protocol."""

    name = "mesh (node alone)"

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        self._mesh = mesh

    def start(self, folder: Path, cases: list[Case]) -> None:  # noqa: ARG002 - the mesh has started it
        """Use the running mesh's node."""
        self.address = self._mesh.node
        self.parts = {"node": self._mesh.parts["node"]}
        for case in cases:
            self.wait(case)

    def stop(self) -> None:
        """Leave it to the mesh."""


MLSERVER_RUNTIME = """
import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.types import InferenceResponse, ResponseOutput, Parameters


class Onnx(MLModel):
    async def load(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(self.settings.parameters.uri, options)
        return True

    async def predict(self, payload):
        given = payload.inputs[0]
        rows = np.asarray(given.data.root, dtype=np.float32) if not isinstance(given.data.root, bytes) else (
            np.frombuffer(given.data.root, dtype=np.float32))
        (y,) = self._session.run(None, {"x": rows.reshape(given.shape)})
        return InferenceResponse(
            model_name=self.name,
            outputs=[ResponseOutput(name="y", datatype="FP32", shape=list(y.shape), data=y.ravel().tolist())],
        )

    async def predict_stream(self, payloads):
        async for payload in payloads:
            yield await self.predict(payload)
"""


class MlServer(Peer):
    """MLServer with ONNX Runtime in a custom runtime, as its documentation shows, without worker processes."""

    name = "MLServer"

    def start(self, folder: Path, cases: list[Case]) -> None:
        """Install it beside the project if need be, and start it."""
        _install_mlserver()
        root = folder / "mlserver"
        for case in cases:
            home = root / case.name
            home.mkdir(parents=True)
            path = home / "model.onnx"
            path.write_bytes(case.model.SerializeToString())
            (home / "onnx_runtime_model.py").write_text(MLSERVER_RUNTIME)
            settings = {
                "name": case.name,
                "implementation": "onnx_runtime_model.Onnx",
                "parameters": {"uri": str(path)},
            }
            (home / "model-settings.json").write_text(json.dumps(settings))
        port, http, metrics = free_port(), free_port(), free_port()
        server = {"host": "127.0.0.1", "grpc_port": port, "http_port": http, "metrics_port": metrics}
        extra = {"parallel_workers": 0, "gzip_enabled": False, "grpc_max_message_length": 2**30, "debug": False}
        (root / "settings.json").write_text(json.dumps({**server, **extra}))
        command = pinned(str(BENCH_VENV / "bin" / "mlserver"), "start", str(root))
        log = (folder / "mlserver.log").open("wb")
        self._popen = subprocess.Popen(command, stdout=log, stderr=log)
        self.address = f"127.0.0.1:{port}"
        self.parts = {"server": self._popen.pid}
        for case in cases:
            self.wait(case)


def _install_mlserver() -> None:
    """Make .bench-venv with MLServer in it, once. Raises `Unavailable`."""
    if (BENCH_VENV / "bin" / "mlserver").is_file():
        return
    print(f"installing MLServer into {BENCH_VENV.name} (once; some minutes) ...", file=sys.stderr)
    try:
        subprocess.run([sys.executable, "-m", "venv", str(BENCH_VENV)], check=True)
        pip = [str(BENCH_VENV / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "mlserver>=1.7", "onnxruntime"], check=True)
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"MLServer could not be installed: {error}") from error


ECHO = """
import asyncio, sys
import grpc

async def unary(message, context):
    return message

async def stream(messages, context):
    async for message in messages:
        yield message

class Any(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method.endswith("ModelInfer"):
            return grpc.unary_unary_rpc_method_handler(unary)
        return grpc.stream_stream_rpc_method_handler(stream)

async def main():
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers([Any()])
    server.add_insecure_port(sys.argv[1])
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""


class Echo(Peer):
    """A grpc.aio server that returns the request's bytes: what its transport costs without any inference."""

    name = "grpc.aio echo (no model)"

    def start(self, folder: Path, cases: list[Case]) -> None:  # noqa: ARG002 - it serves anything
        """Start it."""
        self.address = f"127.0.0.1:{free_port()}"
        self._popen = subprocess.Popen(pinned(sys.executable, "-c", ECHO, self.address))
        self.parts = {"server": self._popen.pid}
        with grpc.insecure_channel(self.address) as channel:
            grpc.channel_ready_future(channel).result(START_S)
