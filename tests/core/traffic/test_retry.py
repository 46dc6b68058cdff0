from __future__ import annotations

import pytest

from mesh.core.errors import RemoteError
from mesh.core.traffic.retry import may_retry

LOST = RemoteError(14, "socket closed", transport_failed=True)
SAID = RemoteError(13, "the model raised")


@pytest.mark.parametrize(
    ("error", "not_run", "in_sequence", "attempt", "again"),
    [
        (LOST, False, False, 1, True),
        (LOST, False, True, 1, False),
        (LOST, False, False, 3, False),
        (SAID, False, False, 1, False),
        (SAID, True, False, 1, True),
        (SAID, True, True, 1, False),
    ],
)
def test_only_safe_calls_are_sent_again(
    error: RemoteError,
    not_run: bool,
    in_sequence: bool,
    attempt: int,
    again: bool,
) -> None:
    assert may_retry(error, not_run=not_run, in_sequence=in_sequence, attempt=attempt, max_attempts=3) is again
