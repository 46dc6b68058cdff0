"""Soak: every gRPC client library whose toolchain is there, with its defaults, against a router and a node.

Prints what each run took of connections, and the table of docs/protocol.md. `--seconds 60` for a minute a cell.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

from tests.conformance.soak.cells import CELLS, Cell, run
from tests.conformance.soak.programs import PROGRAMS, CannotBuild, Program
from tests.conformance.soak.servers import Servers, serving
from tests.conformance.soak.table import HEADER, TOTALS_HEADER, Run, line, totals

TARGETS = ("router", "node")


def options() -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a run (default 10)")
    parser.add_argument("--only", default="", metavar="PATTERN", help='expression found in "client/target/cell"')
    parser.add_argument("--build", action="store_true", help="build the programs and end")
    return parser.parse_args()


def built() -> dict[str, list[str]]:
    """Build what can be built; return the commands by name."""
    commands = {}
    for program in PROGRAMS:
        if missing := program.missing():
            print(f"{program.name} is left out: {missing} is missing", file=sys.stderr)
            continue
        print(f"building {program.name} ...", file=sys.stderr)
        commands[program.name] = program.build()
    return commands


def chosen(pattern: str, program: Program, target: str) -> list[Cell]:
    """Return the cells that `pattern` finds."""
    return [cell for cell in CELLS if re.search(pattern, f"{program.name}/{target}/{cell.name}")]


def measure(flags: argparse.Namespace, commands: dict[str, list[str]], servers: Servers) -> bool:
    """Run all, print a line for each and what was wrong, then the totals; False where something was."""
    runs: list[Run] = []
    print(HEADER)
    for program in PROGRAMS:
        if program.name not in commands:
            continue
        for target in TARGETS:
            for cell in chosen(flags.only, program, target):
                found = run(commands[program.name], cell, servers, target, flags.seconds)
                runs.append(Run(program.name, target, cell, found))
                print(line(runs[-1]), flush=True)
                for fault in found.faults():
                    print(f"WRONG {program.name}, {target}, {cell.name}: {fault}", file=sys.stderr, flush=True)
    print("\n".join(["", TOTALS_HEADER, *totals(runs)]))
    return not any(each.outcome.faults() for each in runs)


def main() -> None:
    """Run what the flags ask for."""
    flags = options()
    try:
        commands = built()
    except CannotBuild as error:
        sys.exit(f"error: {error}")
    if flags.build:
        return
    with tempfile.TemporaryDirectory(prefix="mesh-soak-") as scratch, serving(Path(scratch)) as servers:
        well = measure(flags, commands, servers)
    if not well:
        sys.exit(1)


if __name__ == "__main__":
    main()
