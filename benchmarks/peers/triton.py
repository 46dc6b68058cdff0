"""Triton Inference Server as the nvidia-pytriton wheel brings it, with its Python backend and ONNX Runtime in that.

The wheel's server has no ONNX backend; the Python backend is what it can be compared with. It runs in an environment of
its own: with NumPy 2 this wheel answers 0 bytes and status OK.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.machine import children, free_port
from benchmarks.models import Case
from benchmarks.peers.base import BENCH_VENV, SERVERS, Peer, asked, install, version

VENV = BENCH_VENV / "triton"
PACKAGES = ("nvidia-pytriton>=0.7", "numpy==1.26.*", "onnxruntime")
CONFIG = """
backend: "python"
max_batch_size: 0
input [{{ name: "x" data_type: TYPE_FP32 dims: [{dims_in}] }}]
output [{{ name: "y" data_type: TYPE_FP32 dims: [{dims_out}] }}]
instance_group [{{ kind: KIND_CPU count: 1 }}]
"""


class Triton(Peer):
    """`tritonserver` with one instance of each model, without HTTP and metrics.

    It is asked for no streams: with 32 messages in flight on one, the server of this wheel (0.7.0) ends with signal 11
    after some thousand. With 4 in flight, and with single calls, it does not.
    """

    key, name = "triton", "Triton, Python backend"
    streams = False

    def start(self, folder: Path, cases: list[Case]) -> None:
        """Install it beside the project if need be, and start it."""
        if not version(VENV, "nvidia-pytriton"):
            install(VENV, *PACKAGES)
        self.name = f"Triton (pytriton {version(VENV, 'nvidia-pytriton')}), Python backend"
        packages = Path(asked(VENV, "__import__('sysconfig').get_path('platlib')"))
        backends = _backends(folder, packages / "pytriton" / "tritonserver")
        repository = folder / "triton"
        for case in cases:
            _write_model(repository / case.name, case)
        port = free_port()
        command = [str(packages / "pytriton" / "tritonserver" / "bin" / "tritonserver")]
        command += ["--model-repository", str(repository), "--backend-directory", str(backends)]
        command += ["--grpc-address", "127.0.0.1", "--grpc-port", str(port), "--allow-http", "false"]
        command += ["--allow-metrics", "false"]
        # The Python backend starts the first python3 of the PATH.
        env = {"LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"), "PATH": f"{VENV / 'bin'}:/usr/bin:/bin"}
        process = self.run(folder, command, env=env)
        self.address = f"127.0.0.1:{port}"
        self.parts = {"server": process.pid}
        self.check_all(cases)
        stubs = {f"backend {number}": pid for number, pid in enumerate(children(process.pid), 1)}
        self.parts = {"server": process.pid, **stubs}


def _backends(folder: Path, wheel: Path) -> Path:
    """Return a folder with the Python backend and the stub process for the environment's Python."""
    made = folder / "triton-backends"
    shutil.copytree(wheel / "backends", made)
    minor = asked(VENV, "'%d.%d' % __import__('sys').version_info[:2]")
    shutil.copy(wheel / "python_backend_stubs" / minor / "triton_python_backend_stub", made / "python")
    return made


def _write_model(home: Path, case: Case) -> None:
    (home / "1").mkdir(parents=True)
    (home / "1" / "model.onnx").write_bytes(case.model.SerializeToString())
    shutil.copy(SERVERS / "triton_model.py", home / "1" / "model.py")
    dims_in, dims_out = (
        ", ".join(str(axis.dim_value or -1) for axis in value[0].type.tensor_type.shape.dim)
        for value in (case.model.graph.input, case.model.graph.output)
    )
    (home / "config.pbtxt").write_text(CONFIG.format(dims_in=dims_in, dims_out=dims_out), encoding="utf-8")
