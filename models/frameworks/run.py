"""Three frameworks in one pipeline: scikit-learn, ONNX Runtime, and a model behind MLServer.

Run by ``make frameworks``; with ``--install`` it only installs. MLServer comes from PyPI into an environment of its own
(its requirements are not the mesh's) and is started on a free port; the mesh runs `pipeline.yaml` over it, and all rows
of models/data/iris.csv go through. Exits 0 when at least 95 of 100 rows are right.
"""

from __future__ import annotations

import csv
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np

from mesh.cli.manifest import read
from mesh_client import Client, MeshClientError

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent
VENV = MODELS.parent / ".frameworks-venv"
READY = "/inference.GRPCInferenceService/ServerReady"
START_S = 180.0
LEAST = 0.95


def installed() -> Path:
    """Return MLServer's command, installed if need be (once; some minutes)."""
    command = VENV / "bin" / "mlserver"
    if not command.is_file():
        print("installing MLServer and scikit-learn into .frameworks-venv (once; some minutes) ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "mlserver>=1.7", "scikit-learn"], check=True)
    return command


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def mlserver(command: Path, folder: Path) -> Iterator[str]:
    """Run MLServer with the forest; give its address."""
    shutil.copytree(HERE / "mlserver", folder)
    port = free_port()
    settings = {"host": "127.0.0.1", "grpc_port": port, "http_port": free_port(), "metrics_port": free_port()}
    (folder / "settings.json").write_text(json.dumps({**settings, "parallel_workers": 0}), encoding="utf-8")
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([str(command), "start", str(folder)], stdout=file, stderr=file)
    try:
        until_s = time.monotonic() + START_S
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            while not _answers(channel):
                if process.poll() is not None or time.monotonic() > until_s:
                    raise SystemExit(f"MLServer did not start:\n{log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.3)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _answers(channel: grpc.Channel) -> bool:
    try:
        # ServerReadyResponse: field 1, a bool.
        return channel.unary_unary(READY, None, None)(b"", timeout=5) == b"\x08\x01"
    except grpc.RpcError:
        return False


@contextmanager
def mesh(repository: Path) -> Iterator[str]:
    """Run a mesh of two nodes; give its address."""
    models = ("--models", str(repository), "--models", str(MODELS / "demo"))
    words = ("up", "--nodes", "2", *models, "--grpc-port", str(free_port()), "--http-port", str(free_port()), "--json")
    process = subprocess.Popen([sys.executable, "-m", "mesh.cli.main", *words], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise SystemExit("the mesh did not start; what it said is above")
        yield json.loads(line)["router"]["grpc"]
    finally:
        process.terminate()
        process.wait()


def main() -> int:
    """Run everything; return the exit code."""
    with (MODELS / "data" / "iris.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.reader(file))[1:]
    rows = np.array([row[:4] for row in table], np.float32)
    labels = np.array([int(row[4]) for row in table])
    command = installed()
    if "--install" in sys.argv[1:]:
        return 0
    with (
        tempfile.TemporaryDirectory(prefix="mesh-frameworks-") as scratch,
        mlserver(command, Path(scratch) / "ml") as at,
    ):
        repository = Path(scratch) / "repository"
        shutil.copytree(HERE / "repository", repository)
        forest = repository / "forest" / "model.yaml"
        forest.write_text(forest.read_text(encoding="utf-8").replace("127.0.0.1:9100", at), encoding="utf-8")
        with mesh(repository) as address, Client(address, timeout_s=60) as client:
            (manifest,) = read("pipeline.yaml", (HERE / "pipeline.yaml").read_text(encoding="utf-8"))
            answer = client.apply_pipeline(manifest.pipeline)
            for problem in answer.problems:
                print(f"pipeline.yaml:{manifest.line_of(problem.path)}: {problem.path}: {problem.message}")
            if answer.problems:
                return 1
            try:
                found = client.infer("iris-vote", {"x": rows[:32]})["label"].tolist()
                with client.stream() as stream:
                    for row in rows[32:]:
                        stream.send("iris-vote", {"x": row[np.newaxis]})
                    stream.half_close()
                    found += [int(result["label"][0]) for result in stream]
            except MeshClientError as error:
                print(f"lost: {error}")
                return 1
            cut = client.explain_pipeline("iris-vote")
    right = float(np.mean(np.array(found) == labels))
    for each in cut.steps:
        print(f"{each.step:8} {each.model:8} on {each.node or 'the router'}: {each.why}")
    print(f"{len(found)} rows through scikit-learn, ONNX Runtime and MLServer: {right:.1%} right")
    return 0 if len(found) == len(labels) and right >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
