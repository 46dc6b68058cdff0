"""Whether a failed call may be sent again, to another copy.

A request that certainly did not run may always be. One that may have run is repeated only if it is safe: a plain
inference is (it has no effect but its answer), a request of a sequence is not (it changed the sequence's state).
"""

from __future__ import annotations

from mesh.core.errors import Code, RemoteError


def may_retry(error: RemoteError, *, not_run: bool, in_sequence: bool, attempt: int, max_attempts: int) -> bool:
    """Tell whether attempt number `attempt` (from 1), which ended in `error`, is followed by another. O(1)."""
    if attempt >= max_attempts:
        return False
    if not_run or error.unsent:
        return not in_sequence
    return error.transport_failed and not in_sequence and error.status is not Code.DEADLINE_EXCEEDED
