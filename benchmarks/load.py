"""The load, on a core of its own: h2load for single calls with equal headers, our own client for everything else.

Every answer under load must have the size of the answer that was checked: a gRPC error is HTTP 200 to h2load, and an
error in a stream is a message like any other.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.calls import Job
from benchmarks.machine import LOAD_CORE, pinned

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"

LIMIT_S = 300.0
"""A run takes seconds; one that takes this long hangs."""


class LoadFailed(Exception):
    """A request of a run was not answered as it should be: the run counts for nothing."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What a run took."""

    seconds: float
    latency_s: float = 0.0
    """Median time from a call's first byte to its last, of single calls by our own client."""


def send(job: Job, folder: Path, *, own: bool = False) -> Sent:
    """Send everything; `folder` is scratch space. Raises `LoadFailed`.

    h2load does it where it can and is there, unless `own` asks for our client.
    """
    if not (own or job.streaming or job.unique) and shutil.which("h2load"):
        return Sent(_h2load(job, folder))
    return _client(job, folder)


def _h2load(job: Job, folder: Path) -> float:
    body = folder / "framed"
    body.write_bytes(struct.pack(">BL", 0, len(job.body)) + job.body)
    in_flight = ["-t", "1", "-c", str(job.connections), "-m", str(job.streams)]
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    url = f"http://{job.address}{job.method}"
    return parse_h2load(_run("h2load", *in_flight, "-n", str(job.count), "-d", str(body), *headers, url), job)


def parse_h2load(report: str, job: Job) -> float:
    """Return the seconds of h2load's report. Raises `LoadFailed` when not all of `job` was answered right."""
    succeeded = re.search(r"(\d+) succeeded", report)
    payload = re.search(r"\((\d+)\) data", report)
    finished = re.search(r"finished in ([\d.]+)(us|ms|s|m)\b", report)
    if succeeded is None or payload is None or finished is None:
        raise LoadFailed(f"expected h2load's report, got:\n{report}")
    # A failed call has HTTP status 200 and no message: only the bytes tell.
    expected = job.count * (5 + job.answer_bytes)
    if int(succeeded[1]) != job.count or int(payload[1]) != expected:
        raise LoadFailed(
            f"expected {job.count} answers, {expected} bytes of messages, got {succeeded[1]} and {payload[1]}: the "
            f"server failed requests\n{report}"
        )
    return float(finished[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}[finished[2]]


def _client(job: Job, folder: Path) -> Sent:
    body = folder / "message"
    body.write_bytes(job.body)
    asked = {name: value for name, value in asdict(job).items() if name != "body"}
    said = json.loads(_run(sys.executable, "-m", "benchmarks.client", json.dumps(asked), str(body)))
    return Sent(said["seconds"], said["latency_s"])


def _run(*command: str) -> str:
    root = Path(__file__).resolve().parent.parent
    asked = pinned(LOAD_CORE, *command)
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=LIMIT_S, cwd=root)
    except subprocess.TimeoutExpired:
        raise LoadFailed(f"expected {command[0]} to end within {LIMIT_S:.0f} s: does the server hang?") from None
    if done.returncode:
        raise LoadFailed(f"{command[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout
