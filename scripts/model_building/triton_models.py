"""Writes the ONNX half of models/triton-examples: the models that Triton's public client examples call.

Their signatures are fixed by those examples. Nothing here is learned; densenet_onnx only has DenseNet's signature.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scripts.model_building.graphs import node, save_graph

SEED = 20261120
CLASSES = 1000


def build_simple(root: Path) -> None:
    """Write simple: the sum and difference of two INT32 [-1,16]."""
    save_graph(
        root / "triton-examples" / "simple" / "1" / "model.onnx",
        "simple",
        [node("Add", ["INPUT0", "INPUT1"], "OUTPUT0"), node("Sub", ["INPUT0", "INPUT1"], "OUTPUT1")],
        inputs=[("INPUT0", "INT32", ["batch", 16]), ("INPUT1", "INT32", ["batch", 16])],
        outputs=[("OUTPUT0", "INT32", ["batch", 16]), ("OUTPUT1", "INT32", ["batch", 16])],
        weights={},
    )


def build_simple_int8(root: Path) -> None:
    """Write simple_int8: the same in INT8, computed in INT32 because ONNX Runtime's CPU has no INT8 addition."""
    to_int32, to_int8 = 6, 3  # numbers of TensorProto.DataType
    save_graph(
        root / "triton-examples" / "simple_int8" / "1" / "model.onnx",
        "simple_int8",
        [
            node("Cast", ["INPUT0"], "wide0", to=to_int32),
            node("Cast", ["INPUT1"], "wide1", to=to_int32),
            node("Add", ["wide0", "wide1"], "sum"),
            node("Sub", ["wide0", "wide1"], "difference"),
            node("Cast", ["sum"], "OUTPUT0", to=to_int8),
            node("Cast", ["difference"], "OUTPUT1", to=to_int8),
        ],
        inputs=[("INPUT0", "INT8", ["batch", 16]), ("INPUT1", "INT8", ["batch", 16])],
        outputs=[("OUTPUT0", "INT8", ["batch", 16]), ("OUTPUT1", "INT8", ["batch", 16])],
        weights={},
    )


def build_densenet(root: Path) -> None:
    """Write densenet_onnx: FP32 [3,224,224] to 1000 values, the mean colour of each quarter times a fixed matrix."""
    folder = root / "triton-examples" / "densenet_onnx"
    weight = np.random.default_rng(SEED).standard_normal((12, CLASSES)).astype(np.float32)
    save_graph(
        folder / "1" / "model.onnx",
        "densenet_onnx",
        [
            node("Unsqueeze", ["data_0", "first_axis"], "images"),
            node("AveragePool", ["images"], "quarters", kernel_shape=[112, 112], strides=[112, 112]),
            node("Reshape", ["quarters", "flat"], "colours"),
            node("MatMul", ["colours", "weight"], "fc6_1"),
        ],
        inputs=[("data_0", "FP32", [3, 224, 224])],
        outputs=[("fc6_1", "FP32", [CLASSES])],
        weights={
            "first_axis": np.array([0], np.int64),
            "flat": np.array([12], np.int64),
            "weight": weight,
        },
    )
    labels = "".join(f"class_{index}\n" for index in range(CLASSES))
    (folder / "labels.txt").write_text(labels, encoding="utf-8")
