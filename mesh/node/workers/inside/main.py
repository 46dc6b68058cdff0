"""A worker: loads one model and answers the node's messages until it is closed or the node is gone.

| the node sends | the worker answers |
|---|---|
| load, plan | ready, facts; or refused, text, traceback |
| run, number, inputs, request | done, number, ns, outputs; or failed, number, text, traceback |
| turns, number, turns | turned, number, ns, what each turn left; or failed |
| stream, number, inputs, request, credits | response, number, outputs (any number), then done or failed |
| credit, number; cancel, number | one more response may be made; nobody waits any more |
| close, 0 | closed, 0, what its close raised; and it ends |
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn, TextIO

import numpy as np

from .hosted import CannotLoad, Context, Hosted, ModelRequest, ModelTurn, Plan, arrays, carried, failure, said
from .line import Line
from .streams import AsyncStreams, Streams
from .values import BadValue, decode_state, encode_state

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = b"500"
"""The kernel, when memory is out, ends workers before the node that could make room."""


def run(fd: int) -> NoReturn:
    """Be a worker on the socket `fd`. Never returns."""
    code = 1
    try:
        _settle()
        _serve(Line(fd))
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - the end of the process
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            # What models registered: this process was forked and does not end as others do.
            atexit._run_exitfuncs()  # noqa: SLF001 - there is no other name for it
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def end_with_parent() -> None:
    """Let the kernel end this process when its parent ends, where it can."""
    set_process_option(_PR_SET_PDEATHSIG, signal.SIGKILL)


def set_process_option(option: int, value: int) -> None:
    """Set one of Linux' options of a process (prctl(2)); nothing happens elsewhere."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _settle() -> None:
    end_with_parent()
    faulthandler.enable()
    sys.dont_write_bytecode = True
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_bytes(_OOM_SCORE)
    if "numpy.random" in sys.modules:
        # Else all draw the same numbers: what the template was forked with.
        np.random.seed()  # noqa: NPY002 - the generator that models share without asking for one
    # New ones: those of the template were made for its own, which may have been files.
    sys.stdout, sys.stderr = _text(1), _text(2)


def _text(fd: int) -> TextIO:
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _serve(line: Line) -> None:
    message = line.receive()
    if message is None:
        return
    plan = message[1]
    try:
        hosted: Any = _isolated_runtime(plan) if plan["runtime"] != "python" else Hosted(_plan_of(plan))
    except CannotLoad as error:
        cause = error.__cause__
        told = "".join(traceback.format_exception(cause)) if cause is not None else ""
        line.send(["refused", 0, str(error), carried(told)])
        return
    line.send(["ready", 0, _facts(hosted)])
    if isinstance(hosted, Hosted) and plan["decoupled"] and not hosted.generates:
        if hosted.is_async:
            AsyncStreams(line, hosted).run()
        else:
            Streams(line, hosted, plan["streams"]).run()
    else:
        _answer(line, hosted)
    try:
        hosted.close()
        line.send(["closed", 0, ""])
    except Exception as error:  # noqa: BLE001 - what a model raises can be anything
        line.send(["closed", 0, said(error)])


def _isolated_runtime(plan: dict[str, Any]) -> Any:
    from mesh.node.workers.onnx_host import OnnxHost  # noqa: PLC0415 - the node's own interpreter alone has it

    return OnnxHost(plan)


def _plan_of(plan: dict[str, Any]) -> Plan:
    context = Context(plan["name"], plan["version"], Path(plan["path"]), plan["device"], plan["parameters"])
    return Plan(context, plan["decoupled"], plan["sequence"], plan["batched"], shared=False)


def _facts(hosted: Any) -> dict[str, Any]:
    if not isinstance(hosted, Hosted):
        facts: dict[str, Any] = hosted.facts()
        return facts
    return {
        "generates": hosted.generates,
        "sees_request": hosted.sees_request,
        "sees_sequences": hosted.sees_sequences,
    }


def _answer(line: Line, hosted: Any) -> None:
    """Answer one message after the other, on this thread."""
    while True:
        message = line.receive()
        if message is None or message[0] == "close":
            return
        number = message[1]
        try:
            # In a function of its own, so that nothing here refers to the message's arrays when it is answered.
            answer = _run(hosted, message) if message[0] == "run" else _turns(hosted, message)
        except Exception as error:  # noqa: BLE001 - what a model raises can be anything
            answer = failure(number, error)
        del message
        try:
            line.send(answer)
        except BadValue as error:
            line.send(["failed", number, f"answered what cannot be carried: {error}", ""])
        del answer


def _run(hosted: Any, message: list[Any]) -> list[Any]:
    _, number, inputs, request = message
    message.clear()
    began_ns = time.perf_counter_ns()
    outputs = hosted.infer(inputs, ModelRequest(*request))
    return ["done", number, time.perf_counter_ns() - began_ns, outputs]


def _turns(hosted: Hosted, message: list[Any]) -> list[Any]:
    _, number, given = message
    message.clear()
    turns = [
        ModelTurn(inputs, ModelRequest(*request), id_, start, end, decode_state(state) if state else None)
        for inputs, request, id_, start, end, state in given
    ]
    given.clear()
    began_ns = time.perf_counter_ns()
    if hosted.generates:
        hosted.step(turns)
    else:
        hosted.rows(turns)
    taken_ns = time.perf_counter_ns() - began_ns
    left = [[[arrays(each) for each in turn.outputs], _state(turn.state), bool(turn.done)] for turn in turns]
    return ["turned", number, taken_ns, left]


def _state(state: Any) -> bytes:
    try:
        return encode_state(state)
    except BadValue as error:
        raise TypeError(
            "the state of a sequence cannot be kept: expected None, numbers, text, bytes, numeric arrays, and lists "
            f"and dicts of them; {error}"
        ) from error


def in_another_interpreter() -> NoReturn:
    """Be a worker in the interpreter of a model's own: the socket is the program's last argument."""
    run(int(sys.argv[-1]))
