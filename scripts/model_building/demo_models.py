"""Trains the models of models/demo and writes them with the rows they never saw (models/data).

Owns what is learned and how rows are split. Every training here is convex or closed form, so that another machine
arrives at the same weights up to rounding; that is why the digits network keeps its first layer at random values.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.linear_model import LogisticRegression, Ridge

from scripts.model_building.graphs import node, save_graph
from scripts.model_building.titles import HELD_OUT, TRAINED, Pair, make_pairs

Array = np.ndarray[Any, Any]

IRIS_HELD_OUT_EVERY = 3
"""Row i is held out when i % 3 == 2: the rows are sorted by kind, so each kind keeps a third."""
DIGITS_HELD_OUT_EVERY = 9
"""Row i is held out when i % 9 == 4: 200 of 1797 rows."""
DIABETES_HELD_OUT_EVERY = 5
"""Row i is held out when i % 5 == 4: 88 of 442 rows."""
HIDDEN_UNITS = 256
"""More of them no longer help on held-out digits; the file stays under 80 KB."""
SEED = 20261120


def build_iris(root: Path) -> None:
    """Write demo/iris (logistic regression, x FP32 [-1,4]) and data/iris.csv (all 150 rows)."""
    rows, labels, names = _bunch(load_iris(), "target_names")
    train = np.arange(len(rows)) % IRIS_HELD_OUT_EVERY != 2
    weight, bias = _fit_classes(rows[train], labels[train], strength=10.0)
    folder = root / "demo" / "iris"
    save_graph(
        folder / "1" / "model.onnx",
        "iris",
        [node("Gemm", ["x", "weight", "bias"], "logits"), *_class_outputs("logits")],
        inputs=[("x", "FP32", ["batch", 4])],
        outputs=[("label", "INT64", ["batch"]), ("probabilities", "FP32", ["batch", 3])],
        weights={"weight": weight, "bias": bias},
    )
    _write_labels(folder, [str(name) for name in names])
    header = "sepal_length_cm,sepal_width_cm,petal_length_cm,petal_width_cm,label"
    _write_table(root / "data" / "iris.csv", header, np.column_stack([rows, labels]))


def build_diabetes(root: Path) -> None:
    """Write demo/diabetes (ridge regression, x FP32 [-1,10]) and data/diabetes.csv (the held-out rows)."""
    rows, target, names = _bunch(load_diabetes(), "feature_names")
    held_out = np.arange(len(rows)) % DIABETES_HELD_OUT_EVERY == 4
    fitted = Ridge(alpha=0.05, solver="cholesky").fit(rows[~held_out], target[~held_out])
    save_graph(
        root / "demo" / "diabetes" / "1" / "model.onnx",
        "diabetes",
        [node("Gemm", ["x", "weight", "bias"], "y")],
        inputs=[("x", "FP32", ["batch", 10])],
        outputs=[("y", "FP32", ["batch", 1])],
        weights={
            "weight": fitted.coef_.astype(np.float32).reshape(10, 1),
            "bias": np.array([fitted.intercept_], np.float32),
        },
    )
    header = ",".join([*(str(name) for name in names), "progression"])
    _write_table(root / "data" / "diabetes.csv", header, np.column_stack([rows, target])[held_out])


def build_digits(root: Path) -> None:
    """Write demo/digits (two layers, image FP32 [-1,8,8] of 0..16) and data/digits.csv (200 held-out rows).

    The first layer is random and fixed, the second is fitted (an extreme learning machine).
    """
    rows, labels, _ = _bunch(load_digits(), "target_names")
    held_out = np.arange(len(rows)) % DIGITS_HELD_OUT_EVERY == 4
    random = np.random.default_rng(SEED)
    first = random.standard_normal((64, HIDDEN_UNITS)) / 64
    first_bias = random.uniform(-0.5, 0.5, HIDDEN_UNITS)
    first_bias -= rows[~held_out].mean(axis=0) @ first  # about half of the units are on for a mean picture
    hidden = np.maximum(rows @ first + first_bias, 0)
    second, second_bias = _fit_classes(hidden[~held_out], labels[~held_out], strength=0.01)
    folder = root / "demo" / "digits"
    save_graph(
        folder / "1" / "model.onnx",
        "digits",
        [
            node("Flatten", ["image"], "pixels", axis=1),
            node("Gemm", ["pixels", "weight1", "bias1"], "sums"),
            node("Relu", ["sums"], "hidden"),
            node("Gemm", ["hidden", "weight2", "bias2"], "logits"),
            *_class_outputs("logits"),
        ],
        inputs=[("image", "FP32", ["batch", 8, 8])],
        outputs=[("label", "INT64", ["batch"]), ("probabilities", "FP32", ["batch", 10])],
        weights={
            "weight1": first.astype(np.float32),
            "bias1": first_bias.astype(np.float32),
            "weight2": second,
            "bias2": second_bias,
        },
    )
    _write_labels(folder, [str(digit) for digit in range(10)])
    header = ",".join([*(f"p{pixel}" for pixel in range(64)), "label"])
    _write_table(root / "data" / "digits.csv", header, np.column_stack([rows, labels])[held_out])


def build_text_score(root: Path, features_model: Path) -> None:
    """Write demo/text_score (logistic regression over text_features) and both files of title pairs.

    `features_model` is the model.py of text_features: training sees exactly what the mesh will compute.
    """
    trained, held_out = make_pairs(TRAINED), make_pairs(HELD_OUT)
    features = compute_features(features_model, trained)
    weight, bias = _fit_classes(features, np.array([pair.match for pair in trained]), strength=1.0)
    save_graph(
        root / "demo" / "text_score" / "1" / "model.onnx",
        "text_score",
        [node("Gemm", ["features", "weight", "bias"], "logit"), node("Sigmoid", ["logit"], "score")],
        inputs=[("features", "FP32", ["batch", features.shape[1]])],
        outputs=[("score", "FP32", ["batch", 1])],
        weights={"weight": weight, "bias": bias},
    )
    for name, pairs in (("titles_train.csv", trained), ("titles.csv", held_out)):
        lines = [f"{pair.left},{pair.right},{int(pair.match)}" for pair in pairs]
        _write_text(root / "data" / name, "\n".join(["left,right,match", *lines]) + "\n")


def compute_features(features_model: Path, pairs: Sequence[Pair]) -> Array:
    """Return what text_features computes for `pairs`: FP32 [len(pairs), features]."""
    spec = importlib.util.spec_from_file_location("text_features_model", features_model)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"expected the model.py of text_features, found nothing at {features_model}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    left = np.array([[pair.left.encode()] for pair in pairs], object)
    right = np.array([[pair.right.encode()] for pair in pairs], object)
    features: Array = module.Model().infer({"left": left, "right": right})["features"]
    return features


def _fit_classes(rows: Array, labels: Array, *, strength: float) -> tuple[Array, Array]:
    """Return weight FP32 [columns, outputs] and bias FP32 [outputs] of a logistic regression over `rows`.

    Fitted on centred and scaled columns: the minimum is then sharp, and two machines arrive at the same weights.
    """
    mean, scale = rows.mean(axis=0), np.maximum(rows.std(axis=0), 1e-3)
    fitted = LogisticRegression(C=strength, tol=1e-6, max_iter=20_000).fit((rows - mean) / scale, labels)
    weight = fitted.coef_.T / scale[:, None]
    return weight.astype(np.float32), (fitted.intercept_ - mean @ weight).astype(np.float32)


def _class_outputs(logits: str) -> list[Any]:
    return [
        node("Softmax", [logits], "probabilities", axis=-1),
        node("ArgMax", [logits], "label", axis=-1, keepdims=0),
    ]


def _bunch(data: Any, names: str) -> tuple[Array, Array, Sequence[str]]:
    return data["data"], data["target"], data[names]


def _write_labels(folder: Path, labels: Sequence[str]) -> None:
    _write_text(folder / "labels.txt", "\n".join(labels) + "\n")


def _write_table(path: Path, header: str, table: Array) -> None:
    # Nine digits are enough to give every float32 back exactly.
    lines = [",".join(f"{value:.9g}" for value in row) for row in table]
    _write_text(path, "\n".join([header, *lines]) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
