"""Messages of ModelStreamInfer that router and node write alike."""

from __future__ import annotations

from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from mesh.api.messages import InferParameter, ModelInferResponse, ModelStreamInferResponse
from mesh.core.errors import Code, MeshError, RemoteError, SessionLost, UnknownSequence, code_of
from mesh.core.texts import status_text

ERROR_TAG = 0x0A
"""The first byte of a message that carries an error: field 1 of ModelStreamInferResponse, length-delimited."""

CODE_PARAMETER = "mesh_code"
"""In a failed message from node to router: the gRPC code. The router takes it out."""
NOT_RUN_PARAMETER = "mesh_not_run"
"""In a failed message from node to router: the request was certainly not run, so another copy may be asked."""


ABSENT_PARAMETER = "mesh_absent"
"""In a failed message from node to router: it does not hold the copy, or the sequence."""


COPY_AGE_PARAMETER = "mesh_copy_age_ms"
"""In a failed message from node to router, beside `ABSENT_PARAMETER`: `UnknownSequence.copy_age_s`."""


DIED_PARAMETER = "mesh_died"
"""In a failed message from node to router: the process that ran the request ended in the course of it."""


RESUMABLE_PARAMETER = "mesh_resumable"
"""In a failed message to a client: its sequence can go on from a state that the client keeps."""


def error_message(error: MeshError, request_id: str, *, code: int | None = None, not_run: bool = False) -> bytes:
    """Return a failed request's answer in a stream, which stays open (Triton's rule).

    tritonclient hands its user the text alone: the request's id and the code's name stand in it. With a `code` it is a
    message from node to router, with the text as it is.
    """
    response = ModelInferResponse(id=request_id)
    if isinstance(error, SessionLost) and error.resumable:
        response.parameters[RESUMABLE_PARAMETER].bool_param = True
    if code is not None:
        response.parameters[CODE_PARAMETER].int64_param = code
        if not_run:
            response.parameters[NOT_RUN_PARAMETER].bool_param = True
            if error.absent:
                response.parameters[ABSENT_PARAMETER].bool_param = True
            if isinstance(error, UnknownSequence) and error.copy_age_s is not None:
                response.parameters[COPY_AGE_PARAMETER].int64_param = int(error.copy_age_s * 1000)
        if error.died:
            response.parameters[DIED_PARAMETER].bool_param = True
        return ModelStreamInferResponse(error_message=error.message, infer_response=response).SerializeToString()
    known = f"[request id: {request_id}] " if request_id and "[request id:" not in error.message else ""
    text = status_text(f"{known}{error.message} ({code_of(error).name})")
    return ModelStreamInferResponse(error_message=text, infer_response=response).SerializeToString()


def read_error(message: bytes) -> Failure | None:
    """Return what failed, of a stream message from a node.

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
    error = RemoteError(known, decoded.error_message)
    age_s = parameters[COPY_AGE_PARAMETER].int64_param / 1000 if COPY_AGE_PARAMETER in parameters else None
    return Failure(
        error,
        NOT_RUN_PARAMETER in parameters,
        ABSENT_PARAMETER in parameters,
        died=DIED_PARAMETER in parameters,
        copy_age_s=age_s,
    )


FINAL = ModelInferResponse(parameters={"triton_final_response": InferParameter(bool_param=True)}).SerializeToString()
"""The parameter that ends every answer of an ordinary model: behind a response, it merges into it."""
STATE_TAG = b"\xa2\x06"
"""Field 100 of ModelInferRequest and ModelInferResponse, length-delimited: the state of a sequence. A node writes it
before all others, so that a router finds it without reading the rest."""
INFER_RESPONSE_TAG = b"\x12"
"""Field 2 of ModelStreamInferResponse, length-delimited."""


_ONE: Final = tuple(bytes((number,)) for number in range(0x80))


class Failure(NamedTuple):
    """What a node told a router of a request that failed."""

    error: RemoteError
    not_run: bool
    """It was certainly not run: another copy may be asked."""
    absent: bool
    """The node does not hold what was asked for: the copy, or the sequence."""
    died: bool = False
    """The process that ran it ended in the course of it, and its node goes on."""
    copy_age_s: float | None = None
    """`UnknownSequence.copy_age_s`."""


def final_message(response: bytes) -> bytes:
    """Return a serialized ModelInferResponse as a stream message with ``triton_final_response``, without decoding it.

    Concatenated protobuf messages merge, so the parameter is put behind the bytes.
    """
    return b"".join((INFER_RESPONSE_TAG, varint(len(response) + len(FINAL)), response, FINAL))


def varint(number: int) -> bytes:
    """Return a protobuf varint. 0 <= number."""
    if number < 0x80:
        return _ONE[number]
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
