"""The figures of a run and the tables that show them. Owns the arithmetic; measures nothing."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from benchmarks.peers import MlServer
from mesh.cli.tables import table as plain_table

HEADER = ("server", "requests/s", "spread", "CPU µs/request", "busy", "rate", "CPU")


@dataclass
class Figures:
    """What one peer did in one shape: a number per run."""

    peer: str
    rates: list[float] = field(default_factory=list)
    """Requests per second."""
    cpu_us: dict[str, list[float]] = field(default_factory=dict)
    """CPU microseconds per request, by process."""

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
        """Return the share of the servers' core that was used: well below 1, the load set the rate."""
        return statistics.median(rate * us / 1e6 for rate, us in zip(self.rates, self._sums(), strict=True))

    def parts(self) -> str:
        """Return the median per process, where there are several."""
        if len(self.cpu_us) < 2:
            return ""
        return ", ".join(f"{name} {statistics.median(runs):,.0f}" for name, runs in self.cpu_us.items())

    def _sums(self) -> list[float]:
        return [sum(run) for run in zip(*self.cpu_us.values(), strict=True)]


def rows(found: list[Figures]) -> list[tuple[str, ...]]:
    """Return a row of `HEADER`'s columns per peer; the last two are ratios to MLServer, "-" where it did not run."""
    base = next((each for each in found if each.peer.startswith(MlServer.name)), None)
    made: list[tuple[str, ...]] = []
    for each in found:
        parts = f" ({each.parts()})" if each.parts() else ""
        ratios = (f"{each.rate() / base.rate():.2f}x", f"{each.cpu() / base.cpu():.2f}x") if base else ("-", "-")
        spread = f"±{each.spread():.0%}"
        made.append(
            (each.peer, f"{each.rate():,.0f}", spread, f"{each.cpu():,.0f}{parts}", f"{each.busy():.0%}", *ratios)
        )
    return made


def text(title: str, found: list[Figures]) -> str:
    """Return one shape as aligned columns."""
    return f"{title}\n{plain_table(HEADER, rows(found))}"


def markdown(title: str, found: list[Figures]) -> str:
    """Return one shape as a Markdown table."""
    lines = [HEADER, tuple("---" for _ in HEADER), *rows(found)]
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(cells)} |" for cells in lines)])
