"""A user's Python class, ``class Model`` in model.py, loaded and called. In a worker, or in the node itself.

What it may define and is given, docs/model-repository.md says. Whatever it raises, SystemExit included, is its failure
and nobody else's: nothing but `Exception` leaves this file.
"""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .scope import Scope

FILE = "model.py"

Tensors = Mapping[str, Any]


class CannotLoad(Exception):
    """Why a model is not loaded, as a sentence about it."""


class Left(Exception):
    """A model's code raised what ends a program, such as SystemExit: the text says which."""


@dataclass(frozen=True)
class Context:
    """What ``load`` is told."""

    name: str
    version: str
    path: Path
    """The version's folder."""
    device: str
    """Such as "cpu:0"."""
    parameters: Mapping[str, str]


@dataclass
class ModelRequest:
    """What a model may read of a request besides its tensors, in a worker."""

    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class ModelTurn:
    """One sequence's part in a run, in a worker: what `infer` sees in ``sequences`` and `step` in ``generations``."""

    inputs: Tensors
    request: ModelRequest
    id: Any
    start: bool
    end: bool
    state: Any
    outputs: list[Any] = field(default_factory=list)
    done: bool = False

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The request's parameters."""
        return self.request.parameters

    def send(self, outputs: Tensors) -> None:
        """Answer with `outputs`; a generation may do so several times, or not at all."""
        self.outputs.append(outputs)


@dataclass(frozen=True)
class Plan:
    """What a model is loaded as."""

    context: Context
    decoupled: bool
    sequence: bool
    """Whether its requests are steps of sequences: then `infer` takes ``sequences``, where it can."""
    batched: bool
    shared: bool
    """Whether other models live in this process."""


