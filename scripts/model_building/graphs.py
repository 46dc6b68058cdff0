"""Writes small ONNX graphs by hand and compares two of them.

Owns the file format: opset, IR version, initializers. What the weights are is the business of `demo_models` and
`triton_models`. Only the `onnx` package is used, so no converter decides how our models look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
"""The IR version that came with opset 17; ONNX Runtime 1.20, the oldest we take, reads up to 10."""

ELEMENT: Mapping[str, int] = {
    "FP32": TensorProto.FLOAT,
    "INT64": TensorProto.INT64,
    "INT32": TensorProto.INT32,
    "INT8": TensorProto.INT8,
}
"""KServe's names for element types to ONNX's."""

Tensor = tuple[str, str, Sequence[int | str]]
"""Name, KServe element type, shape; a text in the shape names an axis of any length."""


def save_graph(  # noqa: PLR0917 - a graph is these six things, and all callers name the last three
    path: Path,
    name: str,
    nodes: Sequence[Any],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    weights: Mapping[str, np.ndarray[Any, Any]],
) -> None:
    """Check the graph with onnx's own checker and write it to `path`; its folder is made if need be."""
    graph = helper.make_graph(
        list(nodes),
        name,
        [helper.make_tensor_value_info(tensor, ELEMENT[dtype], list(shape)) for tensor, dtype, shape in inputs],
        [helper.make_tensor_value_info(tensor, ELEMENT[dtype], list(shape)) for tensor, dtype, shape in outputs],
        initializer=[numpy_helper.from_array(value, weight) for weight, value in weights.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="scripts/build_models.py",
    )
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> Any:
    """Return one ONNX operator with one output."""
    return helper.make_node(kind, list(inputs), [output], name=output, **attributes)


def differences(built: Path, kept: Path, *, rtol: float, atol: float) -> list[str]:
    """Return what sets the graph in `built` apart from the one in `kept`: operators, signature, weights.

    Weights count as equal within ``atol + rtol * |kept|``: another BLAS adds in another order.
    """
    ours, theirs = (onnx.load_model_from_string(path.read_bytes()).graph for path in (built, kept))
    found = [
        f"its {part}s differ"
        for part in ("node", "input", "output")
        if [item.SerializeToString(deterministic=True) for item in getattr(ours, part)]
        != [item.SerializeToString(deterministic=True) for item in getattr(theirs, part)]
    ]
    new, old = (
        {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer} for graph in (ours, theirs)
    )
    if new.keys() != old.keys():
        return [*found, f"its weights are {sorted(new)}, not {sorted(old)}"]
    for name, value in new.items():
        if value.shape != old[name].shape or value.dtype != old[name].dtype:
            found.append(f"weight {name} is {value.dtype}{value.shape}, not {old[name].dtype}{old[name].shape}")
        elif not np.allclose(value, old[name], rtol=rtol, atol=atol):
            found.append(f"weight {name} differs by up to {np.max(np.abs(value - old[name])):.3g}")
    return found
