"""The rules of the house that a machine can hold: who imports whom, what pure code may touch, how long things get."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*(ROOT / "mesh").rglob("*.py"), *(ROOT / "clients/python/mesh_client").rglob("*.py")])
WRITTEN = [path for path in SOURCES if "api/gen" not in path.as_posix()]

IMPURE = {"asyncio", "socket", "grpc", "time", "random", "os", "logging", "threading", "subprocess", "secrets"}
PROTOCOL = (
    "frames fields header_cache streams flow windows control sending connection grpc_framing heads peek step_front"
)
"""The half of the wire that knows bytes alone."""
PURE = [
    *sorted((ROOT / "mesh/core").rglob("*.py")),
    *(ROOT / f"mesh/wire/{name}.py" for name in PROTOCOL.split()),
    ROOT / "mesh/registry/keys.py",
]

MAY_IMPORT = {
    "core": set(),
    "api": {"core"},
    "wire": {"api", "core"},
    "telemetry": {"wire", "api", "core"},
    "registry": {"wire", "telemetry", "api", "core"},
    "gateway": {"registry", "wire", "telemetry", "api", "core"},
    "node": {"gateway", "registry", "wire", "telemetry", "api", "core"},
    "router": {"gateway", "registry", "wire", "telemetry", "api", "core"},
    "cli": {"router", "node", "gateway", "registry", "wire", "telemetry", "api", "core"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_deciding_code_touches_neither_io_nor_clocks_nor_chance(path: Path) -> None:
    assert sorted({name.split(".")[0] for name in imports(path)} & IMPURE) == []


@pytest.mark.parametrize("path", [path for path in WRITTEN if path.is_relative_to(ROOT / "mesh")], ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    parts = path.relative_to(ROOT / "mesh").parts
    if len(parts) == 1:
        return
    package = parts[0]
    found = {name.split(".")[1] for name in imports(path) if name.startswith("mesh.")}
    assert sorted(found - MAY_IMPORT[package] - {package}) == []


@pytest.mark.parametrize("path", sorted((ROOT / "clients/python/mesh_client").rglob("*.py")), ids=name_of)
def test_the_client_imports_the_api_alone(path: Path) -> None:
    found = {name.split(".")[1] for name in imports(path) if name.startswith("mesh.")}
    assert found <= ({"api", "core", "wire"} if path.name == "_transport_wire.py" else {"api", "core"})


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_files_stay_under_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("name", ["mesh/router/dispatch.py", "mesh/node/infer.py"])
def test_hot_path_files_stay_under_250_lines(name: str) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= 250


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_functions_stay_under_60_lines(path: Path) -> None:
    # Without the signature: that of a command is the list of its flags.
    long = [
        (node.name, node.end_lineno - node.body[0].lineno + 1)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.body[0].lineno + 1 > 60
    ]
    assert long == []
