"""Messages of ModelStreamInfer that router and node write alike."""

from __future__ import annotations

from mesh.api.messages import ModelInferResponse, ModelStreamInferResponse
from mesh.core.errors import MeshError, code_of


def error_message(error: MeshError, request_id: str) -> bytes:
    """Return a failed request's answer in a stream, which stays open (Triton's rule).

    tritonclient hands its user the text alone: the request's id and the code's name stand in it.
    """
    known = f"[request id: {request_id}] " if request_id and "[request id:" not in error.message else ""
    return ModelStreamInferResponse(
        error_message=f"{known}{error.message} ({code_of(error).name})",
        infer_response=ModelInferResponse(id=request_id),
    ).SerializeToString()
