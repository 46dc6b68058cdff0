"""Measure: requests per second and server CPU per request, the mesh beside its peers, in one run.

CPU is user and system time of the server's processes from /proc, over the requests sent meanwhile. Every figure is the
median of the runs; peers take turns, so that a slow minute of the machine hits all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import load, models
from benchmarks.models import Case
from benchmarks.peers import Echo, Mesh, MlServer, Node, Peer, Unavailable

Load = Callable[[str, bytes, int, Path], float]

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class Figures:
    """What one peer did in one shape: a number per run."""

    peer: str
    rates: list[float] = field(default_factory=list)
    """Requests per second."""
    cpu_us: dict[str, list[float]] = field(default_factory=dict)
    """CPU microseconds per request, by process."""

    def rate(self) -> float:
        """Return the median."""
        return statistics.median(self.rates)

    def cpu(self) -> float:
        """Return the median of the sum over the processes."""
        sums: list[float] = [sum(run) for run in zip(*self.cpu_us.values(), strict=True)]
        return statistics.median(sums)

    def parts(self) -> str:
        """Return the median per process, where there are several."""
        if len(self.cpu_us) < 2:
            return ""
        return ", ".join(f"{name} {statistics.median(runs):.0f}" for name, runs in self.cpu_us.items())


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process and its ended children have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    seconds: float = sum(int(value) for value in fields[11:15]) * TICK_S
    return seconds


def measure(peer: Peer, figures: Figures, *, request: bytes, send: Load, count: int, folder: Path) -> None:
    """Run once and add the numbers."""
    before = {name: cpu_s(pid) for name, pid in peer.parts.items()}
    seconds = send(peer.address, request, count, folder)
    figures.rates.append(count / seconds)
    for name, pid in peer.parts.items():
        figures.cpu_us.setdefault(name, []).append((cpu_s(pid) - before[name]) / count * 1e6)


def compare(
    title: str, peers: list[Peer], case: Case, *, send: Load, options: argparse.Namespace, folder: Path
) -> list[Figures]:
    """Measure one shape on all peers in turn and print its table."""
    request = case.request()
    print(f"\n{title}", file=sys.stderr)
    counts = {}
    for peer in peers:
        # A first short run warms the peer up and says how many requests fill the time.
        trial = 200 if case.name == "mlp" else 50
        counts[peer.name] = max(trial, int(trial / send(peer.address, request, trial, folder) * options.seconds))
    all_figures = [Figures(peer.name) for peer in peers]
    for run in range(options.runs):
        print(f"  run {run + 1} of {options.runs}", file=sys.stderr)
        for peer, figures in zip(peers, all_figures, strict=True):
            measure(peer, figures, request=request, send=send, count=counts[peer.name], folder=folder)
    return all_figures


def table(title: str, all_figures: list[Figures]) -> str:
    """Return one shape as a Markdown table, ratios against MLServer where it ran."""
    base = next((each for each in all_figures if each.peer == MlServer.name), None)
    lines = [
        f"**{title}**",
        "",
        "| server | requests/s | CPU µs/request | vs MLServer: rate, CPU |",
        "|---|---|---|---|",
    ]
    for each in all_figures:
        parts = f" ({each.parts()})" if each.parts() else ""
        ratio = f"{each.rate() / base.rate():.1f}x, {each.cpu() / base.cpu():.2f}x" if base else "MLServer did not run"
        lines.append(f"| {each.peer} | {each.rate():,.0f} | {each.cpu():.0f}{parts} | {ratio} |")
    return "\n".join(lines)


def started(folder: Path, cases: list[Case]) -> list[Peer]:
    """Start every peer that can run here."""
    mesh = Mesh()
    peers: list[Peer] = [mesh, Node(mesh), MlServer(), Echo()]
    running = []
    for peer in peers:
        print(f"starting {peer.name} ...", file=sys.stderr)
        try:
            peer.start(folder, cases)
        except Unavailable as error:
            print(f"{peer.name} is left out: {error}", file=sys.stderr)
        else:
            running.append(peer)
    return running


def main() -> None:
    """Run what the flags ask for."""
    parser = argparse.ArgumentParser(prog="mesh bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs per figure; medians are printed (default 5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a run (default 3)")
    parser.add_argument("--quick", action="store_true", help="one short run: to see that it works, not to quote")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    options = parser.parse_args()
    if options.quick:
        options.runs, options.seconds = 1, 0.5
    small, large = models.small(), models.large()
    shapes: list[tuple[str, Case, Load]] = [
        (small.what, small, load.unary),
        (large.what, large, load.unary),
        ("stream messages: the small request over one stream, 32 in flight", small, load.stream),
    ]
    peers: list[Peer] = []
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as scratch:
        folder = Path(scratch)
        try:
            peers = started(folder, [small, large])
            results = {
                title: compare(title, peers, case, send=send, options=options, folder=folder)
                for title, case, send in shapes
            }
        finally:
            for peer in reversed(peers):
                peer.stop()
    if options.json:
        print(json.dumps({title: [asdict(each) for each in found] for title, found in results.items()}))
    else:
        print("\n\n".join(table(title, found) for title, found in results.items()))


if __name__ == "__main__":
    main()
