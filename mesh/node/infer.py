"""The hot path of the node: decode, find the copy, validate, run, encode.

Every answer carries the node's load in its trailers, errors included: a router that misses it knows that the node
itself never answered.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from google.protobuf.message import DecodeError

from mesh.api.messages import InferParameter, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from mesh.api.stream import error_message
from mesh.core.errors import InvalidRequest, MeshError, NotReady, Unimplemented
from mesh.node.answer import encode, final, wanted_outputs
from mesh.node.batcher import Ran, model_failed
from mesh.node.observe import Observed
from mesh.node.runtimes.base import Request, Tensors
from mesh.node.served import Served
from mesh.node.validate import read_inputs
from mesh.telemetry.metrics import NodeMetrics
from mesh.telemetry.tracing import Tracing
from mesh.wire.stream_order import Answer, Interleaved, Ordered, answer_stream
from mesh.wire.transport import LOAD_TRAILER, MODEL_HEADER, NOT_RUN_TRAILER, VERSION_HEADER, Call

WINDOW = 64
"""Requests of one stream being answered at a time; beyond it the caller waits."""


class Infer:
    """Answers ModelInfer and ModelStreamInfer. `find(name, version)` returns the copy that serves, or None."""

    def __init__(self, find: Callable[[str, str], Served | None], metrics: NodeMetrics, tracing: Tracing) -> None:
        self._find = find
        self._metrics = metrics
        self._tracing = tracing
        self.outstanding = 0

    async def infer(self, call: Call, message: bytes) -> bytes:
        """Answer one ModelInfer. Raises a `MeshError`; a cancelled call leaves its batch to the others."""
        self.outstanding += 1
        try:
            return (await self._one(call, decode(message))).SerializeToString()
        except MeshError as error:
            if error.retry_safe:
                call.trailers.append((NOT_RUN_TRAILER, "1"))
            raise
        finally:
            self.outstanding -= 1
            call.trailers.append((LOAD_TRAILER, str(self.outstanding)))

    async def stream(self, call: Call, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Answer one ModelStreamInfer: a failed request is a message with its error, and the stream goes on."""

        def answer(message: bytes) -> Answer:
            return self._in_stream(call, message)

        try:
            async with aclosing(answer_stream(messages, answer, window=WINDOW)) as responses:
                async for response in responses:
                    yield response
        finally:
            call.trailers.append((LOAD_TRAILER, str(self.outstanding)))

    def _in_stream(self, call: Call, message: bytes) -> Answer:
        request = ModelInferRequest()
        try:
            request = decode(message)
            served = self._served(call, request)
        except MeshError as error:
            return Ordered(_later(error_message(error, request.id)))
        if served.model.decoupled:
            return Interleaved(self._several(call, request, served))
        return Ordered(self._message(call, request))

    async def _message(self, call: Call, request: ModelInferRequest) -> bytes:
        self.outstanding += 1
        try:
            response = final(await self._one(call, request), is_final=True)
        except MeshError as error:
            return error_message(error, request.id)
        finally:
            self.outstanding -= 1
        return ModelStreamInferResponse(infer_response=response).SerializeToString()

    async def _one(self, call: Call, request: ModelInferRequest) -> ModelInferResponse:
        served = self._served(call, request)
        if served.model.decoupled:
            raise Unimplemented("ModelInfer RPC doesn't support models with decoupled transaction policy")
        with Observed(self._metrics, self._tracing, call, served) as seen:
            wanted = wanted_outputs(request, served)
            given, seen.rows = read_inputs(request, served.inputs, served.model.name, served.model.max_batch_size)
            inputs = served.loaded.admit(given)
            seen.read_ns = time.monotonic_ns()
            seen.ran = await served.batcher.run(
                inputs, _seen(request), seen.rows, deadline_s=call.deadline_s, queue_timeout_s=_queue_timeout_s(request)
            )
            seen.ran_ns = time.monotonic_ns()
            return encode(request, served, seen.ran.outputs, wanted)

    async def _several(self, call: Call, request: ModelInferRequest, served: Served) -> AsyncGenerator[bytes]:
        """Yield the responses of a several-response version as they come, then the empty final one if asked for."""
        self.outstanding += 1
        try:
            with Observed(self._metrics, self._tracing, call, served) as seen:
                wanted = wanted_outputs(request, served)
                given, seen.rows = read_inputs(request, served.inputs, served.model.name, served.model.max_batch_size)
                inputs = served.loaded.admit(given)
                seen.read_ns = time.monotonic_ns()
                async with aclosing(_in_threads(served, inputs, _seen(request))) as steps:
                    async for outputs in steps:
                        response = final(encode(request, served, outputs, wanted), is_final=False)
                        yield ModelStreamInferResponse(infer_response=response).SerializeToString()
                seen.ran_ns = time.monotonic_ns()
                run_ns = seen.ran_ns - seen.read_ns
                seen.ran = Ran({}, 0.0, run_ns / 1e9, seen.rows)
                served.statistics.executed(seen.rows, run_ns)
            if request.parameters["triton_enable_empty_final_response"].bool_param:
                model = served.model
                last = ModelInferResponse(model_name=model.name, model_version=model.version, id=request.id)
                yield ModelStreamInferResponse(infer_response=final(last, is_final=True)).SerializeToString()
        except MeshError as error:
            yield error_message(error, request.id)
        finally:
            self.outstanding -= 1

    def _served(self, call: Call, request: ModelInferRequest) -> Served:
        name = call.meta(MODEL_HEADER) or request.model_name
        version = call.meta(VERSION_HEADER) or request.model_version
        served = self._find(name, version)
        if served is None:
            raise NotReady(f"Request for unknown model: '{name}' is not at ready state on this node")
        return served


async def _in_threads(served: Served, inputs: Tensors, request: Request) -> AsyncGenerator[Tensors]:
    """Yield what the version's generator yields, each step in a thread."""
    steps = served.loaded.stream(inputs, request)
    try:
        while True:
            step: Tensors | None = await served.in_thread(next, steps, None)
            if step is None:
                return
            yield step
    except MeshError:
        raise
    except Exception as error:
        raise model_failed(served.model.name, error) from error


def decode(message: bytes) -> ModelInferRequest:
    """Return the request. Raises `InvalidRequest` for bytes that are none."""
    try:
        return ModelInferRequest.FromString(message)
    except DecodeError as error:
        raise InvalidRequest(f"cannot parse ModelInferRequest: {error}") from error


def _seen(request: ModelInferRequest) -> Request:
    if not request.parameters:
        return Request(request.id)
    return Request(request.id, {key: _value(each) for key, each in request.parameters.items()})


def _value(parameter: InferParameter) -> bool | int | str | float:
    chosen = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, chosen) if chosen else ""


def _queue_timeout_s(request: ModelInferRequest) -> float | None:
    """Return the ``timeout`` parameter, microseconds in the queue, in seconds; None without one (0 is none)."""
    if "timeout" not in request.parameters:
        return None
    timeout_us = int(request.parameters["timeout"].int64_param)
    return timeout_us / 1e6 if timeout_us > 0 else None


async def _later(message: bytes) -> bytes:
    return message
