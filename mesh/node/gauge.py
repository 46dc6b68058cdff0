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

SMOOTHING = 0.2
"""Weight of the newest run in the measured run time."""


class Gauge:
    """The runs of one copy. `steady` says that a run's time follows from the size of its inputs."""

    __slots__ = ("_run_bytes", "_runs", "_steady", "work_s")

    def __init__(self, *, steady: bool) -> None:
        self._steady = steady
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

    def run(self, call: Callable[[], T]) -> tuple[T, float, float]:
        """Return what `call` returns, the seconds it took, and the CPU seconds of them (below 0: not asked for).

        Called from any thread; give the CPU seconds to `measured` on the loop.
        """
        self._runs += 1
        if self._runs % WEIGHED and self._run_bytes and self.work_s < ON_LOOP_S / 2:
            # Asking for the CPU time is a system call, which costs more than a tiny run.
            started_s = time.perf_counter()
            outputs = call()
            return outputs, time.perf_counter() - started_s, -1.0
        started_s, cpu_s = time.perf_counter(), time.thread_time()
        outputs = call()
        # Under load a thread waits for the interpreter longer than a tiny run takes. That wait is the hop's cost, not
        # the run's: counted as the run's own it would keep the runs in threads for ever.
        return outputs, time.perf_counter() - started_s, time.thread_time() - cpu_s

    def measured(self, work_s: float, size: int) -> None:
        """Take a run's CPU seconds and the bytes of its inputs; of one that was not weighed, nothing."""
        if work_s < 0:
            return
        weight = SMOOTHING if self._run_bytes else 1.0
        self.work_s += weight * (work_s - self.work_s)
        self._run_bytes += weight * (size - self._run_bytes)

    def __repr__(self) -> str:
        """Show a mean run."""
        return f"<Gauge {self.work_s * 1e6:.0f} us of {self._run_bytes:.0f} bytes>"
