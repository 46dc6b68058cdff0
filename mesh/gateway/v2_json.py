"""KServe v2 over REST: a JSON request as ModelInferRequest, and ModelInferResponse as a JSON answer.

Owns the shapes of the bodies, with Triton's binary tensor extension: tensors behind the JSON, in the order of their
inputs or outputs, each as long as its `binary_data_size` says. What is allowed is the model's affair, as for gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from mesh.api.messages import InferParameter, ModelInferRequest, ModelInferResponse
from mesh.core.errors import InvalidRequest, TooLarge
from mesh.core.types import Dtype
from mesh.gateway.elements import BAD_JSON, read_json, write_json

MAX_JSON_BYTES: Final = 64 * 1024 * 1024
"""Triton's limit of an HTTP request's JSON; larger tensors have the binary form."""

BINARY_SIZE: Final = "binary_data_size"
BINARY: Final = "binary_data"
BINARY_OUTPUT: Final = "binary_data_output"
_DTYPES: Final[Mapping[str, Dtype]] = {dtype.value: dtype for dtype in Dtype}

Value = bool | int | float | str
Reader = Callable[[msgspec.Raw, str, Dtype], bytes]


class Input(msgspec.Struct):
    """A tensor of a request."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Value] = {}
    data: msgspec.Raw = msgspec.Raw()


class Output(msgspec.Struct):
    """An output that is asked for."""

    name: str
    parameters: dict[str, Value] = {}


class Body(msgspec.Struct):
    """A request."""

    inputs: list[Input]
    id: str = ""
    parameters: dict[str, Value] = {}
    outputs: list[Output] = []


_BODY: Final = msgspec.json.Decoder(Body)


class Asked(msgspec.Struct, frozen=True):
    """A request, and in which form each output is wanted."""

    message: ModelInferRequest
    binary: bool
    """The outputs that are not named in `forms`."""
    forms: Mapping[str, bool]

    def is_binary(self, output: str) -> bool:
        """Tell whether an output is wanted as bytes behind the JSON."""
        return self.forms.get(output, self.binary)


def read_request(body: bytes, json_bytes: int | None, model: str, version: str, read: Reader = read_json) -> Asked:
    """Return the request in `body`, whose first `json_bytes` are JSON (None: all of it).

    `read` is what reads a tensor's JSON. Raises `InvalidRequest`, with the place, for a body that is no v2 request, and
    `TooLarge` for more JSON than `MAX_JSON_BYTES`.
    """
    size = len(body) if json_bytes is None else json_bytes
    if not 0 <= size <= len(body):
        raise InvalidRequest(f"expected Inference-Header-Content-Length of 0 to {len(body)}, the body's, got {size}")
    if size > MAX_JSON_BYTES:
        raise TooLarge(
            f"expected at most {MAX_JSON_BYTES} bytes of JSON, got {size}: send large tensors as binary data"
        )
    asked = _body(memoryview(body)[:size])
    message = ModelInferRequest(model_name=model, model_version=version, id=asked.id)
    binary = _take_bool(asked.parameters, BINARY_OUTPUT, "parameters")
    _put(message.parameters, asked.parameters, "parameters")
    at = size
    for index, tensor in enumerate(asked.inputs):
        at = _add_input(message, tensor, body, at, f"inputs[{index}]", read)
    if at != len(body):
        raise InvalidRequest(
            f"expected {at - size} bytes behind the JSON, as the inputs' binary_data_size say, got {len(body) - size}"
        )
    forms: dict[str, bool] = {}
    for index, output in enumerate(asked.outputs):
        place = f"outputs[{index}].parameters"
        if BINARY in output.parameters:
            forms[output.name] = _take_bool(output.parameters, BINARY, place)
        wanted = message.outputs.add(name=output.name)
        if output.parameters:
            _put(wanted.parameters, output.parameters, place)
    return Asked(message, binary, forms)


def _body(view: memoryview) -> Body:
    try:
        return _BODY.decode(view)
    except RecursionError:
        raise InvalidRequest("expected a v2 request as JSON, got one that is nested too deeply") from None
    except BAD_JSON as error:
        raise InvalidRequest(f"expected a v2 request as JSON: {error}") from error


