"""What goes into a call and comes out of it: tensors, results, TLS, and how they become messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mesh.api.messages import InferParameter, ModelInferRequest, ModelInferResponse
from mesh.api.tensors import TensorError, decode_contents, decode_raw, dtype_of, encode_raw
from mesh.core.types import Dtype

from ._errors import InvalidInput, ServerFailed

Array = npt.NDArray[Any]
Parameter = bool | int | float | str
Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input with an explicit element type: for BF16, whose values numpy holds as float32."""

    array: Array
    dtype: Dtype | str


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS towards the router. Paths of PEM files; all None trusts the system's roots."""

    ca: str | None = None
    """Roots the server must chain to."""
    cert: str | None = None
    """This client's certificate chain, for mTLS."""
    key: str | None = None
    """The key of `cert`."""


Inputs = Mapping[str, "Array | Tensor"]


@dataclass(frozen=True, slots=True)
class InferResult(Mapping[str, Array]):
    """The outputs of one inference, by name, and what the server said beside them."""

    model_name: str
    model_version: str
    id: str
    outputs: Mapping[str, Array]
    """BYTES outputs are object arrays of bytes, BF16 outputs float32."""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Array:
        """Return one output. Raises KeyError with the names there are."""
        try:
            return self.outputs[name]
        except KeyError:
            raise KeyError(f"no output '{name}'; there are {', '.join(self.outputs)}") from None

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.outputs)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.outputs)

    @property
    def final(self) -> bool:
        """Whether this is the last response of its request in a stream."""
        return bool(self.parameters.get("triton_final_response", True))


def request_of(
    model: str,
    inputs: Inputs,
    *,
    version: str = "",
    id: str = "",  # noqa: A002 - the protocol's word
    outputs: Sequence[str] | None = None,
    parameters: Mapping[str, Parameter] | None = None,
) -> ModelInferRequest:
    """Return the message. Raises `InvalidInput` for what cannot be sent, before anything is sent."""
    if isinstance(outputs, str):
        raise InvalidInput(f"outputs must be a list of names, got the text '{outputs}': use ['{outputs}']")
    if not isinstance(inputs, Mapping):
        raise InvalidInput(f"inputs must be a dict of arrays by input name, got {type(inputs).__name__}")
    request = ModelInferRequest(model_name=model, model_version=version, id=id)
    for name, value in inputs.items():
        array, dtype = _typed(name, value)
        try:
            request.raw_input_contents.append(encode_raw(array, dtype))
        except TensorError as error:
            raise InvalidInput(f"input '{name}': {error.message}") from error
        request.inputs.add(name=name, datatype=dtype.value, shape=array.shape)
    for name in outputs or ():
        request.outputs.add(name=name)
    for key, parameter in (parameters or {}).items():
        request.parameters[key].CopyFrom(_parameter(key, parameter))
    return request


def _typed(name: str, value: Array | Tensor) -> tuple[Array, Dtype]:
    array, asked = (value.array, value.dtype) if isinstance(value, Tensor) else (value, None)
    if not isinstance(array, np.ndarray):
        raise InvalidInput(f"input '{name}' must be a numpy array, got {type(array).__name__}: use numpy.asarray")
    try:
        return array, Dtype(asked) if asked is not None else dtype_of(array)
    except TensorError as error:
        raise InvalidInput(f"input '{name}': {error.message}") from error
    except ValueError:
        raise InvalidInput(f"input '{name}': expected one of {', '.join(Dtype)} as dtype, got {asked!r}") from None


def _parameter(key: str, value: Parameter) -> InferParameter:
    match value:
        case bool():
            return InferParameter(bool_param=value)
        case int() if -(1 << 63) <= value < 1 << 63:
            return InferParameter(int64_param=value)
        case int() if 0 <= value < 1 << 64:
            return InferParameter(uint64_param=value)
        case float():
            return InferParameter(double_param=value)
        case str():
            return InferParameter(string_param=value)
    raise InvalidInput(f"parameter '{key}' must be a bool, 64-bit int, float or str, got {value!r}")


def result_of(response: ModelInferResponse) -> InferResult:
    """Return the response as arrays. Raises `ServerFailed` when it does not fit itself."""
    raws = response.raw_output_contents
    outputs: dict[str, Array] = {}
    for index, output in enumerate(response.outputs):
        try:
            dtype = Dtype(output.datatype)
            outputs[output.name] = (
                decode_raw(raws[index], dtype, output.shape)
                if raws
                else decode_contents(output.contents, dtype, output.shape)
            )
        except (TensorError, ValueError, IndexError) as error:
            raise ServerFailed(
                f"output '{output.name}' of model '{response.model_name}' is malformed: {error}"
            ) from error
    parameters = {
        key: getattr(value, kind)
        for key, value in response.parameters.items()
        if (kind := value.WhichOneof("parameter_choice"))
    }
    return InferResult(response.model_name, response.model_version, response.id, outputs, parameters)
