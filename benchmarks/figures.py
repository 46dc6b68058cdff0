"""The figures of runs: medians, spreads, sums over processes. Owns the arithmetic; measures nothing."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

Results = dict[tuple[str, str], "Figures"]
"""What was measured, by the keys of shape and peer."""


@dataclass
class Figures:
    """What one peer did in one shape: a number per run."""

    peer: str
    """Its name, as tables show it."""
    rates: list[float] = field(default_factory=list)
    """Requests per second."""
    cpu_us: dict[str, list[float]] = field(default_factory=dict)
    """CPU microseconds per request, by process."""
    latencies_us: list[float] = field(default_factory=list)
    """Median time of a request, where that counts."""
    memory_kb: list[float] = field(default_factory=list)
    """Growth of the processes' memory per request in flight, in KB of 1024 bytes, where that counts."""

    def add(self, *, count: int, seconds: float, cpu_s: dict[str, float]) -> None:
        """Add a run of `count` requests that took `seconds` and `cpu_s` of each process."""
        self.rates.append(count / seconds)
        for name, used_s in cpu_s.items():
            self.cpu_us.setdefault(name, []).append(used_s / count * 1e6)

    def rate(self) -> float:
        """Return the median rate."""
        return statistics.median(self.rates)

    def spread(self) -> float:
        """Return half the distance from the slowest to the fastest run, as a share of the median."""
        return (max(self.rates) - min(self.rates)) / 2 / self.rate()

    def cpu(self) -> float:
        """Return the median of the sum over the processes, CPU microseconds per request."""
        return statistics.median(self._sums())

    def busy(self) -> float:
        """Return the share of the servers' core that was used: well below 1, the load or the upstream set the rate."""
        return statistics.median(rate * us / 1e6 for rate, us in zip(self.rates, self._sums(), strict=True))

    def latency(self) -> float:
        """Return the median over the runs of a request's median time, microseconds."""
        return statistics.median(self.latencies_us)

    def memory(self) -> float:
        """Return the largest growth of any run: what was needed once must be there."""
        return max(self.memory_kb)

    def parts(self) -> str:
        """Return the median per process, where there are several."""
        if len(self.cpu_us) < 2:
            return ""
        return ", ".join(f"{name} {statistics.median(runs):,.0f}" for name, runs in self.cpu_us.items())

    def _sums(self) -> list[float]:
        return [sum(run) for run in zip(*self.cpu_us.values(), strict=True)]
