"""Soak: every gRPC client library whose toolchain is there, with its defaults, against a router and a node.

Prints a table of what each did to its connection: the one of docs/protocol.md. `--seconds 60` for a minute a cell.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

from tests.conformance.soak.cells import CELLS, Cell, Outcome, run
from tests.conformance.soak.programs import PROGRAMS, CannotBuild, Program
from tests.conformance.soak.servers import Servers, serving

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
    """Run all, print a row for each and what was wrong; False where something was."""
    well = True
    print("| client | to | calls | answered | given up | connections | GOAWAYs | failed |")
    print("|---|---|---|---|---|---|---|---|")
    for program in PROGRAMS:
        if program.name not in commands:
            continue
        for target in TARGETS:
            for cell in chosen(flags.only, program, target):
                found = run(commands[program.name], cell, servers, target, flags.seconds)
                print(row(program, target, cell, found), flush=True)
                for fault in found.faults():
                    well = False
                    print(f"WRONG {program.name}, {target}, {cell.name}: {fault}", file=sys.stderr, flush=True)
    return well


def row(program: Program, target: str, cell: Cell, found: Outcome) -> str:
    """Return a line of the table."""
    goaways = ", ".join(f"{count} {code}" for code, count in found.goaways.items()) or "0"
    shown = (program.name, target, cell.name, found.calls, found.given_up, found.connections, goaways, found.failures)
    return f"| {' | '.join(map(str, shown))} |"


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
