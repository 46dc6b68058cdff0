"""Tensors on their way from one model to the next: type, shape and raw bytes, as messages carry them.

Nothing is decoded that need not be: elements are taken apart and put together for steps over each element, and one is
looked at for a condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mesh.api.messages import InferParameter, ModelInferRequest, ModelInferResponse
from mesh.api.tensors import TensorError, check_raw, decode_contents, decode_raw, encode_contents, encode_raw
from mesh.core.errors import InvalidRequest
from mesh.core.pipeline.spec import Literal
from mesh.core.types import Dtype

TYPED = "mesh_typed_contents"
"""Request parameter: answer with typed contents, for people with grpcurl. tritonclient reads raw contents only."""


def wants_typed(request: ModelInferRequest) -> bool:
    """Tell whether the caller asked for typed contents."""
    return TYPED in request.parameters and request.parameters[TYPED].bool_param


@dataclass(frozen=True, slots=True)
class Carried:
    """One tensor; `raw` is row-major and little-endian (KServe v2, "Tensor Data")."""

    dtype: Dtype
    shape: tuple[int, ...]
    raw: bytes

    def item(self) -> Literal:
        """Return the only element; text for BYTES. Raises `InvalidRequest` when there are more or fewer."""
        array = decode_raw(self.raw, self.dtype, self.shape)
        if array.size != 1:
            raise InvalidRequest(f"expected a tensor with one element to compare, got {array.size}, shape {self.shape}")
        value: Any = array.reshape(-1)[0]
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        found: Literal = value.item()
        return found

    def elements(self) -> list[Carried]:
        """Return the elements of the first axis. Raises `InvalidRequest` for a tensor without one."""
        if not self.shape:
            raise InvalidRequest("expected a tensor with an axis to take each element of, got one without")
        count, rest = self.shape[0], self.shape[1:]
        if self.dtype is Dtype.BYTES:
            array = decode_raw(self.raw, self.dtype, self.shape)
            return [Carried(self.dtype, rest, encode_raw(array[at : at + 1], self.dtype)) for at in range(count)]
        size = len(self.raw) // max(1, count)
        return [Carried(self.dtype, rest, self.raw[at * size : (at + 1) * size]) for at in range(count)]


def stacked(elements: Sequence[Carried]) -> Carried:
    """Return tensors of one type and shape on a new first axis. Raises `InvalidRequest` if they differ, or none."""
    kinds = {(each.dtype, each.shape) for each in elements}
    if len(kinds) != 1:
        shown = ", ".join(sorted(f"{dtype.value} {list(shape)}" for dtype, shape in kinds)) or "none"
        raise InvalidRequest(f"expected tensors of one type and shape to stack, got {shown}")
    ((dtype, shape),) = kinds
    return Carried(dtype, (len(elements), *shape), b"".join(each.raw for each in elements))


def read_tensors(message: ModelInferRequest | ModelInferResponse) -> dict[str, Carried]:
    """Return the tensors of a request or a response by name. Raises `InvalidRequest` for data that do not fit."""
    tensors: Any = message.inputs if isinstance(message, ModelInferRequest) else message.outputs
    raws = message.raw_input_contents if isinstance(message, ModelInferRequest) else message.raw_output_contents
    found: dict[str, Carried] = {}
    for index, tensor in enumerate(tensors):
        if tensor.datatype not in Dtype.__members__:
            raise InvalidRequest(f"tensor '{tensor.name}' has the unknown data-type '{tensor.datatype}'")
        dtype, shape = Dtype[tensor.datatype], tuple(tensor.shape)
        try:
            if raws:
                raw = raws[index] if index < len(raws) else b""
                check_raw(raw, dtype, shape)
            else:
                raw = encode_raw(decode_contents(tensor.contents, dtype, shape), dtype)
        except TensorError as error:
            raise InvalidRequest(f"unexpected data for tensor '{tensor.name}': {error.message}") from error
        if tensor.name in found:
            raise InvalidRequest(f"tensor '{tensor.name}' already exists in request")
        found[tensor.name] = Carried(dtype, shape, raw)
    return found


def request_message(
    model: str, version: str, tensors: Mapping[str, Carried], parameters: Mapping[str, Literal]
) -> ModelInferRequest:
    """Return a request of `model`."""
    request = ModelInferRequest(model_name=model, model_version=version)
    for name, tensor in tensors.items():
        request.inputs.add(name=name, datatype=tensor.dtype.value, shape=tensor.shape)
        request.raw_input_contents.append(tensor.raw)
    for name, value in parameters.items():
        request.parameters[name].CopyFrom(_parameter(value))
    return request


def response_message(
    name: str, version: str, request_id: str, tensors: Mapping[str, Carried], *, typed: bool
) -> ModelInferResponse:
    """Return a response with `tensors`, raw or (for people with grpcurl) typed."""
    response = ModelInferResponse(model_name=name, model_version=version, id=request_id)
    for called, tensor in tensors.items():
        output = response.outputs.add(name=called, datatype=tensor.dtype.value, shape=tensor.shape)
        if typed and tensor.dtype not in {Dtype.FP16, Dtype.BF16}:
            array = decode_raw(tensor.raw, tensor.dtype, tensor.shape)
            output.contents.CopyFrom(encode_contents(array, tensor.dtype))
        else:
            response.raw_output_contents.append(tensor.raw)
    return response


def literals(parameters: Mapping[str, InferParameter]) -> dict[str, Literal]:
    """Return request parameters as values; an empty text for one without a value."""
    found: dict[str, Literal] = {}
    for name, parameter in parameters.items():
        chosen = parameter.WhichOneof("parameter_choice")
        found[name] = getattr(parameter, chosen) if chosen else ""
    return found


def _parameter(value: Literal) -> InferParameter:
    if isinstance(value, bool):
        return InferParameter(bool_param=value)
    if isinstance(value, int):
        return InferParameter(int64_param=value)
    return InferParameter(double_param=value) if isinstance(value, float) else InferParameter(string_param=value)
