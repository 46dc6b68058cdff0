"""A node's own scan takes every checked-in model and refuses none."""

from __future__ import annotations

from mesh.node.repository import Scanner
from tests.models.repositories import DECOUPLED, DEMO, EXAMPLES, FOLDERS


def test_a_node_takes_every_model_and_refuses_no_folder() -> None:
    scan = Scanner([DEMO, EXAMPLES, DECOUPLED]).scan()
    assert scan.refused == {}
    assert {name for name, _ in scan.models} == {folder.name for folder in FOLDERS}


def test_what_a_model_is_does_not_change_when_python_leaves_byte_code_beside_it() -> None:
    scanner = Scanner([DEMO])
    before = scanner.scan().models
    cache = DEMO / "text_features" / "1" / "__pycache__"
    made = not cache.exists()
    cache.mkdir(exist_ok=True)
    left = cache / "left-by-a-test.pyc"
    left.write_bytes(b"byte code")
    try:
        assert scanner.scan().models == before
    finally:
        left.unlink()
        if made:
            cache.rmdir()