class Hosted:
    """A model that is loaded. Its calls come from one thread at a time; `stream` from several."""

    def __init__(self, plan: Plan) -> None:
        """Import and construct the model, and call its load. Raises `CannotLoad`."""
        context = plan.context
        self._plan = plan
        self._loop: asyncio.AbstractEventLoop | None = None
        if not (context.path / FILE).is_file():
            raise CannotLoad(f"expected the file {FILE} in version {context.version}")
        self._scope = Scope(context.path, context.name, shared=plan.shared)
        self.generates = self.is_async = False
        self.sees_request = self.sees_sequences = False
        try:
            self.instance = guarded(self._made)
            guarded(self._look)
        except CannotLoad:
            self._forget()
            raise
        except Exception as error:
            self._forget()
            raise CannotLoad(f"looking at its class raised {said(error)}") from error

    def _look(self) -> None:
        plan = self._plan
        self.generates = plan.decoupled and callable(getattr(self.instance, "step", None))
        if not self.generates:
            names = inspect.signature(self.instance.infer).parameters
            self.sees_sequences = plan.sequence and "sequences" in names
            self.sees_request = not self.sees_sequences and len(names) > 1
            called = inspect.unwrap(self.instance.infer)
            self.is_async = inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called)

    def _made(self) -> Any:
        context = self._plan.context
        module = _loading(f"importing {FILE}", lambda: self._scope.load(FILE))
        made = getattr(module, "Model", None)
        needed = "step" if self._plan.decoupled and callable(getattr(made, "step", None)) else "infer"
        if made is None or not callable(getattr(made, needed, None)):
            raise CannotLoad(f"{FILE} must define a class Model with a method infer")
        instance = _loading("its constructor", made)
        if hasattr(instance, "load"):
            answered = _loading("its load", lambda: instance.load(context))
            if inspect.isawaitable(answered):
                _loading("its load", lambda: self._awaited(answered))
        return instance

    def infer(self, inputs: Tensors, request: Any) -> dict[str, Any]:
        """Return what the model answers, as arrays by name."""
        answered = self._call(inputs, request)
        if inspect.isawaitable(answered):
            answered = guarded(self._awaited, answered)
        found: dict[str, Any] = guarded(arrays, answered)
        return found

    def stream(self, inputs: Tensors, request: Any) -> Iterator[Tensors]:
        """Yield what a several-response model answers."""
        answered = self._call(inputs, request)
        if isinstance(answered, Mapping):
            yield guarded(arrays, answered)
            return
        steps = guarded(iter, answered)
        while (step := guarded(next, steps, _NO_MORE)) is not _NO_MORE:
            yield guarded(arrays, step)

    async def stream_async(self, inputs: Tensors, request: Any) -> AsyncGenerator[Tensors]:
        """Yield what an ``async def infer`` answers. What would end the process leaves it, as its task's end."""
        answered = self._call(inputs, request)
        if inspect.isawaitable(answered):
            answered = await answered
        if isinstance(answered, Mapping):
            yield arrays(answered)
            return
        async with aclosing(answered) as steps:
            async for step in steps:
                yield arrays(step)

    def rows(self, turns: Sequence[Any]) -> None:
        """Run one step of several sequences together: set their outputs and states."""
        given = dict(turns[0].inputs)
        if len(turns) > 1:
            given = {name: np.concatenate([each.inputs[name] for each in turns]) for name in given}
        for each in turns:
            each.state = dict(each.state or {})
        answered = guarded(self.instance.infer, given, turns)
        if inspect.isawaitable(answered):
            answered = guarded(self._awaited, answered)
        found = guarded(arrays, answered)
        if not self._plan.batched:
            turns[0].outputs = [found]
            return
        for name, array in found.items():
            if array.ndim == 0 or array.shape[0] != len(turns):
                raise ValueError(f"'{name}' has the shape {list(array.shape)} for {len(turns)} sequences")
        for at, each in enumerate(turns):
            each.outputs = [{name: array[at : at + 1] for name, array in found.items()}]

    def step(self, turns: Sequence[Any]) -> None:
        """Let generations go on."""
        for each in turns:
            each.state = dict(each.state or {})
        answered = guarded(self.instance.step, turns)
        if inspect.isawaitable(answered):
            guarded(self._awaited, answered)

    def close(self) -> None:
        """Call the model's close, and forget its modules. Raises what the model raises."""
        try:
            if hasattr(self.instance, "close"):
                answered = guarded(self.instance.close)
                if inspect.isawaitable(answered):
                    guarded(self._awaited, answered)
        finally:
            self.instance = None
            self._forget()

    def _forget(self) -> None:
        self._scope.close()
        if self._loop is not None:
            self._loop.close()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that its coroutines run on, of the thread that loaded it."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop

    def _awaited(self, answered: Any) -> Any:
        async def ended() -> Any:
            return await answered

        return self.loop.run_until_complete(ended())

    def _call(self, inputs: Tensors, request: Any) -> Any:
        given = dict(inputs)
        if self.sees_request:
            return guarded(self.instance.infer, given, request)
        return guarded(self.instance.infer, given)


def arrays(answered: Any) -> dict[str, Any]:
    """Return a model's answer as arrays by name. Raises TypeError."""
    if not isinstance(answered, Mapping):
        msg = f"infer must return a dict of arrays by output name, got {type(answered).__name__}"
        raise TypeError(msg)
    # A list is an array to numpy: without this it would pass alone and fail when requests are joined.
    return {name: np.asarray(value) for name, value in answered.items()}


def guarded(call: Any, *given: Any) -> Any:
    """Return what a model's code returns. What would end the process becomes `Left`."""
    try:
        return call(*given)
    except Exception:
        raise
    except BaseException as error:
        raise Left(said(error)) from error


def said(error: BaseException) -> str:
    """Return an error as its caller reads it."""
    if isinstance(error, Left):
        return str(error)
    try:
        return carried(f"{type(error).__name__}: {error}")
    except BaseException:  # noqa: BLE001 - a model's own error class may raise anything when it is shown
        return type(error).__name__


def carried(text: str) -> str:
    """Return a text that UTF-8 can carry: halves of surrogate pairs are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def failure(number: int, error: BaseException) -> list[Any]:
    """Return the message about a run that failed."""
    return ["failed", number, said(error), carried("".join(traceback.format_exception(error)))]


_NO_MORE = object()
"""In place of a response, as a model may yield anything."""


def _loading(what: str, call: Any) -> Any:
    try:
        return guarded(call)
    except Exception as error:
        raise CannotLoad(f"{what} raised {said(error)}") from error
