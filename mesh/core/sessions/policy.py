"""When a copy tells the state of a sequence with its answer, so that another copy can go on from there."""

from __future__ import annotations

from mesh.core.types import Sequencing

SMALL_BYTES = 16 * 1024
"""A state up to this size goes with every answer: it costs less than the call that carries it (measured with 4 KB)."""

MOST_MESSAGES = 64
"""Steps after which a larger state is told at the latest: what a survivor then has to run again."""


def is_due(sequence: Sequencing, *, state_bytes: int, messages: int, message_bytes: int) -> bool:
    """Tell whether the state goes with an answer; O(1).

    `messages` are the steps since it was last told, this one included, and `message_bytes` the size of their requests,
    which a router keeps until then. Unless the model says how often: always while the state is small, and else when the
    requests kept are as large as the state, so that neither traffic nor a router's memory more than doubles.
    """
    every, every_bytes = sequence.snapshot_messages, sequence.snapshot_bytes
    if every or every_bytes:
        return (every > 0 and messages >= every) or (every_bytes > 0 and message_bytes >= every_bytes)
    return state_bytes <= SMALL_BYTES or messages >= MOST_MESSAGES or message_bytes >= state_bytes
