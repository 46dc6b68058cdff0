"""Messages of ModelStreamInfer that router and node write alike."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from mesh.api.messages import InferParameter, ModelInferResponse, ModelStreamInferResponse
from mesh.core.errors import Code, MeshError, RemoteError, code_of

ERROR_TAG = 0x0A
"""The first byte of a message that carries an error: field 1 of ModelStreamInferResponse, length-delimited."""

CODE_PARAMETER = "mesh_code"
"""In a failed message from node to router: the gRPC code. The router takes it out."""
NOT_RUN_PARAMETER = "mesh_not_run"
"""In a failed message from node to router: the request was certainly not run, so another copy may be asked."""


def error_message(error: MeshError, request_id: str, *, code: int | None = None, not_run: bool = False) -> bytes:
    """Return a failed request's answer in a stream, which stays open (Triton's rule).

    tritonclient hands its user the text alone: the request's id and the code's name stand in it. With a `code` it is a
    message from node to router, with the text as it is.
    """
    response = ModelInferResponse(id=request_id)
    if code is not None:
        response.parameters[CODE_PARAMETER].int64_param = code
        if not_run:
            response.parameters[NOT_RUN_PARAMETER].bool_param = True
        return ModelStreamInferResponse(error_message=error.message, infer_response=response).SerializeToString()
    known = f"[request id: {request_id}] " if request_id and "[request id:" not in error.message else ""
    text = f"{known}{error.message} ({code_of(error).name})"
    return ModelStreamInferResponse(error_message=text, infer_response=response).SerializeToString()


def read_error(message: bytes) -> tuple[RemoteError, bool] | None:
    """Return the error in a stream message from a node, and whether the request was certainly not run.

    None for a message that carries none, or not one of a node to a router.
    """
    if message[:1] != bytes((ERROR_TAG,)):
        return None
    try:
        decoded = ModelStreamInferResponse.FromString(message)
    except DecodeError:
        return None
    parameters = decoded.infer_response.parameters
    if CODE_PARAMETER not in parameters:
        return None
    code = int(parameters[CODE_PARAMETER].int64_param)
    known = code if 0 < code <= max(Code) else Code.UNKNOWN
    return RemoteError(known, decoded.error_message), NOT_RUN_PARAMETER in parameters


FINAL = ModelInferResponse(parameters={"triton_final_response": InferParameter(bool_param=True)}).SerializeToString()
"""The parameter that ends every answer of an ordinary model: behind a response, it merges into it."""
INFER_RESPONSE_TAG = b"\x12"
"""Field 2 of ModelStreamInferResponse, length-delimited."""


def final_message(response: bytes) -> bytes:
    """Return a serialized ModelInferResponse as a stream message with ``triton_final_response``, without decoding it.

    Concatenated protobuf messages merge, so the parameter is put behind the bytes.
    """
    length = len(response) + len(FINAL)
    head = bytearray(INFER_RESPONSE_TAG)
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return b"".join((head, response, FINAL))
