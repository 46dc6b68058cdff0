"""ModelInfer and ModelStreamInfer on the node, as coroutines over bytes: what any engine can carry.

One request is `running`'s; the wire's own way to it, without tasks, is `direct`'s. Every answer carries the node's load
in its trailers, errors included: a router that misses it knows that the node itself never answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from mesh.api.bytes_elements import rest
from mesh.api.carried import wants_typed
from mesh.api.messages import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from mesh.api.question import decode, is_long
from mesh.api.raw_places import decode_front
from mesh.api.session import message_with_state
from mesh.api.stream import final_message
from mesh.core.errors import InvalidRequest, MeshError
from mesh.core.forwarding import Pattern
from mesh.core.view import ClusterView
from mesh.node.answer import encode, final, wanted_outputs
from mesh.node.asked import Asked, heard_of
from mesh.node.fused import FusedRunning
from mesh.node.generation import responses
from mesh.node.graph import GraphRunning, PipelineRuns
from mesh.node.item import Ran
from mesh.node.labor import Later, is_long_answer, pause
from mesh.node.observe import Observed
from mesh.node.plan import Part, Wanted
from mesh.node.responses import Responses
from mesh.node.running import Beginner, Reply, Running, failed_message, fate_trailers, read_request
from mesh.node.runtimes.base import Tensors
from mesh.node.served import Pins, Served
from mesh.node.validate import read_inputs
from mesh.telemetry.metrics import NodeMetrics
from mesh.telemetry.tracing import Tracing
from mesh.wire.stream_order import Answer, Interleaved, Ordered, answer_stream
from mesh.wire.transport import CALLER_HEADER, LOAD_TRAILER, MODEL_HEADER, PIPELINE_HEADER, VERSION_HEADER, Call

WINDOW = 64
"""Requests of one stream being answered at a time; beyond it the caller waits."""


class Infer:
    """Answers ModelInfer and ModelStreamInfer. `find(name, version)` returns the copy that serves, or None."""

    def __init__(
        self,
        find: Callable[[str, str], Served | None],
        metrics: NodeMetrics,
        tracing: Tracing,
        view: Callable[[], ClusterView] = ClusterView,
        forwards: Pattern | None = None,
    ) -> None:
        self.beginner = Beginner(find, metrics, tracing)
        self.pipelines = PipelineRuns(find, view, self.beginner)
        self.metrics = metrics
        self.tracing = tracing
        self.forwards = forwards
        """The headers that models read as parameters, of callers who come to this node itself."""
        self.outstanding = 0

    def begin(self, asked: Asked, message: bytes, reply: Reply) -> Running | GraphRunning | FusedRunning | Later[Any]:
        """Begin one request; `reply` hears its end. Raises `MeshError` when it cannot even be queued."""
        if asked.refused:
            asked.check()
        if asked.pipeline:
            return self.pipelines.begin(asked, message, reply)
        running = self.beginner.planned(asked, message, reply)
        if running is not None:
            return running
        request = decode_front(message)
        return self.beginner.begin(asked, message, request, self.served(asked, request), reply)

    def served(self, asked: Asked, request: ModelInferRequest) -> Served:
        """Return the copy that `request` is for. Raises `NotReady` when it is not here.

        A router passes a large message on before all of it has come, and says what it read at its beginning. A version
        that stands behind the tensors was not read: that is refused rather than answered by another version.
        """
        if asked.version and request.model_version not in {"", asked.version}:
            raise InvalidRequest(
                f"expected model_version before the tensors, as serializers write it, got '{request.model_version}' "
                f"behind them in a message that was already on its way to version {asked.version}"
            )
        return self.beginner.served(asked.model or request.model_name, asked.version or request.model_version)

    async def infer(self, call: Call, message: bytes) -> bytes:
        """Answer one ModelInfer. Raises a `MeshError`; a cancelled call leaves its batch to the others."""
        try:
            return await self._one(_asked(call, self.forwards), message)
        except MeshError as error:
            call.trailers.extend(fate_trailers(error))
            raise
        finally:
            call.trailers.append((LOAD_TRAILER, str(self.outstanding)))

    async def _one(self, asked: Asked, message: bytes) -> bytes:
        self.outstanding += 1
        try:
            reply = _Awaited()
            running = self.begin(asked, message, reply)
            try:
                return await reply.future
            except asyncio.CancelledError as error:
                running.withdraw(error)
                raise
        finally:
            self.outstanding -= 1

    async def stream(self, call: Call, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Answer one ModelStreamInfer: a failed request is a message with its error, and the stream goes on."""
        asked, pins = _asked(call, self.forwards), Pins()

        def answer(message: bytes) -> Answer:
            return self._in_stream(asked, message, pins)

        try:
            async with aclosing(answer_stream(messages, answer, window=WINDOW)) as responses:
                async for response in responses:
                    yield response
        finally:
            pins.release()
            call.trailers.append((LOAD_TRAILER, str(self.outstanding)))

    def _in_stream(self, asked: Asked, message: bytes, pins: Pins) -> Answer:
        request = ModelInferRequest()
        try:
            request = decode(message)
            asked.check()
            if asked.pipeline:
                return Ordered(self._message(asked, message, request.id))
            served = self.served(asked, request)
        except MeshError as error:
            return Ordered(_later(failed_message(error, request.id, asked)))
        pins.add(served)
        if served.model.decoupled:
            return Interleaved(self.several(asked, request, served))
        return Ordered(self._message(asked, message, request.id))

    async def _message(self, asked: Asked, message: bytes, request_id: str) -> bytes:
        try:
            return final_message(await self._one(asked, message))
        except MeshError as error:
            return failed_message(error, request_id, asked)

    async def _read(self, request: ModelInferRequest, served: Served) -> tuple[Wanted, Tensors, int]:
        def read(between: Callable[[], None] = rest) -> tuple[Wanted, Tensors, int]:
            model = served.model
            wanted = wanted_outputs(request, served)
            given, rows = read_inputs(request, served.inputs, model.name, model.max_batch_size, between)
            return wanted, served.loaded.admit(given), rows

        size = sum(map(len, request.raw_input_contents)) or request.ByteSize()
        return await served.in_thread(read, pause) if is_long(size, request) else read()

    async def several(self, asked: Asked, request: ModelInferRequest, served: Served) -> AsyncGenerator[bytes]:
        """Yield the responses of a several-response version as they come, then the empty final one if asked for."""
        self.outstanding += 1
        metadata = asked.metadata() if self.tracing.on else ()
        try:
            with Observed(self.metrics, self.tracing, asked.method, metadata, served) as seen:
                wanted, inputs, seen.rows = await self._read(request, served)
                seen.read_ns = time.monotonic_ns()
                told = read_request(request, asked)
                counted = Responses(served.statistics)
                try:
                    async with aclosing(responses(served, inputs, told, asked.deadline_s)) as made:
                        with counted:
                            async for outputs, state in made:
                                counted.made()
                                response = message_with_state(await _written(request, served, outputs, wanted), state)
                                counted.written()
                                yield response
                                counted.sent()
                finally:
                    counted.close()
                seen.ran_ns = time.monotonic_ns()
                run_ns = seen.ran_ns - seen.read_ns
                seen.ran = Ran({}, 0.0, run_ns / 1e9, seen.rows)
                if served.sequences is None:
                    served.statistics.executed(seen.rows, run_ns)
            if request.parameters["triton_enable_empty_final_response"].bool_param:
                model = served.model
                last = ModelInferResponse(model_name=model.name, model_version=model.version, id=request.id)
                yield ModelStreamInferResponse(infer_response=final(last, is_final=True)).SerializeToString()
        except MeshError as error:
            yield failed_message(error, request.id, asked)
        finally:
            self.outstanding -= 1


async def _written(request: ModelInferRequest, served: Served, outputs: Tensors, wanted: Wanted) -> bytes:
    def write(between: Callable[[], None] = rest) -> bytes:
        return final(encode(request, served, outputs, wanted, between), is_final=False).SerializeToString()

    if is_long_answer(outputs, wanted, typed=wants_typed(request)):
        return await served.in_thread(write, pause)
    return write()


async def _later(message: bytes) -> bytes:
    return message


class _Awaited:
    """A `running.Reply` for a coroutine."""

    def __init__(self) -> None:
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def answer(self, response: list[Part]) -> None:
        if not self.future.done():
            self.future.set_result(b"".join(response))

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def _asked(call: Call, pattern: Pattern | None) -> Asked:
    model = call.meta(MODEL_HEADER) or ""
    forwarded, refused = heard_of(call.metadata, pattern, routed=bool(model))
    return Asked(
        call.method,
        lambda: call.metadata,
        call.deadline_s,
        model,
        call.meta(VERSION_HEADER) or "",
        call.meta("traceparent") or "",
        call.meta(PIPELINE_HEADER) or "",
        call.meta(CALLER_HEADER) or call.peer,
        forwarded,
        refused,
    )