def _add_input(message: ModelInferRequest, tensor: Input, body: bytes, at: int, place: str, read: Reader) -> int:  # noqa: PLR0917 - one call of it
    """Add a tensor to the message; return where the bytes of the next begin."""
    size = tensor.parameters.pop(BINARY_SIZE, None)
    if any(not -(1 << 63) <= axis < 1 << 63 for axis in tensor.shape):
        raise InvalidRequest(f"expected sizes of 64 bits in {place}.shape, got {tensor.shape}")
    added = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    if tensor.parameters:
        _put(added.parameters, tensor.parameters, f"{place}.parameters")
    data = bytes(tensor.data)
    if size is None:
        dtype = _DTYPES.get(tensor.datatype)
        if dtype is None:
            raise InvalidRequest(f"expected one of {', '.join(_DTYPES)} in {place}.datatype, got '{tensor.datatype}'")
        if not data:
            raise InvalidRequest(
                f"unable to find data for input tensor '{tensor.name}' for model '{message.model_name}' in request: "
                f"expected data or parameters.{BINARY_SIZE} in {place}"
            )
        message.raw_input_contents.append(read(tensor.data, tensor.name, dtype))
        return at
    if data:
        raise InvalidRequest(f"expected data or parameters.{BINARY_SIZE} in {place}, got both")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise InvalidRequest(f"expected a number of bytes in {place}.parameters.{BINARY_SIZE}, got {size!r}")
    if at + size > len(body):
        raise InvalidRequest(f"expected {size} bytes for {place} behind the JSON, got {len(body) - at}")
    message.raw_input_contents.append(body[at : at + size])
    return at + size


def _take_bool(parameters: dict[str, Value], name: str, place: str) -> bool:
    value = parameters.pop(name, False)
    if not isinstance(value, bool):
        raise InvalidRequest(f"expected true or false in {place}.{name}, got {value!r}")
    return value


def _put(into: Any, parameters: Mapping[str, Value], place: str) -> None:
    for name, value in parameters.items():
        into[name].CopyFrom(parameter(value, f"{place}.{name}"))


def parameter(value: Value, place: str) -> InferParameter:
    """Return a parameter as gRPC's. Raises `InvalidRequest` for a number beyond 64 bits."""
    if isinstance(value, bool):
        return InferParameter(bool_param=value)
    if isinstance(value, str):
        return InferParameter(string_param=value)
    if isinstance(value, float):
        return InferParameter(double_param=value)
    if -(1 << 63) <= value < 1 << 63:
        return InferParameter(int64_param=value)
    if 0 <= value < 1 << 64:
        return InferParameter(uint64_param=value)
    raise InvalidRequest(f"expected a number of 64 bits in {place}, got {value}")


def write_response(response: ModelInferResponse, asked: Asked) -> tuple[bytes, int | None]:
    """Return the body of an answer, and how many of its bytes are JSON (None: all of it)."""
    raws = response.raw_output_contents
    outputs: list[dict[str, Any]] = []
    behind: list[bytes] = []
    for index, tensor in enumerate(response.outputs):
        told: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        parameters = parameters_of(tensor.parameters)
        if asked.is_binary(tensor.name):
            parameters[BINARY_SIZE] = len(raws[index])
            behind.append(raws[index])
        else:
            told["data"] = write_json(raws[index], _DTYPES[tensor.datatype], told["shape"])
        if parameters:
            told["parameters"] = parameters
        outputs.append(told)
    answer = head_of(response)
    answer["outputs"] = outputs
    head = msgspec.json.encode(answer)
    return (b"".join([head, *behind]), len(head)) if behind else (head, None)


def head_of(response: ModelInferResponse) -> dict[str, Any]:
    """Return an answer's fields but its tensors, for JSON."""
    answer: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        answer["id"] = response.id
    if response.parameters:
        answer["parameters"] = parameters_of(response.parameters)
    return answer


def parameters_of(parameters: Mapping[str, InferParameter]) -> dict[str, Value]:
    """Return gRPC's parameters for JSON."""
    return {
        name: getattr(each, kind) for name, each in parameters.items() if (kind := each.WhichOneof("parameter_choice"))
    }
