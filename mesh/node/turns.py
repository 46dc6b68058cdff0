"""One turn of several sequences: run together; where that fails, one by one, so that one fails no other."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.core.errors import MeshError, WorkerDied
from mesh.node.runtimes.base import Apart, Steps, Turn

Errors = list[Exception | None]
"""What each turn raised."""


def together(steps: Steps, turns: Sequence[Turn]) -> Errors:
    """Run a turn of each here."""
    states = [turn.state for turn in turns]
    try:
        steps.step(turns)
    except Exception as error:  # noqa: BLE001 - what a model raises can be anything
        if len(turns) == 1:
            return [error]
    else:
        return [None] * len(turns)
    found: Errors = []
    for turn, state in zip(turns, states, strict=True):
        turn.state, turn.outputs, turn.done = state, [], False
        try:
            steps.step([turn])
            found.append(None)
        except Exception as error:  # noqa: BLE001 - what a model raises can be anything
            found.append(error)
    return found


async def in_worker(apart: Apart, turns: Sequence[Turn]) -> tuple[Errors, float]:
    """Run a turn of each in another process; return the seconds too. What fails there has changed no state here."""
    try:
        return [None] * len(turns), await apart.turns(turns)
    except WorkerDied as error:
        # Another one is not given one after the other of them to end of.
        return [error] * len(turns), 0.0
    except MeshError as error:
        if len(turns) == 1:
            return [error], 0.0
    found: Errors = []
    run_s = 0.0
    for turn in turns:
        try:
            run_s += await apart.turns([turn])
            found.append(None)
        except MeshError as error:
            found.append(error)
    return found, run_s
