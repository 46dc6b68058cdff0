"""A request for a pipeline, read and checked: what a node that runs all of it and a router that spreads it both do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from google.protobuf.message import DecodeError

from mesh.api.carried import TYPED, Carried, literals, read_tensors, response_message, wants_typed
from mesh.api.messages import ModelInferRequest, ModelInferResponse
from mesh.api.pipelines import check_inputs, wanted_outputs
from mesh.core.errors import InvalidRequest
from mesh.core.pipeline.spec import Pipeline
from mesh.core.types import Dtype, TensorSpec

EMPTY_FINAL: Final = "triton_enable_empty_final_response"
"""Request parameter of Triton's clients."""

LONG_BYTES: Final = 32 * 1024
"""Of a message with texts or typed contents: 8,000 texts at most, two milliseconds."""


def decode(message: bytes) -> ModelInferRequest:
    """Return the request. Raises `InvalidRequest` for bytes that are none."""
    try:
        return ModelInferRequest.FromString(message)
    except DecodeError as error:
        raise InvalidRequest(f"cannot parse ModelInferRequest: {error}") from error


def is_long(size: int, request: ModelInferRequest) -> bool:
    """Tell whether taking a request's tensors apart is too much for an event loop. One comparison for small ones.

    Numbers that travel raw are not copied, let alone looked at, however many there are. Texts and typed contents become
    objects one by one. `size` is the message's, in bytes.
    """
    return size > LONG_BYTES and any(
        tensor.datatype == Dtype.BYTES or tensor.HasField("contents") for tensor in request.inputs
    )


class Question:
    """One request for `pipeline`, which takes `inputs`. Raises `InvalidRequest`, in Triton's words where it can."""

    def __init__(self, request: ModelInferRequest, pipeline: Pipeline, inputs: Iterable[TensorSpec]) -> None:
        self.pipeline = pipeline
        self._request = request
        self.given = read_tensors(request)
        check_inputs(pipeline.name, inputs, self.given)
        self.wanted = wanted_outputs(pipeline, request.outputs)
        """The names of what to answer."""
        values = literals(request.parameters)
        self.wants_final = bool(values.pop(EMPTY_FINAL, False))
        """Whether an empty response is to follow the last of several."""
        values.pop(TYPED, None)
        self.parameters = values
        """Those that steps get."""

    def answer(self, outputs: Mapping[str, Carried]) -> ModelInferResponse:
        """Return the response with the outputs that were asked for. Raises `TensorError` for a bad one."""
        pipeline, request = self.pipeline, self._request
        answer = {name: outputs[name] for name in self.wanted if name in outputs}
        return response_message(pipeline.name, str(pipeline.revision), request.id, answer, typed=wants_typed(request))

    def final(self) -> ModelInferResponse:
        """Return the empty response behind the last one."""
        return response_message(self.pipeline.name, str(self.pipeline.revision), self._request.id, {}, typed=False)

    def __repr__(self) -> str:
        """Show what is asked."""
        return f"<Question {self.pipeline.name}@{self.pipeline.revision} given={sorted(self.given)}>"
