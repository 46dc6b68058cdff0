from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.core.files import HTTP, MOST_KEPT, connections, reserve


@given(st.integers(1, 1 << 20))
def test_callers_never_get_what_a_process_needs_itself(limit: int) -> None:
    taken = connections(limit)
    assert taken >= 1
    assert 0 <= reserve(limit) <= MOST_KEPT
    if limit > 2 * HTTP:
        assert taken + HTTP + reserve(limit) == limit
        assert reserve(limit) >= min(MOST_KEPT, limit // 5)
