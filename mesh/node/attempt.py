"""One attempt at a step of a pipeline on this node: requests of its copy, and their tensors as arrays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mesh.api.carried import Carried
from mesh.api.signature import check_tensor
from mesh.api.tensors import TensorError, dtype_of, encode_raw, taken
from mesh.core.errors import DeadlineExceeded, InvalidRequest, MeshError, ModelFailed
from mesh.core.pipeline.run import EACH_AT_ONCE, Call, count_of
from mesh.core.pipeline.spec import Literal
from mesh.core.types import Dtype
from mesh.node.asked import Asked
from mesh.node.item import Item, Ran
from mesh.node.labor import Later, is_long_text
from mesh.node.observe import Observed
from mesh.node.runtimes.base import Array, Request
from mesh.node.served import Served
from mesh.node.validate import check_rows
from mesh.telemetry.statistics import Statistics


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor between two steps. BF16 values are held as float32, BYTES as objects of `bytes`."""

    dtype: Dtype
    array: Array


class Owner(Protocol):
    """The request that an attempt is part of."""

    asked: Asked
    queue_timeout_s: float | None

    @property
    def see(self) -> Callable[[Asked, Served, str], Observed]:
        """What returns what counts one request of a copy, a step of this name."""

    def statistics(self, step: str) -> Statistics:
        """Return the counters of a step."""

    def ended(self, step: str, outputs: dict[str, Held]) -> None:
        """Hear that a step answered."""

    def failed(self, step: str, error: Exception) -> None:
        """Hear that a step failed."""


class Attempt:
    """One attempt at a step: one request of its copy, or one for each element of its inputs."""

    def __init__(self, owner: Owner, call: Call[Held], served: Served, parameters: Mapping[str, Literal]) -> None:
        self.owner = owner
        self.call = call
        self.served = served
        self.request = Request(parameters={**parameters, **call.step.parameters})
        self.over = False
        self.rows = 0
        self.queue_s = 0.0
        self.run_s = 0.0
        """Of all its requests together, and what they waited before."""
        self._began_ns = time.monotonic_ns()
        self._parts: list[_Part] = []
        self._answers: list[dict[str, Held] | None] = []
        self._inputs: list[Mapping[str, Held]] = []
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Put the first requests into the copy's queue."""
        step = self.call.step
        if step.timeout_s:
            self._timer = asyncio.get_running_loop().call_later(step.timeout_s, self._late)
        try:
            self._inputs = _elements(step.each, self.call.inputs) if step.each else [self.call.inputs]
        except MeshError as error:
            self.failed(error)
            return
        self._answers = [None] * len(self._inputs)
        for _ in range(min(EACH_AT_ONCE, len(self._inputs))):
            self._next()

    def ended(self, at: int, outputs: dict[str, Held]) -> None:
        """Hear one answer."""
        if self.over:
            return
        self._answers[at] = outputs
        if len(self._parts) < len(self._inputs):
            self._next()
        elif all(answer is not None for answer in self._answers):
            self._done()

    def failed(self, error: Exception) -> None:
        """Hear one failure: it is the step's."""
        if not self.over:
            self.stop(asyncio.CancelledError())
            name = self.call.step.name
            self.owner.statistics(name).fail.add(time.monotonic_ns() - self._began_ns)
            self.owner.failed(name, error)

    def stop(self, error: BaseException) -> None:
        """Give up what still runs."""
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
        # They know this attempt as it knows them.
        parts, self._parts = self._parts, []
        for part in parts:
            part.withdraw(error)

    def _next(self) -> None:
        if self.over:
            return
        at = len(self._parts)
        part = _Part(self, at)
        self._parts.append(part)
        try:
            part.submit(self._inputs[at])
        except Exception as error:  # noqa: BLE001 - a full queue, a tensor that does not fit, a user's admit
            self.failed(error)

    def _done(self) -> None:
        answers = [answer for answer in self._answers if answer is not None]
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
        name = self.call.step.name
        self._count(name)
        self._parts = []
        if not self.call.step.each:
            self.owner.ended(name, answers[0])
            return
        try:
            stacked = {called: _stacked([answer[called] for answer in answers]) for called in answers[0]}
        except (MeshError, KeyError) as error:
            told = error if isinstance(error, MeshError) else ModelFailed(f"an element was answered without {error}")
            self.owner.failed(name, told)
            return
        self.owner.ended(name, stacked)

    def _count(self, name: str) -> None:
        statistics = self.owner.statistics(name)
        statistics.executions += len(self._parts)
        statistics.answered(
            self.rows,
            total_ns=time.monotonic_ns() - self._began_ns,
            queue_ns=int(self.queue_s * 1e9),
            input_ns=0,
            infer_ns=int(self.run_s * 1e9),
            output_ns=0,
        )

    def _late(self) -> None:
        self.failed(DeadlineExceeded(f"no answer within the step's timeout of {self.call.step.timeout_s:g} s"))


