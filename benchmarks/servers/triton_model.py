"""The model class that Triton's Python backend runs: ONNX Runtime with the session options of our node.

Read by Triton alone, which takes it by the name TritonPythonModel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One ONNX file, beside this one, with input `x` and output `y`."""

    def initialize(self, args: dict[str, str]) -> None:  # noqa: ARG002 - Triton passes it
        """Open the session."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = Path(__file__).parent / "model.onnx"
        self._session: Any = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run each request."""
        return [self._run(pb_utils.get_input_tensor_by_name(each, "x").as_numpy()) for each in requests]

    def _run(self, rows: Any) -> Any:
        (y,) = self._session.run(["y"], {"x": rows})
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("y", y)])
