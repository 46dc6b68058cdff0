"""The documents' own lines, executed, and their links."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mesh.core.types import Device, DeviceKind, Dtype
from mesh.node.repository import Scanner
from mesh.node.runtimes.base import LoadSpec, Request
from mesh.node.runtimes.python import PythonRuntime
from tests.fixtures.mesh import MODELS, ROOT, mesh_up
from tests.fixtures.models import folder_of
from tests.fixtures.stateful import Copy

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def test_the_client_page_runs_from_top_to_bottom() -> None:
    with mesh_up(MODELS / "demo") as mesh:
        program = "\n".join(blocks("docs/client.md", "python")).replace("127.0.0.1:8001", mesh.grpc)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[0 2] 1")
    assert "Request for unknown model: 'nothing' is not found" in done.stdout
    assert done.stdout.endswith("10\n")


def test_the_readmes_client_example_runs() -> None:
    (program,) = blocks("README.md", "python")
    with mesh_up(MODELS / "demo") as mesh:
        program = program.replace("127.0.0.1:8001", mesh.grpc)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert "iris ready" in done.stdout


def test_the_repository_pages_model_loads_and_infers(tmp_path: Path) -> None:
    folder = tmp_path / "doubled" / "1"
    folder.mkdir(parents=True)
    yaml, _, scaling, isolation = blocks("docs/model-repository.md", "yaml")
    (code,) = blocks("docs/model-repository.md", "python")
    (folder.parent / "model.yaml").write_text(yaml + scaling)
    (folder / "model.py").write_text(code)
    scan = Scanner([tmp_path]).scan()
    assert not scan.refused
    (model,) = scan.models.values()
    loaded = PythonRuntime().load(LoadSpec(model, folder, Device(DeviceKind.CPU, 0, "cpu", 0, 0)))
    outputs = loaded.run({"x": np.ones((2, 4), dtype=np.float32)}, Request())
    assert outputs["y"].tolist() == [[2.0] * 4] * 2
    assert model.inputs[0].dtype is Dtype.FP32
    (folder.parent / "model.yaml").write_text(isolation)
    (isolated,) = Scanner([tmp_path]).scan().models.values()
    assert (isolated.process.mode, isolated.process.instances, isolated.process.max_run_s) == ("process", 2, 5)
    assert (model.scaling.min_copies, model.scaling.max_copies, model.scaling.target) == (1, 3, 8)


def test_the_sessions_pages_programs_run() -> None:
    program, _ = blocks("docs/sessions.md", "python")
    (commands,) = blocks("docs/sessions.md", "sh")
    with mesh_up(MODELS / "demo") as mesh:
        program = program.replace("127.0.0.1:8001", mesh.grpc)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=110, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("begin at frame 30\nend at frame 40\n")
        assert len(done.stdout.splitlines()[-1]) >= 20
        for line in commands.splitlines():
            words = [sys.executable, "-m", "mesh.cli.main", *shlex.split(line)[1:]]
            env = {**os.environ, "MESH_ADDRESS": mesh.grpc}
            ran = subprocess.run(words, capture_output=True, text=True, timeout=110, check=False, env=env)
            assert ran.returncode == 0, ran.stderr
            assert ran.stdout.strip(), line


async def test_the_sessions_pages_model_keeps_its_state(tmp_path: Path) -> None:
    _, code = blocks("docs/sessions.md", "python")
    yaml, onnx_yaml = blocks("docs/sessions.md", "yaml")
    (folder_of(tmp_path, "mean", yaml) / "model.py").write_text(code)
    copy = Copy(tmp_path, "mean")
    means = []
    for at, value in enumerate((1.0, 3.0, 8.0)):
        given = {"x": np.array([[value]], np.float32)}
        ran = await copy.submit(given, sequence_id=1, sequence_start=at == 0)
        means.append(float(ran.outputs["mean"][0, 0]))
    assert means == [1.0, 2.0, 4.0]
    (folder_of(tmp_path / "onnx", "gru", onnx_yaml) / "model.onnx").write_bytes(b"")
    assert Scanner([tmp_path / "onnx"]).scan().refused == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_http_pages_lines_run() -> None:
    _, commands = blocks("docs/http.md", "sh")
    lines = commands.replace("\n  {", " {").replace("-d '\n", "-d '").strip().splitlines()
    with mesh_up(MODELS / "demo") as mesh:
        for line in lines:
            words = shlex.split(line.replace("localhost:8000", mesh.http))
            ran = subprocess.run([*words, "--fail-with-body"], capture_output=True, text=True, timeout=110, check=False)
            assert ran.returncode == 0, (line, ran.stdout)
            for event in ran.stdout.strip().split("\n\n"):
                json.loads(event.removeprefix("data: "))
