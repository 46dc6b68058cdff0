"""One request on one copy, from its message to its answer: validate, run, encode. Nothing here waits.

Unary calls and messages of streams, on either engine, are the same to it; what differs is the `Reply` that hears.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from mesh.api.bytes_elements import rest
from mesh.api.carried import literals, wants_typed
from mesh.api.messages import ModelInferRequest
from mesh.api.question import is_long
from mesh.api.raw_places import Raws, decode_front, raws_of
from mesh.api.session import state_field
from mesh.api.stream import error_message
from mesh.core.errors import MeshError, NotHere, Unimplemented, UnknownSequence, code_of, let_go
from mesh.node.answer import encode, wanted_outputs
from mesh.node.asked import Asked
from mesh.node.item import Item, Ran
from mesh.node.labor import is_long_answer, pause
from mesh.node.observe import Observed
from mesh.node.plan import PLAIN, Part, Plan, Wanted
from mesh.node.plans import Plans
from mesh.node.runtimes.base import Array, Request, Tensors
from mesh.node.served import Served
from mesh.node.validate import read_inputs
from mesh.telemetry.metrics import NodeMetrics
from mesh.telemetry.tracing import OFF, Tracing
from mesh.wire.transport import ABSENT, COPY_AGE_TRAILER, DIED_TRAILER, NOT_RUN_TRAILER, Metadata


class Reply(Protocol):
    """Who hears how a request ended, once."""

    def answer(self, response: list[Part]) -> None:
        """Take a serialized ModelInferResponse, in parts."""

    def fail(self, error: BaseException) -> None:
        """Take what went wrong."""


class _Nobody:
    """Stands where a `Reply` was that has heard of the end."""

    def answer(self, response: list[Part]) -> None:
        """Drop it."""

    def fail(self, error: BaseException) -> None:
        """Drop it."""


NOBODY: Final[Reply] = _Nobody()


class Seen(Protocol):
    """What is remembered of a request until it ends: `observe.Observed`, or nothing."""

    rows: int
    read_ns: int
    ran: Ran | None
    ran_ns: int

    def end(self, error: BaseException | None) -> None:
        """Count it."""


class Running:
    """A `batcher.Waiter`: it is told the outputs and tells its reply the answer."""

    __slots__ = ("_item", "_message", "_plan", "_reply", "_seen", "_task", "_wanted", "served")

    def __init__(self, served: Served, message: bytes, plan: Plan | None, reply: Reply, seen: Seen) -> None:
        self.served = served
        self._message = message
        self._plan = plan
        self._reply = reply
        self._seen = seen
        self._item: Item | None = None
        self._task: asyncio.Task[None] | None = None
        """Reads a long request, or writes a long answer, in a thread."""
        self._wanted: Wanted = []

    def submit_planned(
        self, inputs: dict[str, Array], plan: Plan, deadline_s: float | None, request: Request = PLAIN
    ) -> None:
        """Put inputs that were read by a plan into the queue. Raises `MeshError`."""
        served, seen = self.served, self._seen
        seen.rows = plan.rows
        admitted = served.loaded.admit(inputs)
        seen.read_ns = time.monotonic_ns()
        self._item = served.batcher.submit(
            admitted, request, plan.rows, self, deadline_s=deadline_s, queue_timeout_s=None, size=plan.size
        )

    def submit(self, request: ModelInferRequest, asked: Asked, plans: Plans) -> None:
        """Read the inputs and put them into the queue. `tells`: who asks keeps states.

        Raises `MeshError`; what is wrong with a long request, which is read in a thread, the reply hears.
        """
        if self.served.reading is not None or is_long(len(self._message), request):
            served, before = self.served, self.served.reading
            self._task = task = asyncio.get_running_loop().create_task(
                self._submit_later(before, request, asked, plans)
            )
            if served.sequences is not None:
                task.add_done_callback(served.line_up())
            return
        self._queue(request, self._read(request), asked, plans)

    async def _submit_later(
        self,
        before: asyncio.Future[None] | None,
        request: ModelInferRequest,
        asked: Asked,
        plans: Plans,
    ) -> None:
        try:
            read = await self.served.in_thread(self._read, request, pause)
            if before is not None:
                await asyncio.wait((before,))
            self._queue(request, read, asked, plans)
        except Exception as error:  # noqa: BLE001 - the edge: every failure becomes a status
            self.failed(error)
        finally:
            self._task = None

    def _read(self, request: ModelInferRequest, between: Callable[[], None] = rest) -> _Read:
        served = self.served
        wanted = wanted_outputs(request, served)
        model, raws = served.model, raws_of(self._message, request)
        given, rows = read_inputs(request, served.inputs, model.name, model.max_batch_size, between, raws=raws)
        return _Read(wanted, given, served.loaded.admit(given), rows, raws)

    def _queue(self, request: ModelInferRequest, read: _Read, asked: Asked, plans: Plans) -> None:
        served, seen = self.served, self._seen
        self._wanted, given, inputs, seen.rows, raws = read
        plans.learn(self._message, request, served, wanted=self._wanted, inputs=given, rows=seen.rows, raws=raws)
        seen.read_ns = time.monotonic_ns()
        self._item = served.batcher.submit(
            inputs,
            read_request(request, asked),
            seen.rows,
            self,
            deadline_s=asked.deadline_s,
            queue_timeout_s=queue_timeout_s(request),
        )

    def ran(self, ran: Ran) -> None:
        """Take the outputs, and answer."""
        seen = self._seen
        seen.ran = ran
        seen.ran_ns = time.monotonic_ns()
        try:
            response = self._plan.write(ran.outputs) if self._plan is not None else None
            if response is None:
                request = decode_front(self._message)
                wanted = self._wanted or wanted_outputs(request, self.served)
                if is_long_answer(ran.outputs, wanted, typed=wants_typed(request)):
                    self._task = asyncio.get_running_loop().create_task(self._answer_later(ran, request, wanted))
                    return
                response = [encode(request, self.served, ran.outputs, wanted).SerializeToString()]
        except Exception as error:  # noqa: BLE001 - what a model answers can be anything
            self.failed(error)
            return
        self._answer(ran, response)

    def _ended(self) -> Reply:
        """Return who hears of the end, and let go: who asked and what was asked know each other."""
        reply, self._reply, self._item = self._reply, NOBODY, None
        return reply

    async def _answer_later(self, ran: Ran, request: ModelInferRequest, wanted: Wanted) -> None:
        def write() -> bytes:
            return encode(request, self.served, ran.outputs, wanted, pause).SerializeToString()

        try:
            response = await self.served.in_thread(write)
        except Exception as error:  # noqa: BLE001 - what a model answers can be anything
            self.failed(error)
        else:
            self._answer(ran, [response])
        finally:
            self._task = None

    def _answer(self, ran: Ran, response: list[Part]) -> None:
        self._seen.end(None)
        self._ended().answer([state_field(ran.state), *response] if ran.state else response)

    def failed(self, error: Exception) -> None:
        """Answer what went wrong."""
        self._seen.end(error)
        self._ended().fail(error)
        let_go(error)

    def withdraw(self, error: BaseException) -> None:
        """Leave: the caller is gone, and `error` is what is counted. The reply hears nothing."""
        if self._task is not None:
            self._task.cancel()
            self._seen.end(error)
            self._ended()
        elif self._item is not None and not self._item.over:
            self.served.batcher.withdraw(self._item)
            self._seen.end(error)
            self._ended()


class _Read(NamedTuple):
    """A request that was read."""

    wanted: Wanted
    given: Tensors
    inputs: Tensors
    """As the runtime takes them."""
    rows: int
    raws: Raws


class Beginner:
    """Begins requests: by a plan where one is known, else the long way. `find` returns the copy that serves."""

    def __init__(self, find: Callable[[str, str], Served | None], metrics: NodeMetrics, tracing: Tracing) -> None:
        self._find = find
        self.metrics = metrics
        self.tracing = tracing
        self.plans = Plans()

    def served(self, name: str, version: str) -> Served:
        """Return the copy that serves. Raises `NotHere` when it is not here."""
        served = self._find(name, version)
        if served is None:
            raise NotHere(f"Request for unknown model: '{name}' is not at ready state on this node")
        return served

    def planned(self, asked: Asked, message: bytes, reply: Reply) -> Running | None:
        """Begin a request that a plan fits; None when there is none. Raises `MeshError` when it cannot be queued."""
        plan = self.plans.find(message)
        if plan is None:
            return None
        served = self._find(asked.model or plan.model, asked.version or plan.version)
        if served is not plan.served:
            return None
        inputs, request = plan.read(message), plan.request(message, asked)
        if inputs is None or request is None:
            return None
        seen = self.seen(asked, served)
        running = Running(served, message, plan, reply, seen)
        seen.begin()
        try:
            running.submit_planned(inputs, plan, asked.deadline_s, request)
        except BaseException as error:
            seen.end(error)
            raise
        return running

    def begin(self, asked: Asked, message: bytes, request: ModelInferRequest, served: Served, reply: Reply) -> Running:
        """Begin a request on `served`. Raises `MeshError`, counted, when it cannot even be queued."""
        if served.model.decoupled:
            raise Unimplemented("ModelInfer RPC doesn't support models with decoupled transaction policy")
        seen = self.seen(asked, served)
        running = Running(served, message, None, reply, seen)
        seen.begin()
        try:
            running.submit(request, asked, self.plans)
        except BaseException as error:
            seen.end(error)
            raise
        return running

    def is_traced(self, traceparent: str) -> bool:
        """Tell whether the caller wants to have a request recorded."""
        return self.tracing.on and bool(traceparent) and self.tracing.wants(traceparent, 1.0)

    def seen(self, asked: Asked, served: Served, step: str = "") -> Observed:
        """Return what counts and traces one request, or one of the step of a pipeline."""
        if self.tracing.on and self.tracing.wants(asked.traceparent, random.random()):  # noqa: S311 - a share of traces
            decided, method = not asked.traceparent, f"step {step}" if step else asked.method
            return Observed(self.metrics, self.tracing, method, asked.metadata(), served, decided=decided, step=step)
        return Observed(self.metrics, OFF, asked.method, (), served)


def read_request(request: ModelInferRequest, asked: Asked) -> Request:
    """Return what a model may read of `request` besides its tensors, and what its sequence needs."""
    if not request.parameters and not asked.tells and not asked.forwarded:
        return Request(request.id) if request.id else PLAIN
    said = literals(request.parameters)
    if asked.forwarded:
        said.update(asked.forwarded)
    return Request(request.id, said, request.session_state, asked.tells, asked.caller)


def queue_timeout_s(request: ModelInferRequest) -> float | None:
    """Return the ``timeout`` parameter, microseconds in the queue, in seconds; None without one (0 is none)."""
    if "timeout" not in request.parameters:
        return None
    timeout_us = int(request.parameters["timeout"].int64_param)
    return timeout_us / 1e6 if timeout_us > 0 else None


def fate_trailers(error: BaseException) -> Metadata:
    """Return what tells a router that a request certainly was not run, or that its process died of it; else nothing."""
    if not isinstance(error, MeshError):
        return ()
    if error.died:
        return ((DIED_TRAILER, "1"),)
    if not error.retry_safe:
        return ()
    told = (NOT_RUN_TRAILER, ABSENT if error.absent else "1")
    if isinstance(error, UnknownSequence) and error.copy_age_s is not None:
        return told, (COPY_AGE_TRAILER, str(int(error.copy_age_s * 1000)))
    return (told,)


def failed_message(error: MeshError, request_id: str, asked: Asked) -> bytes:
    """Return a failed request's message in a stream.

    A router, who is known by the name it resolved, also reads the code and whether the request was certainly not run.
    """
    let_go(error)
    if not asked.model:
        return error_message(error, request_id)
    return error_message(error, request_id, code=int(code_of(error)), not_run=error.retry_safe)
