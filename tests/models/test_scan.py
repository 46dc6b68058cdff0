"""A node's own scan takes every checked-in model and refuses none."""

from __future__ import annotations

import shutil
from pathlib import Path

from mesh.node.repository import Scanner
from tests.models.repositories import DECOUPLED, DEMO, EXAMPLES, FOLDERS


def test_a_node_takes_every_model_and_refuses_no_folder() -> None:
    scan = Scanner([DEMO, EXAMPLES, DECOUPLED]).scan()
    assert scan.refused == {}
    assert {name for name, _ in scan.models} == {folder.name for folder in FOLDERS}


def test_what_a_model_is_does_not_change_when_python_leaves_byte_code_beside_it(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "demo", ignore=shutil.ignore_patterns("__pycache__"))
    scanner = Scanner([tmp_path / "demo"])
    before = scanner.scan().models
    cache = tmp_path / "demo" / "text_features" / "1" / "__pycache__"
    cache.mkdir()
    (cache / "model.pyc").write_bytes(b"byte code")
    assert scanner.scan().models == before
