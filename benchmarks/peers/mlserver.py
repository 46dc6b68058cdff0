"""MLServer with ONNX Runtime in a custom runtime, as its documentation shows, without worker processes."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.machine import free_port
from benchmarks.models import Case
from benchmarks.peers.base import BENCH_VENV, SERVERS, Peer, install, version


class MlServer(Peer):
    """Its streams carry plain ModelInferResponse messages."""

    key, name = "mlserver", "MLServer"

    def start(self, folder: Path, cases: list[Case]) -> None:
        """Install it beside the project if need be, and start it."""
        if not version(BENCH_VENV, "mlserver"):
            install(BENCH_VENV, "mlserver>=1.7", "onnxruntime")
        self.name = f"MLServer {version(BENCH_VENV, 'mlserver')}"
        root = folder / "mlserver"
        for case in cases:
            home = root / case.name
            home.mkdir(parents=True)
            path = home / "model.onnx"
            path.write_bytes(case.model.SerializeToString())
            (home / "bench_runtime.py").write_bytes((SERVERS / "mlserver_runtime.py").read_bytes())
            settings = {"name": case.name, "implementation": "bench_runtime.Onnx", "parameters": {"uri": str(path)}}
            (home / "model-settings.json").write_text(json.dumps(settings), encoding="utf-8")
        port, http, metrics = free_port(), free_port(), free_port()
        server = {"host": "127.0.0.1", "grpc_port": port, "http_port": http, "metrics_port": metrics}
        extra = {"parallel_workers": 0, "gzip_enabled": False, "grpc_max_message_length": 2**30, "debug": False}
        (root / "settings.json").write_text(json.dumps({**server, **extra}), encoding="utf-8")
        process = self.run(folder, [str(BENCH_VENV / "bin" / "mlserver"), "start", str(root)])
        self.address = f"127.0.0.1:{port}"
        self.parts = {"server": process.pid}
        self.check_all(cases)

    def unwrap(self, message: bytes) -> bytes:
        """Return the message: it is the ModelInferResponse."""
        return message
