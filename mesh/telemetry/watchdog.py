"""A thread that notices an event loop that stands, says where, and ends the process when it does not go on.

While a loop stands, nothing is answered and no lease is renewed: leases are kept alive by tasks of the same loop
(`mesh.registry.lease`), so that routers look elsewhere within the lease's time. What is left is to say why, and to make
room for a process that works.

Two things watch. A thread counts its own rounds in which the loop did not turn: a process that is stopped (SIGSTOP, a
suspended machine) counts none. Code in C that keeps the interpreter for itself stops that thread too; against it, a
timer of the process's CPU time is wound up again in each round. When it runs down, a signal handler that needs no
interpreter (SIGPROF, faulthandler's) writes all stacks and the process ends. A process that is stopped uses no CPU.
What neither sees: C code that waits, without using CPU, for something that never comes and keeps the interpreter.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

from mesh.telemetry import logs

log = logs.get(__name__)

HUNG: Final = 70
"""Exit code of a process whose loop stood for too long (EX_SOFTWARE of sysexits.h)."""

BEAT_S: Final = 0.25
"""How often the loop says that it turns, and the thread looks."""

STANDS_S: Final = 2.0
"""Of standing after which the stacks are logged: a lease's shortest time."""

LAST_WORDS_S: Final = 1.0
"""How long the log may take before the process ends without it: whatever stands may hold the log's lock."""

STACK_CHARS: Final = 20_000
"""Of all stacks in one log line."""


@contextmanager
def watching(hang_s: float) -> Iterator[Watchdog]:
    """Watch the running loop. The process ends when it stands for `hang_s` seconds; 0: it never does."""
    watchdog = Watchdog(asyncio.get_running_loop(), hang_s)
    watchdog.start()
    try:
        yield watchdog
    finally:
        watchdog.stop()


class Watchdog:
    """Watches one loop. One per process: the timer of CPU time is the process's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, hang_s: float) -> None:
        self._loop = loop
        self._hang_s = hang_s
        self._main = threading.get_ident()
        self._beats = 0
        self._beater: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin. Called on the loop, in the main thread."""
        if self._hang_s:
            with suppress(ValueError, OSError, RuntimeError):  # stderr is no file: there is nothing to write stacks to
                faulthandler.register(signal.SIGPROF, all_threads=True, chain=True)
            # Here too: the interpreter may be taken before the thread has gone round once.
            signal.setitimer(signal.ITIMER_PROF, self._hang_s)
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """End watching: what a process does after its loop has nothing to be served by."""
        self._stopped.set()
        if self._beater is not None:
            self._beater.cancel()
        self._thread.join()
        if self._hang_s:
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.unregister(signal.SIGPROF)

    def _beat(self) -> None:
        self._beats += 1
        self._beater = self._loop.call_later(BEAT_S, self._beat)

    def _watch(self) -> None:
        seen, rounds = self._beats, 0
        while not self._stopped.wait(BEAT_S):
            if self._hang_s:
                signal.setitimer(signal.ITIMER_PROF, self._hang_s)
            if self._beats != seen:
                if rounds * BEAT_S >= STANDS_S:
                    log.warning("the event loop goes on", stood_s=rounds * BEAT_S)
                seen, rounds = self._beats, 0
                continue
            rounds += 1
            stood_s = rounds * BEAT_S
            if self._hang_s and stood_s >= self._hang_s:
                self._end(stood_s)
            if stood_s - BEAT_S < STANDS_S <= stood_s:
                _aside(lambda: log.warning("the event loop stands", stood_s=STANDS_S, threads=self._stacks()))

    def _end(self, stood_s: float) -> None:
        _aside(lambda: log.error("the event loop stood for too long: this process ends", stood_s=stood_s))
        with suppress(OSError, ValueError, RuntimeError):
            faulthandler.dump_traceback(all_threads=True)
        with suppress(OSError, ValueError):
            os.write(2, b"error: the event loop stood for %d s (--hang-s), its stacks are above\n" % stood_s)
        os._exit(HUNG)

    def _stacks(self) -> str:
        """Return where every thread is, the loop's own first."""
        frames = sys._current_frames()  # noqa: SLF001 - the only way, and documented
        names = {each.ident: each.name for each in threading.enumerate()}
        order = sorted(frames.items(), key=lambda pair: pair[0] != self._main)
        return "\n".join(_stack(names.get(ident, "?"), frame) for ident, frame in order)[:STACK_CHARS]

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Watchdog beats={self._beats} hang_s={self._hang_s:g}>"


def _stack(name: str, frame: FrameType) -> str:
    return f"thread {name}:\n" + "".join(traceback.format_stack(frame))


def _aside(say: Callable[[], None]) -> None:
    """Log from a thread of its own, and do not wait for it for long."""
    words = threading.Thread(target=say, name="last words", daemon=True)
    words.start()
    words.join(LAST_WORDS_S)
