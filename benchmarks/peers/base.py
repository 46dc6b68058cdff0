"""What every peer is: a process on the servers' core that is ready when its answers were found right.

Answers, single and streamed, are decoded and compared with ONNX Runtime's own. Leaves the load to `benchmarks.load`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc

from benchmarks.load import INFER, STREAM
from benchmarks.machine import SERVER_CORE, memory_bytes, pinned
from benchmarks.models import Case
from mesh.api.messages import ModelStreamInferResponse

BENCHMARKS = Path(__file__).resolve().parent.parent
SERVERS = BENCHMARKS / "servers"
BENCH_VENV = BENCHMARKS.parent / ".bench-venv"
START_S = 120.0
STOP_S = 60.0
LARGE_BYTES = 65_536
"""No peer is sent larger messages in streams: the load's streams are of small ones."""
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Unavailable(Exception):
    """A peer cannot run on this machine, and why."""


class Process:
    """A program that is started, may say a line, and is stopped."""

    def __init__(
        self, log: Path, command: Sequence[str], *, core: int, env: Mapping[str, str] | None = None, says: bool = False
    ) -> None:
        """Start it on `core`, with `env` besides our environment; it `says` lines, or all it prints goes to `log`."""
        self._log = log
        environment = {**os.environ, **(env or {})}
        with self._log.open("wb") as file:
            stdout = subprocess.PIPE if says else file
            self._popen = subprocess.Popen(
                pinned(core, *command), stdout=stdout, stderr=file, text=True, env=environment
            )
        self.pid = self._popen.pid

    def line(self) -> str:
        """Return the next line that it prints. Raises `Unavailable` when it ends instead."""
        assert self._popen.stdout is not None
        found = self._popen.stdout.readline()
        if not found:
            raise Unavailable(f"it ended before it was ready:\n{self.said()}")
        return found

    def ended(self) -> bool:
        """Say whether it is gone."""
        return self._popen.poll() is not None

    def said(self) -> str:
        """Return the end of its log."""
        return self._log.read_text(encoding="utf-8", errors="replace")[-2000:]

    def stop(self) -> None:
        """End it."""
        self._popen.terminate()
        try:
            self._popen.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.communicate()


class Peer:
    """A server or a proxy. `parts` are the processes whose CPU time counts, by name."""

    key = ""
    """What goals and flags call it."""
    name = ""
    required = False
    """Without it there is nothing to compare; others are left out when they cannot run."""
    streams = True
    """Whether its streams can be compared: one answer for each message."""

    def __init__(self) -> None:
        self.address = ""
        self.parts: dict[str, int] = {}
        self.answer_bytes: dict[tuple[str, str], int] = {}
        """Length of the right answer, by method and model."""
        self.resting_bytes = 0
        """Memory of the parts after one request of each kind, the largest among them."""
        self._process: Process | None = None

    def start(self, folder: Path, cases: list[Case]) -> None:
        """Start it, wait until it answers and check what it answers; `stop` it even when this fails.

        Raises `Unavailable` when it does not run, AssertionError when an answer is wrong.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self._process is not None:
            self._process.stop()

    def check(self, case: Case, answer: bytes) -> None:
        """Raise AssertionError unless `answer` is the right ModelInferResponse."""
        case.check(answer)

    def unwrap(self, message: bytes) -> bytes:
        """Return the ModelInferResponse in a message of a stream, Triton's kind. Raises AssertionError for an error."""
        response = ModelStreamInferResponse.FromString(message)
        assert not response.error_message, response.error_message
        return response.infer_response.SerializeToString()

    def run(
        self, folder: Path, command: Sequence[str], *, core: int = SERVER_CORE, env: Mapping[str, str] | None = None
    ) -> Process:
        """Start its process."""
        self._process = Process(folder / f"{self.key}.log", command, core=core, env=env)
        return self._process

    def check_all(self, cases: list[Case]) -> None:
        """Wait for the first answer and check one answer of each kind. Raises as `start` does."""
        with grpc.insecure_channel(self.address, options=OPTIONS) as channel:
            for case in cases:
                answer = self._first(channel, case)
                self.check(case, answer)
                self.answer_bytes[INFER, case.name] = len(answer)
                if not self.streams or len(case.request()) > LARGE_BYTES:
                    continue
                (message,) = channel.stream_stream(STREAM, None, None)(iter([case.request()]), timeout=START_S)
                self.check(case, self.unwrap(message))
                self.answer_bytes[STREAM, case.name] = len(message)
        self.resting_bytes = sum(memory_bytes(pid, "VmRSS") for pid in self.parts.values())

    def _first(self, channel: grpc.Channel, case: Case) -> bytes:
        """Return the answer, once there is one."""
        end_s = time.monotonic() + START_S
        while True:
            try:
                answer: bytes = channel.unary_unary(INFER, None, None)(case.request(), timeout=30)
            except grpc.RpcError as error:
                ended = self._process is not None and self._process.ended()
                if ended or time.monotonic() > end_s:
                    said = self._process.said() if self._process is not None else ""
                    raise Unavailable(f"it does not answer: {error}\n{said}") from error
                time.sleep(0.2)
            else:
                return answer


def install(folder: Path, *packages: str) -> None:
    """Make a virtual environment in `folder`, if there is none, and install `packages`. Raises `Unavailable`."""
    print(f"installing {' '.join(packages)} (once; some minutes) ...", file=sys.stderr)
    python = folder / "bin" / "python"
    try:
        if not python.is_file():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *packages], check=True)
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{' '.join(packages)} could not be installed: {error}") from error


def asked(folder: Path, expression: str) -> str:
    """Return what the Python of the virtual environment in `folder` makes of an expression; "" when it fails."""
    command = [str(folder / "bin" / "python"), "-c", f"print({expression})"]
    if not Path(command[0]).is_file():
        return ""
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


def version(folder: Path, package: str) -> str:
    """Return the version of a package in the virtual environment in `folder`, "" when it is not there."""
    return asked(folder, f"__import__('importlib.metadata').metadata.version('{package}')")
