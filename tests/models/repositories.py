"""Finds the checked-in models, reads their model.yaml and loads the Python ones, without any part of the mesh."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
MODELS = ROOT / "models"
DEMO, EXAMPLES, DECOUPLED = (MODELS / name for name in ("demo", "triton-examples", "triton-decoupled"))
FOLDERS = sorted(path.parent for repository in (DEMO, EXAMPLES, DECOUPLED) for path in repository.glob("*/model.yaml"))

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Context:
    """What a Python model's load gets from its node."""

    path: Path
    name: str
    version: str = "1"
    device: str = "cpu:0"
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What a Python model's infer may take as its second argument."""

    parameters: dict[str, bool | int | str]
    id: str = ""


def config(folder: Path) -> dict[str, Any]:
    loaded = yaml.safe_load((folder / "model.yaml").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def session(folder: Path) -> Any:
    return onnxruntime.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])


def python_module(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"model_under_test_{folder.name}", folder / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python_model(folder: Path) -> Any:
    model = python_module(folder).Model()
    if hasattr(model, "load"):
        model.load(Context(path=folder / "1", name=folder.name))
    return model


def table(name: str) -> Array:
    return np.loadtxt(MODELS / "data" / name, delimiter=",", skiprows=1)


def titles(name: str) -> tuple[Array, Array, Array]:
    """Return left and right as BYTES [n,1] and match as bool [n]."""
    rows = np.loadtxt(MODELS / "data" / name, delimiter=",", skiprows=1, dtype=str)
    left, right = (np.array([[str(text).encode()] for text in rows[:, column]], object) for column in (0, 1))
    return left, right, rows[:, 2] == "1"
