"""Measure: CPU per request, rate, latency and memory, the mesh beside its peers, in one run, against its goals.

CPU is user and system time of the measured processes, over the requests sent meanwhile. Figures are medians of the
runs; peers take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import distance, goals, isolation, pipelines, placement, report, sessions
from benchmarks.compare import Effort, compare
from benchmarks.figures import Figures, Results
from benchmarks.load import LoadFailed
from benchmarks.machine import CORES, LOAD_CORE, SERVER_CORE, describe
from benchmarks.models import Case
from benchmarks.peers.base import Peer, Unavailable
from benchmarks.peers.envoy import Envoy
from benchmarks.peers.grpcio import Echo, Proxy, ThreadsEcho, ThreadsProxy
from benchmarks.peers.mesh import Mesh, Node, PythonNode, Router, Together
from benchmarks.peers.mlserver import MlServer
from benchmarks.peers.triton import Triton
from benchmarks.shapes import Shape, shapes


def chosen(pattern: str) -> list[Shape]:
    """Return the shapes that `pattern` finds in "shape/peer", each with the peers of which it finds any."""
    found = (
        replace(shape, peers=tuple(peer for peer in shape.peers if re.search(pattern, f"{shape.key}/{peer}")))
        for shape in shapes()
    )
    return [shape for shape in found if shape.peers]


@contextlib.contextmanager
def running(folder: Path, asked: list[Shape], engine: str) -> Iterator[tuple[Mesh, dict[str, Peer]]]:
    """Start every peer that is asked for and can run, and stop all in the end. Raises `Unavailable` without the mesh.

    The mesh runs in any case: it holds the node that proxies stand before.
    """
    cases: list[Case] = list({shape.case.name: shape.case for shape in shapes()}.values())
    keys = {key for shape in asked for key in shape.peers}
    mesh = Mesh(engine)
    workers = PythonNode(engine, "process", "worker", "mesh node, Python in a worker")
    hosted = PythonNode(engine, "none", "hosted", "mesh node, Python in the node")
    all_peers = (Together(mesh), Router(mesh), Node(mesh), Envoy(mesh), Proxy(mesh), ThreadsProxy(mesh))
    with contextlib.ExitStack() as stack:
        stack.callback(mesh.stop)
        print("starting the mesh ...", file=sys.stderr)
        mesh.start(folder, cases)
        started: dict[str, Peer] = {}
        for peer in (*all_peers, workers, hosted, Echo(), ThreadsEcho(), MlServer(), Triton()):
            if peer.key not in keys:
                continue
            print(f"starting {peer.name} ...", file=sys.stderr)
            stack.callback(peer.stop)
            try:
                peer.start(folder, cases)
            except (Unavailable, AssertionError) as error:
                if peer.required:
                    raise
                print(f"{peer.name} is left out: {error}", file=sys.stderr)
                peer.stop()
            else:
                started[peer.key] = peer
        yield mesh, started


def options() -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(prog="mesh bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs per figure; medians are printed (default 5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a run (default 3)")
    parser.add_argument("--quick", action="store_true", help="one short run: to see that it works, not to quote")
    parser.add_argument("--only", default="", metavar="PATTERN", help='expression found in "shape/peer"; see --list')
    parser.add_argument("--list", action="store_true", help="print every shape/peer and end")
    parser.add_argument(
        "--section",
        choices=("all", "wire", "placement", "pipelines", "sessions", "isolation", "distance"),
        default="all",
        help="what to measure; --only is of the wire",
    )
    parser.add_argument("--engine", default="", metavar="NAME", help="what the mesh gets as --wire; default: no flag")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--markdown", action="store_true", help="print Markdown tables")
    shown.add_argument("--json", action="store_true", help="print every run's numbers as JSON")
    found = parser.parse_args()
    if found.runs < 1 or found.seconds <= 0:
        parser.error(f"expected at least 1 run and more than 0 seconds, got {found.runs} and {found.seconds}")
    if not chosen(found.only):
        parser.error(f"expected a pattern that finds something of --list, got {found.only!r}")
    if found.quick:
        found.runs, found.seconds = 1, 0.5
    return found


def show(  # noqa: PLR0917 - every section, and how to show it
    results: Results,
    placed: dict[str, dict[str, Any]],
    piped: dict[str, float],
    stepped: dict[str, float],
    isolated: dict[str, float],
    far: dict[str, float],
    asked: list[Shape],
    flags: argparse.Namespace,
) -> None:
    """Print the results the way that was chosen."""
    if flags.json:
        runs = [{"shape": shape, "peer": peer, **asdict(each)} for (shape, peer), each in results.items()]
        print(
            json.dumps(
                {
                    "machine": describe(),
                    "engine": flags.engine,
                    "figures": runs,
                    "placement": placed,
                    "pipelines": piped,
                    "sessions": stepped,
                    "isolation": isolated,
                    "distance": far,
                }
            )
        )
        return
    one = report.markdown if flags.markdown else report.text
    engine = f"; --wire {flags.engine}" if flags.engine else ""
    print(f"{describe()}{engine}; medians of {flags.runs} runs of {flags.seconds:g} s")
    for shape in asked if results else ():
        found = {peer: results[shape.key, peer] for peer in shape.peers if (shape.key, peer) in results}
        print(f"\n{one(shape.title, *report.table(found, shape.base, goals.DIRECT))}")
    made = goals.rows(results)
    if made:
        print(f"\n{one('Goals', goals.HEADER, made)}")
    for title, header, rows in placement.tables(placed):
        print(f"\n{one(title, header, rows)}")
    if piped:
        print(f"\n{one('Pipelines', ('what', 'measured', 'target', 'verdict'), pipelines.rows(piped))}")

    if isolated:
        print(f"\n{one('Isolation', ('what', 'measured', 'target', 'verdict'), isolation.rows(isolated))}")
    if far:
        print(f"\n{one('Distance', ('what', 'measured', 'target', 'verdict'), distance.rows(far))}")
    if stepped:
        print(f"\n{one('Sessions', ('what', 'measured', 'target', 'verdict'), sessions.rows(stepped))}")


def measured(asked: list[Shape], flags: argparse.Namespace) -> Results:
    """Start what is needed and measure every shape. Raises `Unavailable`, `LoadFailed`."""
    results: Results = {}
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as scratch:
        effort = Effort(flags.runs, flags.seconds, Path(scratch))
        with running(effort.folder, asked, flags.engine) as (mesh, peers):
            for shape in asked:
                mesh.place_node(LOAD_CORE if shape.proxies else SERVER_CORE)
                present = [peers[key] for key in shape.peers if key in peers]
                found: dict[str, Figures] = compare(present, shape, effort)
                results.update({(shape.key, key): figures for key, figures in found.items()})
    return results


def main() -> None:
    """Run what the flags ask for."""
    flags = options()
    asked = chosen(flags.only)
    if flags.list:
        print("\n".join(f"{shape.key}/{peer}" for shape in asked for peer in shape.peers))
        return
    if len(CORES) < 2:
        print("there is one core only: load and servers share it, so the rates say little", file=sys.stderr)
    results: Results = {}
    try:
        if flags.section in {"all", "wire"}:
            results = measured(asked, flags)
    except (Unavailable, LoadFailed) as error:
        sys.exit(f"error: {error}")
    whole = not flags.only
    placed = placement.measure(quick=flags.quick) if flags.section in {"all", "placement"} and whole else {}
    piped: dict[str, float] = {}
    if flags.section in {"all", "pipelines"} and whole:
        print("measuring pipelines ...", file=sys.stderr)
        piped = pipelines.measure(flags.runs, flags.seconds, 500 if flags.quick else 10_000)
    stepped: dict[str, float] = {}
    if flags.section in {"all", "sessions"} and whole:
        print("measuring sessions ...", file=sys.stderr)
        stepped = sessions.measure(flags.runs, flags.seconds)
    isolated: dict[str, float] = {}
    if flags.section in {"all", "isolation"} and whole:
        print("measuring isolation ...", file=sys.stderr)
        isolated = isolation.measure(flags.runs, flags.seconds, 50 if flags.quick else 1000)
    far: dict[str, float] = {}
    if flags.section in {"all", "distance"} and whole:
        print("measuring over a distance ...", file=sys.stderr)
        far = distance.measure(flags.runs)
    show(results, placed, piped, stepped, isolated, far, asked, flags)


if __name__ == "__main__":
    main()