class _Part:
    """A `batcher.Waiter`: one request of a copy."""

    def __init__(self, attempt: Attempt, at: int) -> None:
        self._attempt = attempt
        self._at = at
        self._item: Item | None = None
        self._seen: Observed | None = None
        self._later: Later[dict[str, Held]] | None = None
        """What reads a long answer."""

    def submit(self, inputs: Mapping[str, Held]) -> None:
        """Put it into the copy's queue. Raises `MeshError`, counted, when it cannot be."""
        owner, served = self._attempt.owner, self._attempt.served
        seen = self._seen = owner.see(owner.asked, served, self._attempt.call.step.name)
        seen.begin()
        try:
            if seen.traced:
                seen.input_bytes = _bytes(inputs)
            arrays, seen.rows = _arrays(inputs, served)
            admitted = served.loaded.admit(arrays)
            seen.read_ns = time.monotonic_ns()
            self._item = served.batcher.submit(
                admitted,
                self._attempt.request,
                seen.rows,
                self,
                deadline_s=owner.asked.deadline_s,
                queue_timeout_s=owner.queue_timeout_s,
            )
        except BaseException as error:
            seen.end(error)
            self._seen = None
            raise

    def ran(self, ran: Ran) -> None:
        """Take the outputs."""
        seen, served = self._seen, self._attempt.served
        assert seen is not None
        self._item = None
        seen.ran, seen.ran_ns = ran, time.monotonic_ns()
        if any(map(is_long_text, ran.outputs.values())):
            self._later = Later(
                (served,), lambda: _all_held(ran, served), lambda found: self._took(ran, found), self.failed
            )
            return
        try:
            outputs = _all_held(ran, served)
        except Exception as error:  # noqa: BLE001 - what a model answers can be anything
            self.failed(error)
            return
        self._took(ran, outputs)

    def _took(self, ran: Ran, outputs: dict[str, Held]) -> _Part:
        seen, self._seen, self._later = self._seen, None, None
        assert seen is not None
        if seen.traced:
            seen.output_bytes = _bytes(outputs)
        seen.end(None)
        attempt = self._attempt
        attempt.rows += seen.rows
        attempt.queue_s += ran.queue_s
        attempt.run_s += ran.run_s
        self._attempt.ended(self._at, outputs)
        return self

    def failed(self, error: Exception) -> None:
        """Take what went wrong."""
        self._item = None
        if self._seen is not None:
            self._seen.end(error)
            self._seen = None
        self._attempt.failed(error)

    def withdraw(self, error: BaseException) -> None:
        """Leave the queue; nothing is heard any more."""
        if self._later is not None:
            self._later.withdraw(error)
            self._later = None
        item, self._item = self._item, None
        if item is not None and not item.over:
            self._attempt.served.batcher.withdraw(item)
        if self._seen is not None:
            self._seen.end(error)
            self._seen = None


def _arrays(inputs: Mapping[str, Held], served: Served) -> tuple[dict[str, Array], int]:
    """Return what a copy is given, and its rows. Raises `InvalidRequest` for what it does not take."""
    name, limit = served.model.name, served.model.max_batch_size
    rows = 0
    for spec in served.inputs:
        held = inputs.get(spec.name)
        if held is None:
            if not spec.optional:
                raise InvalidRequest(f"expected input '{spec.name}' for model '{name}', the step gives none")
            continue
        check_tensor(held.dtype, held.array.shape, spec, name)
        if limit:
            rows = check_rows(held.array.shape, spec, name, rows, limit)
    return {called: held.array for called, held in inputs.items()}, rows or 1


def _all_held(ran: Ran, served: Served) -> dict[str, Held]:
    return {name: _held(array, served, name) for name, array in ran.outputs.items()}


def _held(array: Any, served: Served, name: str) -> Held:
    """Return an output as the next step gets it. Raises `ModelFailed` unless it is what the signature says."""
    found: Array = np.asarray(array)
    spec = served.outputs.get(name)
    try:
        dtype = dtype_of(found)
    except TensorError as error:
        raise ModelFailed(f"model '{served.model.name}' answered a bad '{name}': {error.message}") from error
    if spec is not None and dtype is not spec.dtype and not (spec.dtype is Dtype.BF16 and dtype is Dtype.FP32):
        said = f"model '{served.model.name}' answered '{name}' as {dtype}, its signature says {spec.dtype}"
        raise ModelFailed(said)
    if dtype is Dtype.BYTES:
        # Models give text in several ways; they take it in one.
        found = taken(found)
    else:
        found = found.view()
        found.flags.writeable = False
    return Held(spec.dtype if spec is not None else dtype, found)


def _bytes(tensors: Mapping[str, Held]) -> int:
    """Return the bytes of tensors as they travel; those of texts about."""
    return sum(
        int(sum(len(text) + 4 for text in held.array.flat)) if held.dtype is Dtype.BYTES else held.array.nbytes
        for held in tensors.values()
    )


def carried(held: Held) -> Carried:
    """Return a tensor as messages carry it. Raises `TensorError`."""
    return Carried(held.dtype, held.array.shape, encode_raw(held.array, held.dtype))


def _elements(names: tuple[str, ...], inputs: Mapping[str, Held]) -> list[Mapping[str, Held]]:
    counts = {name: inputs[name].array.shape[0] if inputs[name].array.ndim else 0 for name in names}
    return [
        {**inputs, **{name: Held(inputs[name].dtype, _element(inputs[name].array, at)) for name in names}}
        for at in range(count_of(counts))
    ]


def _element(array: Array, at: int) -> Array:
    """Return one element of the first axis, as an array even when it has no axis left."""
    found: Array = array[at : at + 1].reshape(array.shape[1:])
    return found


def _stacked(parts: list[Held]) -> Held:
    kinds = {(part.dtype, part.array.shape) for part in parts}
    if len(kinds) != 1:
        shown = ", ".join(sorted(f"{dtype.value} {list(shape)}" for dtype, shape in kinds))
        raise InvalidRequest(f"expected tensors of one type and shape to stack, got {shown}")
    return Held(parts[0].dtype, np.stack([part.array for part in parts]))
