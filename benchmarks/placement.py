"""The placement's figures in one run: the simulator against its rivals, a registry full of models, a real mesh."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
"""Title, header, rows."""

SHIFTS: Final = ("steady", "gone", "diurnal", "flash")


@dataclass(frozen=True, slots=True)
class Section:
    """One benchmark of its own process, and the words it gets."""

    name: str
    module: str
    words: tuple[str, ...]
    quick: tuple[str, ...]
    """Words that make it short: to see that it works."""


SECTIONS: Final = (
    *(
        Section(
            shift,
            "benchmarks.simulate",
            ("--workload", shift),
            ("--models", "500", "--room", "50", "--requests", "5000"),
        )
        for shift in SHIFTS
    ),
    Section(
        "lose",
        "benchmarks.simulate",
        ("--lose", "10", "--nodes", "100", "--requests", "50000"),
        ("--models", "500", "--room", "50", "--nodes", "10", "--requests", "5000"),
    ),
    Section("scale", "benchmarks.scale", (), ("--models", "3000", "--copies", "500", "--plan-nodes", "50")),
    Section("real", "benchmarks.thousands", (), ("--models", "100", "--room", "40", "--seconds", "5")),
    Section("kill", "benchmarks.thousands", ("--kill", "--seconds", "60"), ("--models", "100", "--seconds", "6")),
)


def measure(*, quick: bool) -> dict[str, dict[str, Any]]:
    """Run every section, one after another; one that cannot run is left out, and why is told."""
    found = {}
    for section in SECTIONS:
        print(f"measuring placement: {section.name} ...", file=sys.stderr)
        words = (*section.words, *(section.quick if quick else ()), "--json")
        done = subprocess.run(
            [sys.executable, "-m", section.module, *words], stdout=subprocess.PIPE, text=True, check=False
        )
        line = done.stdout.strip()
        if line:
            found[section.name] = json.loads(line)
        else:
            print(f"{section.name} is left out: it ended with {done.returncode}", file=sys.stderr)
    return found


def tables(found: dict[str, dict[str, Any]]) -> Iterator[Table]:
    """Yield what was found as tables, then the goals."""
    shifts = [(name, found[name]) for name in SHIFTS if name in found]
    if shifts:
        header = (
            "demand",
            "mesh",
            "LRU",
            "Belady",
            "mesh of Belady",
            "LRU of Belady",
            "moved bytes of LRU's",
            "plan µs",
        )
        yield "Placement, simulated hit rates", header, [(name, *_shift(each)) for name, each in shifts]
    made = [row for name, what, key, target in _GOALS if name in found for row in _goal(found[name], what, key, target)]
    if made:
        yield "Placement, goals", ("what", "measured", "target", "verdict"), made


def _shift(found: dict[str, Any]) -> tuple[str, ...]:
    rates = tuple(f"{found[name]:.3f}" for name in ("hit_rate", "lru", "belady", "of_belady", "lru_of_belady"))
    return (*rates, f"{found['moved_bytes'] / max(1, found['lru_moved_bytes']):.2f}", f"{found['plan_us']}")


_GOALS: Final = (
    ("steady", "hit rate, of Belady's optimum", "of_belady", (">=", 0.90)),
    ("lose", "10% of 100 nodes lost: seconds until hits are as before", "recovered_s", None),
    ("scale", "router starts over a full registry, s", "start_s", ("<=", 10.0)),
    ("scale", "router's memory, MB", "router_mb", ("<=", 400.0)),
    ("scale", "CPU of one change of a copy, µs", "change_us", None),
    ("scale", "plan for a cold request, µs", "plan_us", ("<=", 1000.0)),
    ("scale", "pass over everything, s", "rebalance_s", ("<=", 2.0)),
    ("real", "real mesh: failed calls", "errors", ("<=", 0.0)),
    ("real", "real mesh: hit rate", "hit_rate", None),
    ("real", "real mesh: cold start p50, ms", "cold_p50_ms", ("<=", 100.0)),
    ("real", "real mesh: cold start p99, ms", "cold_p99_ms", None),
    ("kill", "a node killed: failed calls", "errors", ("<=", 0.0)),
    ("kill", "a node killed: seconds until hits are as before", "recovered_s", None),
)


def _goal(found: dict[str, Any], what: str, key: str, target: tuple[str, float] | None) -> Iterator[tuple[str, ...]]:
    if key not in found:
        return
    value = float(found[key])
    if target is None:
        yield what, f"{found[key]}", "-", "-"
        return
    sign, bound = target
    met = value >= bound if sign == ">=" else value <= bound
    yield what, f"{found[key]}", f"{sign} {bound:g}", "met" if met else "MISSED"
