"""Runs one long-lived process: event loop, signals, the ready line and the exit code. What it serves is given to it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import typer

from mesh.cli.flags import OTLP_VARIABLE
from mesh.core.errors import MeshError
from mesh.telemetry import logs, tracing
from mesh.telemetry.tracing import Tracing
from mesh.wire.files import raise_limit
from mesh.wire.memory import keep_large_buffers

INTERRUPTED: Final = 130
"""Exit code after a second signal: 128 + SIGINT, as shells count."""

ORPHAN_S: Final = 5.0
"""How long a process whose parent is gone may take to stop before it ends itself."""

STUCK_S: Final = 1.0
"""How long threads may take to end after everything was drained."""

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Main = Callable[[asyncio.Event], Awaitable[None]]


def run(main: Main, *, loop: str = "auto", exit_with_stdin: bool = False) -> None:
    """Run `main` until it returns; a signal sets the event it is given. Exits the process unless all went well.

    Exit codes: 0 after `main` returned, 1 for a `MeshError` or OSError (one sentence on stderr) or anything
    unexpected (logged), 130 at once for a second signal. `loop` is "auto" (uvloop where it is installed), "uvloop"
    or "asyncio". With `exit_with_stdin` the end of stdin is a signal too, and nothing outlives it by `ORPHAN_S`.
    """
    keep_large_buffers()
    raise_limit()
    try:
        with asyncio.Runner(loop_factory=_factory(loop)) as runner:
            runner.run(_with_signals(main, exit_with_stdin=exit_with_stdin))
        _leave_stuck_threads()
    except KeyboardInterrupt:  # before the handlers were in place
        raise typer.Exit(INTERRUPTED) from None
    except BaseExceptionGroup as group:
        _fail(_first(group))
    except Exception as error:  # noqa: BLE001 - the edge of the process
        _fail(error)


def _leave_stuck_threads() -> None:
    """End the process now if threads do not end: a model's code that never returns must not keep it from exiting.

    Without this the interpreter would join them at exit, for ever.
    """
    end_s = time.monotonic() + STUCK_S
    while stuck := [each for each in threading.enumerate() if each is not threading.main_thread() and not each.daemon]:
        if time.monotonic() > end_s:
            names = ", ".join(each.name for each in stuck)
            logs.get("mesh.cli").warning("left threads that do not end", threads=names)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        time.sleep(0.02)


async def _with_signals(main: Main, *, exit_with_stdin: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def ask() -> None:
        if stop.is_set():
            os._exit(INTERRUPTED)
        stop.set()

    for each in SIGNALS:
        loop.add_signal_handler(each, ask)
    if exit_with_stdin:
        threading.Thread(target=_watch_stdin, args=(loop, stop), name="stdin", daemon=True).start()
    await main(stop)


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending anyway
        loop.call_soon_threadsafe(stop.set)
    time.sleep(ORPHAN_S)
    os._exit(1)


def _factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if name == "asyncio":
        return None
    if name not in {"auto", "uvloop"}:
        raise typer.BadParameter(f"expected auto, uvloop or asyncio, got {name!r}", param_hint="--loop")
    try:
        import uvloop  # noqa: PLC0415 - not installed everywhere
    except ImportError:
        if name == "uvloop":
            raise typer.BadParameter("uvloop is not installed: use --loop asyncio", param_hint="--loop") from None
        return None
    return uvloop.new_event_loop


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error of a group that says something to a person; groups of tasks hold the cause first."""
    leaves: list[BaseException] = []
    queue: list[BaseException] = [group]
    while queue:
        each = queue.pop(0)
        if isinstance(each, BaseExceptionGroup):
            queue[:0] = each.exceptions
        else:
            leaves.append(each)
    return next((each for each in leaves if isinstance(each, MeshError | OSError)), leaves[0])


def _fail(error: BaseException) -> None:
    """End the process for `error`, which is being handled: what is unexpected is logged whole."""
    if isinstance(error, typer.Exit | typer.BadParameter | SystemExit):
        raise error
    if isinstance(error, MeshError | OSError):
        fail(sentence(error))
    logs.get("mesh.cli").exception("stopped by an unexpected error")
    fail(f"unexpected {type(error).__name__}: {error}; please report it with the log line above")


def sentence(error: BaseException) -> str:
    """Return what an error says to a person."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    return str(error) or type(error).__name__


def fail(message: str, code: int = 1) -> None:
    """Print one sentence on stderr and exit with `code`."""
    with contextlib.suppress(OSError):
        print(f"error: {message}", file=sys.stderr, flush=True)
    raise typer.Exit(code)


def set_logs(level: str, *, as_json: bool) -> None:
    """Configure logging as the flags say."""
    try:
        logs.configure(level, as_json)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--log-level") from None


YOUNGEST: Final = 20_000
"""Objects that may be made before the collector looks for cycles among them. Python's 700 are a few dozen requests in
flight, whose objects are gone by themselves a moment later: looking at them took a third of a step's CPU."""


def spare_the_collector() -> None:
    """Let the collector leave alone what is there for good, and look at the rest less often. Call it when ready."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNGEST, 20, 20)


@dataclass(frozen=True, slots=True)
class Shell:
    """What the flags say of a serving process besides its configuration."""

    loop: str
    exit_with_stdin: bool = False
    json_ready: bool = False
    sample_ratio: float = 1.0

    def tracing(self, service: str, name: str) -> Tracing:
        """Return tracing to the endpoint of the environment, off without one."""
        endpoint = os.environ.get(OTLP_VARIABLE, "").strip()
        return tracing.configure(service, node_or_router_id=name, sample_ratio=self.sample_ratio, endpoint=endpoint)

    def say_ready(self, kind: str, name: str) -> Callable[[str, str], None]:
        """Return what prints, given its gRPC and HTTP address, the one line on stdout that says it takes calls."""

        def say(grpc: str, http: str) -> None:
            spare_the_collector()
            if self.json_ready:
                record = {"ready": True, "kind": kind, "id": name, "pid": os.getpid(), "grpc": grpc, "http": http}
                line = json.dumps(record)
            else:
                line = f"{kind} {name} ready on {grpc}" + (f", http {http}" if http else "")
            with contextlib.suppress(OSError):  # nobody reads it: no reason to stop serving
                print(line, flush=True)

        return say
