"""What is checked in is what scripts/build_models.py builds, and its check can tell when it is not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from scripts import build_models
from tests.models.repositories import MODELS


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("built")
    build_models.build(root)
    yield root
    shutil.rmtree(root)


def test_a_rebuild_gives_what_is_checked_in(built: Path) -> None:
    assert build_models.stale(built, MODELS) == []


def test_every_checked_in_onnx_file_is_built(built: Path) -> None:
    kept = {path.relative_to(MODELS) for path in MODELS.rglob("*.onnx")}
    # No two machines train it alike: it is built by `train`, and not held against a fresh build.
    kept.remove(Path("demo/prose/1/model.onnx"))
    assert {path.relative_to(built) for path in built.rglob("*.onnx")} == kept


def test_a_changed_weight_is_found(built: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(built, kept)
    path = kept / "demo" / "iris" / "1" / "model.onnx"
    model = onnx.load(path)
    weight = next(weight for weight in model.graph.initializer if weight.name == "bias")
    changed = (numpy_helper.to_array(weight) + np.float32(0.5)).astype(np.float32)
    weight.CopyFrom(numpy_helper.from_array(changed, "bias"))
    onnx.save(model, path)
    assert build_models.stale(built, kept) == ["demo/iris/1/model.onnx: weight bias differs by up to 0.5"]


def test_a_changed_row_and_a_missing_file_are_found(built: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(built, kept)
    (kept / "data" / "iris.csv").write_text("changed\n")
    (kept / "demo" / "digits" / "labels.txt").unlink()
    assert build_models.stale(built, kept) == ["data/iris.csv: text differs", "demo/digits/labels.txt: missing"]
