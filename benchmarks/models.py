"""The two models that every peer serves, made from a seed, and what their answers must be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from mesh.api.messages import ModelInferRequest, ModelInferResponse
from mesh.api.tensors import decode_raw, encode_raw
from mesh.core.types import Dtype

Rows = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Case:
    """A model, one request for it, and the right answer."""

    name: str
    what: str
    model: onnx.ModelProto
    rows: Rows

    def request(self) -> bytes:
        """Return the ModelInferRequest's bytes."""
        message = ModelInferRequest(model_name=self.name, raw_input_contents=[encode_raw(self.rows, Dtype.FP32)])
        message.inputs.add(name="x", datatype="FP32", shape=self.rows.shape)
        return message.SerializeToString()

    def check(self, answer: bytes) -> None:
        """Raise AssertionError unless `answer` is the right ModelInferResponse."""
        session = ort.InferenceSession(self.model.SerializeToString())
        (expected,) = session.run(None, {"x": self.rows})
        response = ModelInferResponse.FromString(answer)
        (output,) = response.outputs
        if response.raw_output_contents:
            got = decode_raw(response.raw_output_contents[0], Dtype.FP32, output.shape)
        else:
            got = np.array(output.contents.fp32_contents, dtype=np.float32).reshape(output.shape)
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def small() -> Case:
    """Return the 16-32-4 MLP with one row: the transport is nearly the whole cost."""
    random = np.random.default_rng(7)
    weights = {
        "w1": random.normal(size=(16, 32)).astype(np.float32),
        "b1": random.normal(size=32).astype(np.float32),
        "w2": random.normal(size=(32, 4)).astype(np.float32),
        "b2": random.normal(size=4).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
    ]
    model = _model(nodes, ["n", 16], ["n", 4], weights)
    return Case(
        "mlp", "small unary: FP32 [1,16] through a 16-32-4 MLP", model, random.random((1, 16), dtype=np.float32)
    )


def large() -> Case:
    """Return an identity over an image of 602,112 bytes: moving the tensor is the whole cost, in both directions."""
    image = np.random.default_rng(8).random((1, 3, 224, 224), dtype=np.float32)
    model = _model([helper.make_node("Identity", ["x"], ["y"])], [1, 3, 224, 224], [1, 3, 224, 224], {})
    return Case("image", "600 KB tensor in and out: FP32 [1,3,224,224]", model, image)


def _model(nodes: list[Any], shape_in: list[Any], shape_out: list[Any], weights: dict[str, Any]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "bench",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape_in)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape_out)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def write_repository(folder: Path, cases: list[Case]) -> None:
    """Write a model repository that the mesh serves."""
    for case in cases:
        version = folder / case.name / "1"
        version.mkdir(parents=True)
        onnx.save(case.model, str(version / "model.onnx"))


PYTHON = """\
import onnxruntime as ort

class Model:
    def load(self, context):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = str(context.path / "graph.onnx")
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def infer(self, inputs):
        return {"y": self.session.run(["y"], inputs)[0]}
"""
"""The class around a file that Triton's `servers/triton_model.py` is, in our words."""


def write_python_repository(folder: Path, cases: list[Case]) -> None:
    """Write the models as Python classes around the same files."""
    for case in cases:
        version = folder / case.name / "1"
        version.mkdir(parents=True)
        onnx.save(case.model, str(version / "graph.onnx"))
        (version / "model.py").write_text(PYTHON, encoding="utf-8")
        shapes = [
            [axis.dim_value or -1 for axis in value[0].type.tensor_type.shape.dim]
            for value in (case.model.graph.input, case.model.graph.output)
        ]
        batches = all(each[0] == -1 for each in shapes)
        (version.parent / "model.yaml").write_text(
            f"runtime: python\nmax_batch_size: {64 if batches else 0}\n"
            f"inputs: [{{name: x, dtype: FP32, shape: {shapes[0]}}}]\n"
            f"outputs: [{{name: y, dtype: FP32, shape: {shapes[1]}}}]\n",
            encoding="utf-8",
        )
