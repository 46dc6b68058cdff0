"""One turn of several sequences: run together; where that fails, one by one, so that one fails no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mesh.core.batching import WaitUntil
from mesh.core.errors import MeshError
from mesh.core.sessions import schedule
from mesh.node.item import Item, may_rerun
from mesh.node.runtimes.base import Apart, Steps, Turn

Errors = list[Exception | None]
"""What each turn raised."""


def run_turns(steps: Steps, turns: Sequence[Turn], reruns: bool) -> Errors:
    """Run a turn of each here: together, and where that fails one by one."""
    states = [turn.state for turn in turns]
    return together(steps, turns, reruns) or one_by_one(steps, turns, states)


def together(steps: Steps, turns: Sequence[Turn], reruns: bool) -> Errors:
    """Run a turn of each in one; return nothing when each is to be run alone."""
    try:
        steps.step(turns)
    except Exception as error:  # noqa: BLE001 - what a model raises can be anything
        return [] if len(turns) > 1 and reruns and may_rerun(error) else [error] * len(turns)
    return [None] * len(turns)


def one_by_one(steps: Steps, turns: Sequence[Turn], states: Sequence[Any]) -> Errors:
    """Run the turn of each alone, from the state that it had."""
    found: Errors = []
    for turn, state in zip(turns, states, strict=True):
        turn.state, turn.outputs, turn.done = state, [], False
        found += together(steps, [turn], reruns=False)
    return found


async def in_worker(
    apart: Apart, turns: Sequence[Turn], waited: Callable[[], bool], *, reruns: bool
) -> tuple[Errors, float]:
    """Run a turn of each in another process; return the seconds too. What fails there has changed no state here.

    `waited` tells whether anybody still waits for one of them.
    """
    try:
        return [None] * len(turns), await apart.turns(turns, waited)
    except MeshError as error:
        if len(turns) == 1 or not reruns or not may_rerun(error):
            return [error] * len(turns), 0.0
    found: Errors = []
    run_s = 0.0
    for turn in turns:
        errors, taken_s = await in_worker(apart, [turn], waited, reruns=False)
        found += errors
        run_s += taken_s
    return found, run_s


def turn_of(sequence: schedule.Sequence[Item]) -> Turn:
    """Return the turn that a sequence is at."""
    step = sequence.steps[0]
    item = step.what
    return Turn(item.inputs, item.request, sequence.id, step.start, step.end, sequence.state, done=False)


def refuse(waiting: schedule.Schedule[Item], fail: Callable[[Item], None], now_s: float) -> None:
    """Let every step that waits and may run now hear that none is run; their sequences stay."""
    while not isinstance(found := waiting.next(max_rows=1, delay_s=0.0, now_s=now_s), WaitUntil):
        for each in found:
            item = each.steps[0].what
            waiting.skipped(each, now_s)
            fail(item)
