"""How long the runs of a copy take, and so whether one may go on the event loop instead of in a thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

ON_LOOP_S = 200e-6
"""Runs measured below this stay on the loop: a hop to a thread and back costs 50 to 100 us."""

WEIGHED = 16
"""One run of so many is measured in CPU time while runs are well below `ON_LOOP_S`."""

LONG_S = 5e-3
"""CPU of a run that was predicted to be short: beyond it the prediction is worth nothing, and the copy's runs leave the
event loop for good. 25 times what may go there, since a first run of a new shape allocates."""

DOUBT_S = 20e-3
"""Seconds of a run on the event loop whose CPU was not asked for. Where it may have worked so long, and not waited for
the machine, the next runs are made in threads, where all are weighed."""

DOUBTED = 64
"""Runs in threads after the first doubt; four times as many after each further one, `MOST_DOUBTS` times."""

MOST_DOUBTS = 10

SMOOTHING = 0.2
"""Weight of the newest run in the measured run time."""


class Gauge:
    """The runs of one copy. `steady` says that a run's time follows from the size of its inputs."""

    __slots__ = ("_doubted", "_doubts", "_run_bytes", "_runs", "_seen_s", "_steady", "work_s")

    def __init__(self, *, steady: bool) -> None:
        self._steady = steady
        """Whether runs that are predicted to be short may go on the loop now."""
        self._seen_s = 0.0
        """CPU seconds of the loop's thread when it was looked at last."""
        self._doubts = 0
        self._doubted = 0
        """Runs that are still to be made in threads before they may."""
        self.work_s = 0.0
        """Seconds of CPU that a mean run takes."""
        self._run_bytes = 0.0
        self._runs = 0

    def predicted_s(self, size: float) -> float:
        """Return how long a run on inputs of `size` bytes is expected to work; endless before one was measured."""
        if not self._steady or not self._run_bytes:
            return float("inf")
        return self.work_s * max(1.0, size / self._run_bytes)

    def scale(self, size: int) -> float:
        """Return inputs of `size` bytes in mean ones."""
        return size / self._run_bytes if self._run_bytes else 1.0

    def is_short(self, scale: float) -> bool:
        """Tell whether a run is short enough for the event loop. `scale` is its size in mean ones."""
        return self._steady and self._run_bytes > 0 and self.work_s * max(1.0, scale) < ON_LOOP_S

    def run_here(self, call: Callable[[], T]) -> tuple[T, float, float]:
        """Do what `run` does, on the event loop. After one that took long there, others go to threads for a while."""
        weighed = self._weighs()
        cpu_s = time.thread_time() if weighed else 0.0
        started_s = time.perf_counter()
        try:
            outputs = call()
        finally:
            run_s = time.perf_counter() - started_s
            if run_s > DOUBT_S and self._may_have_worked(DOUBT_S):
                self._steady = False
                self._doubted = DOUBTED << 2 * min(self._doubts, MOST_DOUBTS)
                self._doubts += 1
        if not weighed:
            return outputs, run_s, -1.0
        self._seen_s = now_s = time.thread_time()
        return outputs, run_s, now_s - cpu_s

    def _may_have_worked(self, long_s: float) -> bool:
        """Tell whether the run that just ended on the loop can have worked for `long_s`.

        Not when the loop's thread has not had as much CPU since it was looked at last, some runs before: then the
        machine was busy with others.
        """
        before_s, self._seen_s = self._seen_s, time.thread_time()
        return self._seen_s - before_s >= long_s

    def run(self, call: Callable[[], T]) -> tuple[T, float, float]:
        """Return what `call` returns, the seconds it took, and the CPU seconds of them (below 0: not asked for).

        Called from any thread; give the CPU seconds to `measured` on the loop.
        """
        weighed = self._weighs()
        cpu_s = time.thread_time() if weighed else 0.0
        started_s = time.perf_counter()
        outputs = call()
        run_s = time.perf_counter() - started_s
        # Under load a thread waits for the interpreter longer than a tiny run takes. That wait is the hop's cost, not
        # the run's: counted as the run's own it would keep the runs in threads for ever.
        return outputs, run_s, time.thread_time() - cpu_s if weighed else -1.0

    def _weighs(self) -> bool:
        """Tell whether the CPU time of a run is asked for: a system call, which costs more than a tiny run."""
        self._runs += 1
        return not self._runs % WEIGHED or not self._run_bytes or self.work_s >= ON_LOOP_S / 2 or self._doubted > 0

    def measured(self, work_s: float, size: int) -> None:
        """Take a run's CPU seconds and the bytes of its inputs; of one that was not weighed, nothing."""
        if work_s < 0:
            return
        if work_s > LONG_S and self._run_bytes and self.work_s * max(1.0, size / self._run_bytes) < ON_LOOP_S:
            self._steady, self._doubted = False, 0
        elif self._doubted:
            self._doubted -= 1
            self._steady = not self._doubted
        weight = SMOOTHING if self._run_bytes else 1.0
        self.work_s += weight * (work_s - self.work_s)
        self._run_bytes += weight * (size - self._run_bytes)

    def __repr__(self) -> str:
        """Show a mean run."""
        return f"<Gauge {self.work_s * 1e6:.0f} us of {self._run_bytes:.0f} bytes>"
