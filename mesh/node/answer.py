"""Outputs as the protocol's response: which outputs, raw or typed, or the top classes. The rules are Triton's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mesh.api.bytes_elements import rest
from mesh.api.carried import wants_typed
from mesh.api.messages import InferParameter, ModelInferRequest, ModelInferResponse
from mesh.api.tensors import TensorError, dtype_of, encode_contents, encode_raw
from mesh.core.errors import InvalidRequest, ModelFailed
from mesh.core.types import Dtype, TensorSpec
from mesh.node.runtimes.base import Array, Tensors
from mesh.node.served import Served


def wanted_outputs(request: ModelInferRequest, served: Served) -> list[tuple[TensorSpec, int]]:
    """Return the outputs to answer, each with its number of top classes (0: the tensor itself).

    Those named in the request, or all. Raises `InvalidRequest` for a name that the version does not have.
    """
    if not request.outputs:
        return [(spec, 0) for spec in served.loaded.outputs]
    wanted = []
    for output in request.outputs:
        spec = served.outputs.get(output.name)
        if spec is None:
            raise InvalidRequest(
                f"unexpected inference output '{output.name}' for model '{served.model.name}', "
                f"which answers {', '.join(served.outputs)}"
            )
        wanted.append((spec, _classes(output.parameters, spec)))
    return wanted


def _classes(parameters: Mapping[str, InferParameter], spec: TensorSpec) -> int:
    if "classification" not in parameters:
        return 0
    count = int(parameters["classification"].int64_param)
    if count < 1:
        raise InvalidRequest(f"parameter 'classification' of output '{spec.name}' must be 1 or more, got {count}")
    return count


def encode(
    request: ModelInferRequest,
    served: Served,
    outputs: Tensors,
    wanted: list[tuple[TensorSpec, int]],
    between: Callable[[], None] = rest,
) -> ModelInferResponse:
    """Return the response. `between` is called between pieces of long outputs.

    Raises `ModelFailed` when the model did not answer what its signature says.
    """
    model = served.model
    response = ModelInferResponse(model_name=model.name, model_version=model.version, id=request.id)
    typed = wants_typed(request)
    for spec, classes in wanted:
        array = outputs.get(spec.name)
        if array is None:
            raise ModelFailed(f"model '{model.name}' did not answer output '{spec.name}'; it gave {', '.join(outputs)}")
        array, dtype = _checked(np.asarray(array), spec, model.name)
        if classes:
            array, dtype = _top(array, classes, served.labels, batched=model.max_batch_size > 0), Dtype.BYTES
        answer = response.outputs.add(name=spec.name, datatype=dtype.value, shape=array.shape)
        try:
            if typed and dtype not in (Dtype.FP16, Dtype.BF16):
                answer.contents.CopyFrom(encode_contents(array, dtype, between))
            else:
                response.raw_output_contents.append(encode_raw(array, dtype, between))
        except TensorError as error:
            raise ModelFailed(f"model '{model.name}' answered a bad '{spec.name}': {error.message}") from error
    return response


def final(response: ModelInferResponse, *, is_final: bool) -> ModelInferResponse:
    """Mark a stream's response as the last of its request or not, and return it."""
    response.parameters["triton_final_response"].bool_param = is_final
    return response


def _checked(array: Array, spec: TensorSpec, name: str) -> tuple[Array, Dtype]:
    try:
        dtype = dtype_of(array)
    except TensorError as error:
        raise ModelFailed(f"model '{name}' answered a bad '{spec.name}': {error.message}") from error
    fits = dtype is spec.dtype or (spec.dtype is Dtype.BF16 and dtype is Dtype.FP32)
    if not fits:
        raise ModelFailed(f"model '{name}' answered '{spec.name}' as {dtype}, its signature says {spec.dtype}")
    return array, spec.dtype


def _top(array: Array, count: int, labels: Sequence[str], *, batched: bool) -> Array:
    """Return the `count` highest values of each row, BYTES, as "value:index" or "value:index:label" (as Triton does).

    `labels` name the classes of an output that has one value for each of them; others have no names.
    """
    rows: Any = array.reshape(array.shape[0], -1) if batched else array.reshape(1, -1)
    order = np.argsort(-rows, axis=1, kind="stable")[:, :count]
    names = [f":{label}" for label in labels] if len(labels) == rows.shape[1] else [""] * rows.shape[1]
    texts = [
        [f"{row[index]:f}:{index}{names[index]}".encode() for index in top]
        for row, top in zip(rows, order, strict=True)
    ]
    made = np.empty(order.shape, dtype=object)
    made[:] = texts
    return made if batched else made[0]
