"""`/v2/models/{model}/generate` and `generate_stream`: Triton's generate extension, one JSON object each way.

A field of the request that is named like an input of the model is that input; every other one, and each of
`parameters`, is a parameter. A value is given the axes that its input has, each of size 1 where it has fewer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final

import msgspec

from mesh.api import messages as m
from mesh.api.messages import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from mesh.core.errors import InvalidRequest
from mesh.core.types import Dtype
from mesh.gateway.elements import read_json, write_json
from mesh.gateway.exchange import Exchange
from mesh.gateway.failures import failure
from mesh.gateway.seam import GrpcCalls, one
from mesh.gateway.v2_json import MAX_JSON_BYTES, head_of, parameter
from mesh.gateway.v2_models import json_object
from mesh.wire.transport import MODEL_STREAM_INFER, Call

EVENTS: Final = b"text/event-stream"
REAL_STATUS: Final = ("triton_grpc_error", "true")
"""Asks a stream for an error as what it is, in place of a message that says so."""
FINAL: Final = "triton_final_response"


class Generate:
    """Answers both routes: each request is the one message of a stream, so that all models answer alike."""

    def __init__(self, calls: GrpcCalls) -> None:
        self._calls = calls

    async def whole(self, exchange: Exchange) -> None:
        """POST .../generate: the one response of the model. Several are an error that names the other route."""
        found: list[ModelInferResponse] = []
        async with aclosing(await self._responses(exchange)) as responses:
            async for response in responses:
                if found:
                    raise InvalidRequest(
                        "generate expects model to produce exactly 1 response, use generate stream for model that may "
                        "generate various number of responses"
                    )
                found.append(response)
        if not found:
            raise InvalidRequest("generate expects model to produce exactly 1 response, got none: use generate_stream")
        await exchange.answer(200, msgspec.json.encode(_told(found[0])))

    async def stream(self, exchange: Exchange) -> None:
        """POST .../generate_stream: the responses as server-sent events, as they come."""
        async with aclosing(await self._responses(exchange)) as responses:
            # The first decides the status: a request that cannot be answered is no stream.
            first = await anext(responses, None)
            await exchange.begin(200, EVENTS)
            try:
                if first is not None:
                    await exchange.part(event(_told(first)))
                async for response in responses:
                    await exchange.part(event(_told(response)))
            except Exception as error:  # noqa: BLE001 - the status is sent: the error is an event
                await exchange.part(event({"error": failure(error).text}))
        await exchange.end()

    async def _responses(self, exchange: Exchange) -> AsyncGenerator[ModelInferResponse]:
        deadline_s = exchange.deadline_s()
        fields = json_object(await exchange.body(min(MAX_JSON_BYTES, self._calls.max_body_bytes)))
        named = {"name": exchange.path["model"], "version": exchange.path.get("version", "")}
        metadata = await self._calls.ask("ModelMetadata", m.ModelMetadataRequest(**named), deadline_s)
        message = request_of(fields, metadata, named["version"])
        call = exchange.call(MODEL_STREAM_INFER, deadline_s, self._calls.forwards)
        call.metadata = (*call.metadata, REAL_STATUS)
        return _responses(self._calls, call, message.SerializeToString())


async def _responses(calls: GrpcCalls, call: Call, message: bytes) -> AsyncGenerator[ModelInferResponse]:
    """Yield the responses with outputs. Raises a `MeshError` for the error of the request."""
    async with aclosing(calls.stream(call, one(message))) as answers:
        async for answer in answers:
            response = ModelStreamInferResponse.FromString(answer).infer_response
            if response.outputs:
                yield response


def event(told: Mapping[str, Any]) -> bytes:
    """Return a server-sent event (HTML, "Server-sent events") of one JSON object."""
    return b"data: %b\n\n" % msgspec.json.encode(told)


def request_of(fields: Mapping[str, Any], metadata: Any, version: str) -> ModelInferRequest:
    """Return the request that a JSON object means for a model. Raises `InvalidRequest`."""
    message = ModelInferRequest(model_name=metadata.name, model_version=version)
    inputs = {tensor.name: tensor for tensor in metadata.inputs}
    parameters: dict[str, Any] = {}
    for name, value in fields.items():
        if name in inputs:
            _add_input(message, inputs[name], value)
        elif name == "parameters" and isinstance(value, dict):
            parameters |= value
        elif name == "id" and isinstance(value, str):
            message.id = value
        else:
            parameters[name] = value
    for name, value in parameters.items():
        if not isinstance(value, bool | int | float | str):
            raise InvalidRequest(f"expected a text, a number, true or false as parameter '{name}', got {value!r:.60}")
        message.parameters[name].CopyFrom(parameter(value, name))
    return message


def _add_input(message: ModelInferRequest, tensor: Any, value: Any) -> None:
    shape: list[int] = []
    at = value
    while isinstance(at, list):
        shape.append(len(at))
        at = at[0] if at else None
    data = msgspec.json.encode(value if isinstance(value, list) else [value])
    raw = read_json(data, tensor.name, Dtype(tensor.datatype))
    padded = [1] * (len(tensor.shape) - len(shape)) + shape
    message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=padded)
    message.raw_input_contents.append(raw)


def _told(response: ModelInferResponse) -> dict[str, Any]:
    """Return a response as one JSON object: an output of one element as its value, else as a flat list."""
    told = head_of(response)
    parameters = told.pop("parameters", {})
    parameters.pop(FINAL, None)
    if parameters:
        told["parameters"] = parameters
    for index, tensor in enumerate(response.outputs):
        flat = write_json(response.raw_output_contents[index], Dtype(tensor.datatype), list(tensor.shape))
        told[tensor.name] = flat[0] if len(flat) == 1 else flat
    return told
