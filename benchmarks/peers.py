"""The servers that are compared, each started as its users start it, on one core.

A peer is ready when its answers, single and streamed, were decoded and compared with ONNX Runtime's own. Leaves the
load to `benchmarks.load`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import grpc

from benchmarks.load import INFER, STREAM
from benchmarks.machine import SERVER_CORE, free_port, pinned
from benchmarks.models import Case, write_repository
from mesh.api.messages import ModelStreamInferResponse

HERE = Path(__file__).resolve().parent
BENCH_VENV = HERE.parent / ".bench-venv"
START_S = 120.0
STOP_S = 60.0


class Unavailable(Exception):
    """A peer cannot run on this machine, and why."""


class Peer:
    """A server. `parts` are the processes whose CPU time counts, by name."""

    name = ""
    required = False
    """Without it there is nothing to compare; others are left out when they cannot run."""

    def __init__(self) -> None:
        self.address = ""
        self.parts: dict[str, int] = {}
        self.answer_bytes: dict[tuple[str, str], int] = {}
        """Length of the right answer, by method and model."""
        self._log: Path | None = None
        self._popen: subprocess.Popen[str] | None = None

    def start(self, folder: Path, cases: list[Case]) -> None:
        """Start it, wait until it answers and check what it answers; `stop` it even when this fails.

        Raises `Unavailable` when it does not run, AssertionError when an answer is wrong.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self._popen is None:
            return
        self._popen.terminate()
        try:
            self._popen.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        if self._popen.stdout is not None:
            self._popen.stdout.close()

    def check(self, case: Case, answer: bytes) -> None:
        """Raise AssertionError unless `answer` is the right ModelInferResponse."""
        case.check(answer)

    def unwrap(self, message: bytes) -> bytes:
        """Return the ModelInferResponse in a message of a stream. Raises AssertionError when it is an error."""
        return message

    def _run(self, folder: Path, *command: str, says_ready: bool = False) -> subprocess.Popen[str]:
        self._log = folder / f"{type(self).__name__}.log"
        with self._log.open("wb") as log:
            stdout = subprocess.PIPE if says_ready else log
            self._popen = subprocess.Popen(pinned(SERVER_CORE, *command), stdout=stdout, stderr=log, text=True)
        return self._popen

    def _check_all(self, cases: list[Case]) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(self.address, options=options) as channel:
            for case in cases:
                answer = self._first(channel, case)
                self.check(case, answer)
                self.answer_bytes[INFER, case.name] = len(answer)
                (message,) = channel.stream_stream(STREAM, None, None)(iter([case.request()]), timeout=START_S)
                self.check(case, self.unwrap(message))
                self.answer_bytes[STREAM, case.name] = len(message)

    def _first(self, channel: grpc.Channel, case: Case) -> bytes:
        """Return the answer, once there is one."""
        end_s = time.monotonic() + START_S
        while True:
            try:
                answer: bytes = channel.unary_unary(INFER, None, None)(case.request(), timeout=30)
            except grpc.RpcError as error:
                ended = self._popen is not None and self._popen.poll() is not None
                if ended or time.monotonic() > end_s:
                    raise Unavailable(f"it does not answer: {error}\n{self._said()}") from error
                time.sleep(0.2)
            else:
                return answer

    def _said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-2000:] if self._log is not None else ""


class Mesh(Peer):
    """`mesh up` with one node: the router and the node share the core."""

    name = "mesh (router + node)"
    required = True

    def start(self, folder: Path, cases: list[Case]) -> None:
        """Start `mesh up`."""
        repository = folder / "mesh"
        write_repository(repository, cases)
        command = [sys.executable, "-m", "mesh.cli.main", "up", "--nodes", "1", "--models", str(repository), "--json"]
        ports = ["--grpc-port", str(free_port()), "--http-port", str(free_port())]
        running = self._run(folder, *command, *ports, says_ready=True)
        assert running.stdout is not None
        line = running.stdout.readline()
        if not line:
            raise Unavailable(f"`mesh up` ended before it was ready:\n{self._said()}")
        ready = json.loads(line)
        (node,) = ready["nodes"]
        self.address = ready["router"]["grpc"]
        self.node_address = node["grpc"]
        self.parts = {"router": ready["router"]["pid"], "node": node["pid"]}
        self._check_all(cases)

    def unwrap(self, message: bytes) -> bytes:
        """Return what Triton's stream message holds."""
        return unwrap(message)


class Node(Peer):
    """The mesh's node, called straight: it speaks the same protocol."""

    name = "mesh (node alone)"

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        self._mesh = mesh

    def start(self, folder: Path, cases: list[Case]) -> None:  # noqa: ARG002 - the mesh has started it
        """Use the running mesh's node."""
        self.address = self._mesh.node_address
        self.parts = {"node": self._mesh.parts["node"]}
        self._check_all(cases)

    def unwrap(self, message: bytes) -> bytes:
        """Return what Triton's stream message holds."""
        return unwrap(message)


def unwrap(message: bytes) -> bytes:
    """Return the ModelInferResponse in a ModelStreamInferResponse."""
    response = ModelStreamInferResponse.FromString(message)
    assert not response.error_message, response.error_message
    return response.infer_response.SerializeToString()


class MlServer(Peer):
    """MLServer with ONNX Runtime in a custom runtime, as its documentation shows, without worker processes.

    Its streams carry plain ModelInferResponse messages.
    """

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
            (home / "bench_runtime.py").write_bytes((HERE / "mlserver_runtime.py").read_bytes())
            settings = {"name": case.name, "implementation": "bench_runtime.Onnx", "parameters": {"uri": str(path)}}
            (home / "model-settings.json").write_text(json.dumps(settings), encoding="utf-8")
        port, http, metrics = free_port(), free_port(), free_port()
        server = {"host": "127.0.0.1", "grpc_port": port, "http_port": http, "metrics_port": metrics}
        extra = {"parallel_workers": 0, "gzip_enabled": False, "grpc_max_message_length": 2**30, "debug": False}
        (root / "settings.json").write_text(json.dumps({**server, **extra}), encoding="utf-8")
        running = self._run(folder, str(BENCH_VENV / "bin" / "mlserver"), "start", str(root))
        self.address = f"127.0.0.1:{port}"
        self.parts = {"server": running.pid}
        self._check_all(cases)


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


def mlserver_version() -> str:
    """Return the version in .bench-venv. Raises `CalledProcessError` when there is none."""
    ask = "from importlib.metadata import version; print(version('mlserver'))"
    command = [str(BENCH_VENV / "bin" / "python"), "-c", ask]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class Echo(Peer):
    """A grpc.aio server that returns the request's bytes: what its transport costs without any inference."""

    name = "grpc.aio echo (no model)"

    def start(self, folder: Path, cases: list[Case]) -> None:
        """Start it."""
        self.address = f"127.0.0.1:{free_port()}"
        running = self._run(folder, sys.executable, str(HERE / "echo.py"), self.address)
        self.parts = {"server": running.pid}
        self._check_all(cases)

    def check(self, case: Case, answer: bytes) -> None:
        """Raise AssertionError unless the request came back."""
        assert answer == case.request(), "expected the request's own bytes"
