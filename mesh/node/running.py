"""One request on one copy, from its message to its answer: validate, run, encode. Nothing here waits.

Unary calls and messages of streams, on either engine, are the same to it; what differs is the `Reply` that hears.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError

from mesh.api.messages import InferParameter, ModelInferRequest
from mesh.api.stream import error_message
from mesh.core.errors import InvalidRequest, MeshError, Unimplemented, code_of
from mesh.node.answer import encode, wanted_outputs
from mesh.node.batcher import Item, Ran
from mesh.node.observe import Observed
from mesh.node.runtimes.base import Request
from mesh.node.served import Served
from mesh.node.validate import read_inputs
from mesh.telemetry.metrics import NodeMetrics
from mesh.telemetry.tracing import OFF, Tracing
from mesh.wire.transport import Metadata


class Reply(Protocol):
    """Who hears how a request ended, once."""

    def answer(self, response: bytes) -> None:
        """Take a serialized ModelInferResponse."""

    def fail(self, error: BaseException) -> None:
        """Take what went wrong."""


@dataclass(slots=True)
class Asked:
    """What a call says of its requests beside their messages."""

    method: str
    metadata: Callable[[], Metadata]
    """Made when it is wanted: it costs more than the rest."""
    deadline_s: float | None
    model: str = ""
    """What the router resolved the name to; empty: the message's own name counts."""
    version: str = ""
    traceparent: str = ""


class Running:
    """A `batcher.Waiter`: it is told the outputs and tells its reply the answer."""

    __slots__ = ("_item", "_reply", "_request", "_seen", "_served", "_wanted")

    def __init__(self, served: Served, request: ModelInferRequest, reply: Reply, seen: Observed) -> None:
        self._served = served
        self._request = request
        self._reply = reply
        self._seen = seen
        self._item: Item | None = None
        self._wanted = wanted_outputs(request, served)

    def submit(self, deadline_s: float | None) -> None:
        """Read the inputs and put them into the queue. Raises `MeshError`."""
        served, request, seen = self._served, self._request, self._seen
        given, seen.rows = read_inputs(request, served.inputs, served.model.name, served.model.max_batch_size)
        inputs = served.loaded.admit(given)
        seen.read_ns = time.monotonic_ns()
        self._item = served.batcher.submit(
            inputs,
            read_request(request),
            seen.rows,
            self,
            deadline_s=deadline_s,
            queue_timeout_s=queue_timeout_s(request),
        )

    def ran(self, ran: Ran) -> None:
        """Take the outputs, and answer."""
        seen = self._seen
        seen.ran = ran
        seen.ran_ns = time.monotonic_ns()
        try:
            response = encode(self._request, self._served, ran.outputs, self._wanted).SerializeToString()
        except Exception as error:  # noqa: BLE001 - what a model answers can be anything
            self.failed(error)
            return
        seen.end(None)
        self._reply.answer(response)

    def failed(self, error: Exception) -> None:
        """Answer what went wrong."""
        self._seen.end(error)
        self._reply.fail(error)

    def withdraw(self, error: BaseException) -> None:
        """Leave: the caller is gone, and `error` is what is counted. The reply hears nothing."""
        if self._item is not None and not self._item.over:
            self._served.batcher.withdraw(self._item)
            self._seen.end(error)


def begin(
    served: Served,
    asked: Asked,
    request: ModelInferRequest,
    reply: Reply,
    *,
    metrics: NodeMetrics,
    tracing: Tracing,
) -> Running:
    """Begin a request on `served`. Raises `MeshError`, counted, when it cannot even be queued."""
    if served.model.decoupled:
        raise Unimplemented("ModelInfer RPC doesn't support models with decoupled transaction policy")
    if tracing.on and tracing.wants(asked.traceparent, random.random()):  # noqa: S311 - a share of traces
        seen = Observed(metrics, tracing, asked.method, asked.metadata(), served, decided=not asked.traceparent)
    else:
        seen = Observed(metrics, OFF, asked.method, (), served)
    seen.begin()
    try:
        running = Running(served, request, reply, seen)
        running.submit(asked.deadline_s)
    except BaseException as error:
        seen.end(error)
        raise
    return running


def decode(message: bytes) -> ModelInferRequest:
    """Return the request. Raises `InvalidRequest` for bytes that are none."""
    try:
        return ModelInferRequest.FromString(message)
    except DecodeError as error:
        raise InvalidRequest(f"cannot parse ModelInferRequest: {error}") from error


_PLAIN = Request()


def read_request(request: ModelInferRequest) -> Request:
    """Return what a model may read of `request` besides its tensors."""
    if not request.parameters:
        return Request(request.id) if request.id else _PLAIN
    return Request(request.id, {key: _value(each) for key, each in request.parameters.items()})


def _value(parameter: InferParameter) -> bool | int | str | float:
    chosen = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, chosen) if chosen else ""


def queue_timeout_s(request: ModelInferRequest) -> float | None:
    """Return the ``timeout`` parameter, microseconds in the queue, in seconds; None without one (0 is none)."""
    if "timeout" not in request.parameters:
        return None
    timeout_us = int(request.parameters["timeout"].int64_param)
    return timeout_us / 1e6 if timeout_us > 0 else None


def not_run(error: BaseException) -> bool:
    """Tell whether the request behind `error` certainly was not run, so that another copy may be asked."""
    return isinstance(error, MeshError) and error.retry_safe


def failed_message(error: MeshError, request_id: str, asked: Asked) -> bytes:
    """Return a failed request's message in a stream.

    A router, who is known by the name it resolved, also reads the code and whether the request was certainly not run.
    """
    if not asked.model:
        return error_message(error, request_id)
    return error_message(error, request_id, code=int(code_of(error)), not_run=error.retry_safe)
