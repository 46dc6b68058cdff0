"""What the soak found, as Markdown: a line for each run, and at the end one for each client and server."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from tests.conformance.soak.cells import Cell, Outcome

HEADER: Final = (
    "| client | to | calls | answered | given up | connections | GOAWAYs | failed |\n|---|---|---|---|---|---|---|---|"
)
TOTALS_HEADER: Final = (
    "| client | to | runs | answered | given up | connections | GOAWAYs | failed | restart: connections | failed |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True, slots=True)
class Run:
    """One run, and what came of it."""

    client: str
    target: str
    cell: Cell
    outcome: Outcome


def _goaways(found: dict[str, int]) -> str:
    return ", ".join(f"{count} {code}" for code, count in found.items()) or "0"


def line(run: Run) -> str:
    """Return the line of a run."""
    found = run.outcome
    counts = (f"{found.calls:,}", f"{found.given_up:,}", found.connections, _goaways(found.goaways), found.failures)
    return f"| {' | '.join(map(str, (run.client, run.target, run.cell.name, *counts)))} |"


def totals(runs: list[Run]) -> list[str]:
    """Return a line for each client and server: all runs together, but for those with a restart."""
    lines = []
    for client, target in dict.fromkeys((run.client, run.target) for run in runs):
        these = [run for run in runs if (run.client, run.target) == (client, target)]
        steady = [run.outcome for run in these if not run.cell.restarts]
        restarts = [run.outcome for run in these if run.cell.restarts]
        goaways: Counter[str] = Counter()
        for found in steady:
            goaways.update(found.goaways)
        shown = (
            client,
            target,
            len(steady),
            f"{sum(found.calls for found in steady):,}",
            f"{sum(found.given_up for found in steady):,}",
            sum(found.connections for found in steady),
            _goaways(goaways),
            sum(found.failures for found in steady),
            sum(found.connections for found in restarts),
            sum(found.failures for found in restarts),
        )
        lines.append(f"| {' | '.join(map(str, shown))} |")
    return lines
