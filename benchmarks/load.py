"""The load, on a core of its own: h2load for single calls, our grpc.aio client for streams and where h2load is absent.

Every answer under load must have the size of the answer that was checked: a gRPC error is HTTP 200 to h2load, and an
error in a stream is a message like any other.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import LOAD_CORE, pinned

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"

CONNECTIONS = 4
WINDOW = 32
"""Requests in flight: enough to keep one core of any peer busy, few enough that no peer sheds load."""
LIMIT_S = 300.0
"""A run takes seconds; one that takes this long hangs."""


class LoadFailed(Exception):
    """A request of a run was not answered as it should be: the run counts for nothing."""


@dataclass(frozen=True, slots=True)
class Work:
    """One message to send `count` times to `method` of `address`; each answer has `answer_bytes` bytes."""

    address: str
    method: str
    request: bytes
    answer_bytes: int
    count: int


def send(work: Work, folder: Path) -> float:
    """Send everything and return the seconds it took; `folder` is scratch space. Raises `LoadFailed`."""
    if work.method == INFER and shutil.which("h2load"):
        return _h2load(work, folder)
    return _client(work, folder)


def _h2load(work: Work, folder: Path) -> float:
    body = folder / "framed"
    body.write_bytes(struct.pack(">BI", 0, len(work.request)) + work.request)
    in_flight = ["-t", "1", "-c", str(CONNECTIONS), "-m", str(WINDOW // CONNECTIONS)]
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    url = f"http://{work.address}{work.method}"
    return parse_h2load(_run("h2load", *in_flight, "-n", str(work.count), "-d", str(body), *headers, url), work)


def parse_h2load(report: str, work: Work) -> float:
    """Return the seconds of h2load's report. Raises `LoadFailed` when not all of `work` was answered right."""
    succeeded = re.search(r"(\d+) succeeded", report)
    payload = re.search(r"\((\d+)\) data", report)
    finished = re.search(r"finished in ([\d.]+)(us|ms|s|m)\b", report)
    if succeeded is None or payload is None or finished is None:
        raise LoadFailed(f"expected h2load's report, got:\n{report}")
    # A failed call has HTTP status 200 and no message: only the bytes tell.
    expected = work.count * (5 + work.answer_bytes)
    if int(succeeded[1]) != work.count or int(payload[1]) != expected:
        raise LoadFailed(
            f"expected {work.count} answers, {expected} bytes of messages, got {succeeded[1]} and {payload[1]}: the "
            f"server failed requests\n{report}"
        )
    return float(finished[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}[finished[2]]


def _client(work: Work, folder: Path) -> float:
    body = folder / "message"
    body.write_bytes(work.request)
    script = str(Path(__file__).parent / "client.py")
    numbers = [str(work.answer_bytes), str(work.count), str(WINDOW)]
    return float(_run(sys.executable, script, work.address, work.method, str(body), *numbers))


def _run(*command: str) -> str:
    try:
        done = subprocess.run(pinned(LOAD_CORE, *command), capture_output=True, text=True, check=False, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        raise LoadFailed(f"expected {command[0]} to end within {LIMIT_S:.0f} s: does the server hang?") from None
    if done.returncode:
        raise LoadFailed(f"{command[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout
