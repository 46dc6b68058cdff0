"""The client's own distribution: what is in it, and that it works with nothing else of the mesh."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.fixtures.mesh import ROOT

PARTS = {"mesh/__init__.py", "mesh/api", "mesh/core", "mesh/wire"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    done = subprocess.run(
        [*command, str(ROOT / "clients" / "python")], capture_output=True, text=True, timeout=110, check=False
    )
    if "No module named 'hatchling'" in done.stderr or "Cannot import 'hatchling" in done.stderr:
        pytest.skip("hatchling is not installed")
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_client_the_messages_and_the_wire_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    packages = {"/".join(name.split("/")[:2]) for name in names if name.endswith(".py")}
    assert {each for each in packages if each.startswith("mesh/")} == PARTS
    assert {name for name in names if name.startswith("mesh/core/")} == {
        "mesh/core/__init__.py",
        "mesh/core/errors.py",
        "mesh/core/texts.py",
        "mesh/core/types.py",
        "mesh/core/traffic/__init__.py",
        "mesh/core/traffic/held.py",
    }


def test_it_imports_without_the_rest_of_the_mesh(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import mesh_client, mesh, numpy\n"
        f"assert mesh.__file__.startswith({str(tmp_path)!r}), mesh.__file__\n"
        "from mesh_client._values import request_of\n"
        "assert request_of('m', {'x': numpy.zeros(2, 'f4')}).inputs[0].datatype == 'FP32'\n"
        "mesh_client.AsyncClient('localhost:1', transport='wire')\n"
        "foreign = {'msgspec', 'uvloop', 'onnxruntime', 'starlette', 'typer', 'yaml'} & set(sys.modules)\n"
        "assert not foreign, foreign\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=110, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
