"""What only a machine with a GPU can show, in one run: `.venv/bin/python scripts/gpu_check.py`.

Starts a registry, a router and a node here, and checks: that ONNX Runtime's CUDA provider answers as the CPU does; that
a torch model in a worker runs on the GPU, is accounted with what NVML says its process holds, and is replaced after its
process was killed; that unloading gives the memory back; and that states of sequences stay on the device. What a
machine lacks (a GPU, onnxruntime-gpu, torch) is said and left out.

Exit codes: 0 when all that could be checked was right, 1 when something was not, 3 when there is no GPU.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import pynvml
from onnx import TensorProto, helper, numpy_helper

from mesh.node.runtimes.onnx import has_cuda
from mesh_client import Client, MeshClientError

NO_GPU: Final = 3
WAIT_S: Final = 120.0
TORCH_BYTES: Final = 512 * 1024 * 1024

TORCH: Final = f"""
import torch

class Model:
    def load(self, context):
        assert context.device.startswith("gpu:"), context.device
        self.device = torch.device("cuda", int(context.device.partition(":")[2]))
        self.weights = torch.ones({TORCH_BYTES} // 4, device=self.device)

    def infer(self, inputs):
        x = torch.from_numpy(inputs["x"]).to(self.device)
        return {{"y": (x * self.weights[: x.shape[-1]]).cpu().numpy()}}
"""
SIGNATURE: Final = (
    "device: gpu\nmax_batch_size: 8\ninputs: [{name: x, dtype: FP32, shape: [-1, 4]}]\n"
    "outputs: [{name: y, dtype: FP32, shape: [-1, 4]}]\n"
)


def write_repository(folder: Path) -> list[str]:
    """Write the models that this machine can run; return their names."""
    found = []
    if importlib.util.find_spec("torch") is not None:
        version = folder / "torch" / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(TORCH, encoding="utf-8")
        (version.parent / "model.yaml").write_text(f"runtime: python\n{SIGNATURE}", encoding="utf-8")
        found.append("torch")
    if has_cuda():
        for name, device in (("dense_gpu", "gpu"), ("dense_cpu", "cpu")):
            _dense(folder / name, device)
        _counter(folder / "counter")
        found += ["dense", "counter"]
    return found


def _dense(folder: Path, device: str) -> None:
    weights = np.random.default_rng(3).normal(size=(64, 64)).astype(np.float32)
    x, y = (helper.make_tensor_value_info(each, TensorProto.FLOAT, ["n", 64]) for each in "xy")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    _save(folder, helper.make_graph(nodes, "dense", [x], [y], [numpy_helper.from_array(weights, "w")]))
    (folder / "model.yaml").write_text(f"device: {device}\nmax_batch_size: 8\n", encoding="utf-8")


def _counter(folder: Path) -> None:
    """Write a model whose state is the sum of what it was given."""
    names = ("x", "s", "y", "s_next")
    x, s, y, kept = (helper.make_tensor_value_info(each, TensorProto.FLOAT, ["n", 4]) for each in names)
    nodes = [helper.make_node("Add", ["x", "s"], ["s_next"]), helper.make_node("Identity", ["s_next"], ["y"])]
    _save(folder, helper.make_graph(nodes, "counter", [x, s], [y, kept]))
    said = "device: gpu\nmax_batch_size: 8\nsequence: {states: [{input: s, output: s_next}]}\n"
    (folder / "model.yaml").write_text(said, encoding="utf-8")


def _save(folder: Path, graph: onnx.GraphProto) -> None:
    (folder / "1").mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "1" / "model.onnx"))


@contextlib.contextmanager
def running(folder: Path) -> Iterator[tuple[str, int]]:
    """Run a mesh of one node; give the router's address and the node's process."""
    command = [sys.executable, "-m", "mesh.cli.main", "up", "--nodes", "1", "--models", str(folder), "--json"]
    command += ["--grpc-port", "0", "--http-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        said: dict[str, Any] = json.loads(process.stdout.readline())
        yield said["router"]["grpc"], said["nodes"][0]["pid"]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(WAIT_S)


def on_gpu() -> dict[int, int]:
    """Return what processes hold on the first GPU, as NVML says."""
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    found = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return {each.pid: int(each.usedGpuMemory or 0) for each in found}


def used() -> int:
    """Return what is used on the first GPU."""
    return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)


def until(reached: Callable[[], Any]) -> Any:
    """Return what `reached` returns once it is something; the last when it takes too long."""
    end_s = time.monotonic() + WAIT_S
    while not (found := reached()) and time.monotonic() < end_s:
        time.sleep(0.1)
    return found


class Check:
    """Says what was expected and what came."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, what: str, right: Any, came: str = "") -> None:
        """Take one result."""
        self.failed += not right
        print(f"{'ok   ' if right else 'WRONG'}  {what}{f': {came}' if came else ''}", flush=True)


def check_torch(client: Client, check: Check) -> None:
    """Check a torch model in a worker: its answer, its account, its replacement, and the memory after it."""
    rows = np.arange(4, dtype=np.float32).reshape(1, 4)
    before = used()
    check("a torch model in a worker answers", np.array_equal(client.infer("torch", {"x": rows})["y"], rows))
    holders = {pid: size for pid, size in on_gpu().items() if size >= TORCH_BYTES}
    check("NVML shows its process", holders, f"{ {pid: size >> 20 for pid, size in holders.items()} } MiB")
    (copy,) = client.models("torch")[0].copies
    near = any(abs(copy.bytes - size) <= max(size // 10, 64 << 20) for size in holders.values())
    check("its copy is accounted with that", near, f"{copy.bytes >> 20} MiB on {copy.device}")
    for pid in holders:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)

    def answered() -> bool:
        try:
            return bool(np.array_equal(client.infer("torch", {"x": rows})["y"], rows))
        except MeshClientError:
            return False

    began_s = time.monotonic()
    check("killed, it is replaced and answers", until(answered), f"after {time.monotonic() - began_s:.1f} s")
    client.unload("torch")
    left = until(lambda: used() - before < TORCH_BYTES // 4)
    check("unloaded, its memory is back", left, f"{(used() - before) >> 20} MiB more than before")


def check_onnx(client: Client, check: Check) -> None:
    """Check the CUDA provider against the CPU, and states that stay on the device."""
    rows = np.random.default_rng(4).random((8, 64), dtype=np.float32)
    here, there = (client.infer(f"dense_{each}", {"x": rows})["y"] for each in ("cpu", "gpu"))
    check(
        "CUDA answers as the CPU", np.allclose(here, there, rtol=1e-2, atol=1e-3), f"{np.abs(here - there).max():.2e}"
    )
    (copy,) = client.models("dense_gpu")[0].copies
    check("its copy is on the GPU", copy.device.startswith("gpu"), f"{copy.bytes >> 20} MiB on {copy.device}")
    with client.session("counter") as session:
        for step in range(1, 6):
            found = session.step({"x": np.ones((1, 4), np.float32)})["y"]
            check(f"step {step} of a sequence on the GPU", (found == step).all(), str(found.ravel().tolist()))


def main() -> int:
    """Check everything that this machine has."""
    try:
        pynvml.nvmlInit()
        name = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
    except pynvml.NVMLError as error:
        print(f"there is no GPU here ({error}): nothing was checked")
        return NO_GPU
    print(f"{name}; CUDA in ONNX Runtime: {has_cuda()}")
    check = Check()
    with tempfile.TemporaryDirectory(prefix="mesh-gpu-") as scratch:
        models = write_repository(Path(scratch))
        for each, needed in (("torch", "torch"), ("dense", "onnxruntime-gpu")):
            if each not in models:
                print(f"left out: {needed} is not installed")
        if not models:
            return NO_GPU
        with running(Path(scratch)) as (address, _), Client(address, timeout_s=WAIT_S) as client:
            if "torch" in models:
                check_torch(client, check)
            if "dense" in models:
                check_onnx(client, check)
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
