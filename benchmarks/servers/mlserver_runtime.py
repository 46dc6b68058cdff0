"""The model class that MLServer runs: ONNX Runtime with the session options of our node. Read by MLServer alone.

MLServer hands tensors over as lists of Python numbers and wants them back so (its NumpyCodec does the same).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Onnx(MLModel):  # type: ignore[misc] # MLServer lives in an environment of its own, unseen by mypy
    """One ONNX file with input `x` and output `y`."""

    async def load(self) -> bool:
        """Open the session."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session: Any = ort.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run once."""
        (x,) = payload.inputs
        rows = np.array(x.data.root, dtype=np.float32).reshape(x.shape)
        (y,) = self._session.run(["y"], {"x": rows})
        output = ResponseOutput(name="y", datatype="FP32", shape=list(y.shape), data=y.ravel().tolist())
        return InferenceResponse(model_name=self.name, outputs=[output])

    async def predict_stream(self, payloads: AsyncIterator[InferenceRequest]) -> AsyncIterator[InferenceResponse]:
        """Answer each message of a stream."""
        async for payload in payloads:
            yield await self.predict(payload)
