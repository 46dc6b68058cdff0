"""Measure: requests per second and server CPU per request, the mesh beside its peers, in one run.

CPU is user and system time of the servers' processes, over the requests sent meanwhile. Every figure is the median of
the runs; peers take turns, so that a slow minute of the machine hits all alike. Rate and CPU are compared to MLServer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import models, report
from benchmarks.load import INFER, STREAM, LoadFailed, Work, send
from benchmarks.machine import CORES, cpu_s, describe
from benchmarks.models import Case
from benchmarks.peers import Echo, Mesh, MlServer, Node, Peer, Unavailable, mlserver_version
from benchmarks.report import Figures


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of traffic."""

    title: str
    method: str
    case: Case
    trial: int
    """Requests that warm a peer up and say how many fill the time."""


def shapes() -> list[Shape]:
    """Return what is measured."""
    small, large = models.small(), models.large()
    return [
        Shape(small.what, INFER, small, 200),
        Shape(large.what, INFER, large, 50),
        Shape("stream messages: the small request over one stream, 32 in flight", STREAM, small, 200),
    ]


def measure(peer: Peer, shape: Shape, count: int, figures: Figures, folder: Path) -> None:
    """Run once and add the numbers."""
    before = {name: cpu_s(pid) for name, pid in peer.parts.items()}
    seconds = send(work(peer, shape, count), folder)
    used = {name: cpu_s(pid) - before[name] for name, pid in peer.parts.items()}
    figures.add(count=count, seconds=seconds, cpu_s=used)


def work(peer: Peer, shape: Shape, count: int) -> Work:
    """Return what to send to `peer`."""
    size = peer.answer_bytes[shape.method, shape.case.name]
    return Work(peer.address, shape.method, shape.case.request(), size, count)


def compare(peers: list[Peer], shape: Shape, *, runs: int, seconds: float, folder: Path) -> list[Figures]:
    """Measure one shape on all peers in turn. Raises `LoadFailed`."""
    print(f"\n{shape.title}", file=sys.stderr)
    counts = {}
    for peer in peers:
        trial_s = send(work(peer, shape, shape.trial), folder)
        counts[peer.name] = max(shape.trial, int(shape.trial / trial_s * seconds))
    found = [Figures(peer.name) for peer in peers]
    for run in range(runs):
        print(f"  run {run + 1} of {runs}", file=sys.stderr)
        for peer, figures in zip(peers, found, strict=True):
            measure(peer, shape, counts[peer.name], figures, folder)
    return found


@contextlib.contextmanager
def running(folder: Path, cases: list[Case]) -> Iterator[list[Peer]]:
    """Start every peer that can run here and stop them all in the end. Raises `Unavailable` without the mesh."""
    mesh = Mesh()
    with contextlib.ExitStack() as stack:
        started: list[Peer] = []
        for peer in (mesh, Node(mesh), MlServer(), Echo()):
            print(f"starting {peer.name} ...", file=sys.stderr)
            stack.callback(peer.stop)
            try:
                peer.start(folder, cases)
            except Unavailable as error:
                if peer.required:
                    raise
                print(f"{peer.name} is left out: {error}", file=sys.stderr)
                continue
            if isinstance(peer, MlServer):
                peer.name = f"{peer.name} {mlserver_version()}"
            started.append(peer)
        yield started


def options() -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(prog="mesh bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs per figure; medians are printed (default 5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a run (default 3)")
    parser.add_argument("--quick", action="store_true", help="one short run: to see that it works, not to quote")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--markdown", action="store_true", help="print Markdown tables")
    shown.add_argument("--json", action="store_true", help="print every run's numbers as JSON")
    found = parser.parse_args()
    if found.runs < 1 or found.seconds <= 0:
        parser.error(f"expected at least 1 run and more than 0 seconds, got {found.runs} and {found.seconds}")
    if found.quick:
        found.runs, found.seconds = 1, 0.5
    return found


def show(results: dict[str, list[Figures]], chosen: argparse.Namespace) -> None:
    """Print the results the way that was chosen."""
    if chosen.json:
        tables = {title: [asdict(each) for each in found] for title, found in results.items()}
        print(json.dumps({"machine": describe(), "runs": chosen.runs, "seconds": chosen.seconds, "shapes": tables}))
        return
    one = report.markdown if chosen.markdown else report.text
    print(f"{describe()}; medians of {chosen.runs} runs of {chosen.seconds:g} s")
    for title, found in results.items():
        print(f"\n{one(title, found)}")


def main() -> None:
    """Run what the flags ask for."""
    chosen = options()
    if len(CORES) < 2:
        print("there is one core only: load and servers share it, so the rates say little", file=sys.stderr)
    asked = shapes()
    cases = list({shape.case.name: shape.case for shape in asked}.values())
    try:
        with tempfile.TemporaryDirectory(prefix="mesh-bench-") as scratch:
            folder = Path(scratch)
            with running(folder, cases) as peers:
                results = {
                    shape.title: compare(peers, shape, runs=chosen.runs, seconds=chosen.seconds, folder=folder)
                    for shape in asked
                }
    except (Unavailable, LoadFailed) as error:
        sys.exit(f"error: {error}")
    show(results, chosen)


if __name__ == "__main__":
    main()
