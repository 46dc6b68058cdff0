"""The real placement code over as many nodes and models as you like, in virtual time, against what else is possible.

``python -m benchmarks.simulate`` runs Zipf demand of 10,000 models over room for 1,000; ``--workload`` takes another
demand, ``--trace FILE`` a file with one model name a line, ``--room`` the models that fit, ``--nodes`` over how many
nodes; ``--lose`` and ``--roll`` take nodes away at half time. Rivals get the same trace and the same room: Belady's
optimum (it knows the future), LRU over all of the room, and LRU on each node behind consistent hashing. ``--json``
prints one line.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.simulation import events, rivals
from benchmarks.simulation.leader import Leader
from benchmarks.simulation.workloads import WORKLOADS, Trace, read
from benchmarks.simulation.world import World, model_of

MODEL_BYTES = 100 * 1024 * 1024
"""Every model's size: what moves is told in bytes."""

TABLE_REQUESTS_PER_S = 100.0


def main() -> int:
    """Run; return the exit code."""
    given = _parser().parse_args()
    if given.trace is not None:
        try:
            with given.trace.open() as lines:
                names, trace = read(lines)
        except (OSError, UnicodeDecodeError) as error:
            print(f"simulate: cannot read {given.trace}: {error}", file=sys.stderr)
            return 2
        if not names:
            print(f"simulate: expected one model name a line in {given.trace}, found none", file=sys.stderr)
            return 2
        found = {"trace": str(given.trace), **measure(names, trace, given)}
        _show(found, given.json)
        return 0
    workloads = list(WORKLOADS) if given.workload == "all" else [given.workload]
    for workload in workloads:
        rng = np.random.default_rng(given.seed)
        trace = WORKLOADS[workload](rng, given.models, given.requests, given.alpha)
        names = [f"model-{number:07}" for number in range(given.models)]
        _show({"workload": workload, **measure(names, trace, given)}, given.json)
    return 0


def measure(names: list[str], trace: Trace, given: argparse.Namespace) -> dict[str, Any]:
    """Return what the mesh and its rivals make of `trace`."""
    nodes = min(given.nodes, given.room)
    rooms = [given.room // nodes + (number < given.room % nodes) for number in range(nodes)]
    world = World([room * MODEL_BYTES for room in rooms])
    models = [model_of(name, MODEL_BYTES) for name in names]
    with_leader = bool(given.lose or given.roll) if given.leader is None else given.leader
    leader = Leader(world, models) if with_leader else None
    if leader is not None:
        world.follow(leader)
    event = events.of(world, leader, lose_percent=given.lose, roll=given.roll)
    step_s, begin_s, half = 1.0 / given.rate, world.now_s, len(trace) // 2
    cold, event_end = bytearray(len(trace)), half
    for index, number in enumerate(trace.tolist()):
        if index >= half and event is not None:
            event_end = index
            event = event if next(event, events.OVER) is not events.OVER else None
        before = world.outcome.hits
        world.ask(models[number], begin_s + index * step_s)
        cold[index] = world.outcome.hits == before
        if not given.json and sys.stderr.isatty() and index % 10_000 == 0:
            print(f"\r{index:,} of {len(trace):,} requests", end="", file=sys.stderr)
    outcome, count = world.outcome, max(1, len(trace))
    lru, optimum = rivals.lru(trace, given.room), rivals.belady(trace, given.room)
    return {
        "requests": len(trace),
        "models": len(names),
        "room": given.room,
        "nodes": nodes,
        "hit_rate": round(outcome.hits / count, 5),
        "lru": round(lru / count, 5),
        "belady": round(optimum / count, 5),
        "hashed_lru": round(rivals.hashed(trace, rooms) / count, 5),
        "of_belady": round(outcome.hits / max(1, optimum), 4),
        "lru_of_belady": round(lru / max(1, optimum), 4),
        "cold_starts": outcome.cold_starts,
        "loads": outcome.loads,
        "refused": outcome.refused,
        "moved_bytes": outcome.moved_bytes,
        "lru_moved_bytes": (len(trace) - lru) * MODEL_BYTES,
        "plan_us": round(median(outcome.plans_us), 1) if outcome.plans_us else 0.0,
        **(_around(cold, half, event_end, step_s) if given.lose or given.roll else {}),
    }


def _around(cold: bytearray, begin: int, end: int, step_s: float) -> dict[str, float]:
    """Return the share of cold requests before what happened, during it and for a minute after, and the way back.

    It is over when ten seconds in a row had hardly more of them than the time before.
    """
    window = max(1, round(10.0 / step_s))

    def share(since: int, until: int) -> float:
        return sum(cold[since:until]) / max(1, until - since)

    usual, at = share(begin // 2, begin), end
    while at + window < len(cold) and share(at, at + window) > 1.1 * usual + 0.005:
        at += max(1, window // 20)
    return {
        "cold_usual": round(usual, 4),
        "cold_event": round(share(begin, max(end, begin + 6 * window)), 4),
        "event_s": round((end - begin) * step_s, 1),
        "recovered_s": round((at - end) * step_s, 1),
    }


def _show(found: dict[str, Any], as_json: bool) -> None:  # noqa: FBT001 - a flag of the command line
    if as_json:
        print(json.dumps(found))
        return
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    what = found.get("workload") or found.get("trace")
    print(f"{what}: {found['requests']:,} requests, {found['models']:,} models, room for {found['room']:,}")
    print(f"  hit rate  {found['hit_rate']:.3f}   of Belady's optimum {found['of_belady']:.3f}")
    print(f"  LRU       {found['lru']:.3f}   of Belady's optimum {found['lru_of_belady']:.3f}")
    print(f"  Belady    {found['belady']:.3f}   LRU behind consistent hashing {found['hashed_lru']:.3f}")
    moved = found["moved_bytes"] / max(1, found["lru_moved_bytes"])
    print(f"  cold starts {found['cold_starts']:,}, refused {found['refused']:,}, moved bytes {moved:.2f} of LRU's")
    if "recovered_s" in found:
        print(
            f"  cold requests: {found['cold_usual']:.1%} before, {found['cold_event']:.1%} while it happened and for a "
            f"minute at least; as before {found['recovered_s']} s after it was over ({found['event_s']} s)"
        )
    print(f"  one plan: {found['plan_us']} µs at the median, over {found['nodes']:,} nodes", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="simulate", description=__doc__)
    parser.add_argument("--workload", choices=[*WORKLOADS, "all"], default="steady", help="who asks for what")
    parser.add_argument("--trace", type=Path, help="a file with one model name a line, one line per request")
    parser.add_argument("--models", type=_count, default=10_000)
    parser.add_argument("--requests", type=_count, default=200_000)
    parser.add_argument("--room", type=_count, default=1_000, help="models that fit, over all nodes")
    parser.add_argument("--nodes", type=_count, default=10)
    parser.add_argument("--alpha", type=float, default=1.0, help="Zipf's exponent")
    parser.add_argument("--rate", type=float, default=TABLE_REQUESTS_PER_S, help="requests per virtual second")
    parser.add_argument("--lose", type=int, default=0, metavar="PERCENT", help="nodes that die at half time")
    parser.add_argument("--roll", action="store_true", help="restart every node, one after another, from half time on")
    parser.add_argument(
        "--leader", action=argparse.BooleanOptionalAction, help="what the leading router does, too; when nodes are lost"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return number


if __name__ == "__main__":
    sys.exit(main())
