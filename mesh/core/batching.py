"""Which waiting requests run together, and when: the policy of the batcher, without its queue's waiting.

Requests run in the order they came. Those at the front that fit together (same `kind`: equal types and shapes but for
the batch axis) form a batch of at most `max_rows`. A batch that is full, or full enough, runs at once; one that is not
runs when its oldest request has waited `delay_s`. (Triton's dynamic batcher without preferred sizes.)
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Waiting(NamedTuple):
    """A request in the queue. 1 <= rows."""

    rows: int
    kind: Hashable
    enqueued_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """Run the first `count` requests together. 1 <= count."""

    count: int


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Look again at `at_s`, or when something changes; None: only when something changes."""

    at_s: float | None


def enough_rows(max_rows: int, utilization: float) -> int:
    """Return the fewest rows, at least one, that are this share of `max_rows`; all of them for 0, which says nothing.

    (`minimum_slot_utilization` of Triton's sequence batcher. 0 <= utilization <= 1.)
    """
    if not utilization:
        return max_rows
    return next((rows for rows in range(1, max_rows) if rows / max_rows >= utilization), max_rows)


def next_batch(
    queue: Sequence[Waiting], *, max_rows: int, delay_s: float, now_s: float, enough: int | None = None
) -> Run | WaitUntil:
    """Return what to do with `queue`, oldest first. O(batch).

    `enough` rows need not wait for more, 1 <= enough <= max_rows; None: `max_rows`.
    """
    if not queue:
        return WaitUntil(None)
    count, rows = 1, queue[0].rows
    for each in queue[1:]:
        if each.kind != queue[0].kind or rows + each.rows > max_rows:
            return Run(count)
        count, rows = count + 1, rows + each.rows
    due_s = queue[0].enqueued_s + delay_s
    return Run(count) if rows >= (enough or max_rows) or now_s >= due_s else WaitUntil(due_s)
