from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.core.files import HTTP, MOST_HTTP, MOST_KEPT, connections, http_connections, reserve


@given(st.integers(1, 1 << 20))
def test_callers_never_get_what_a_process_needs_itself(limit: int) -> None:
    taken = connections(limit)
    assert taken >= 1
    assert 0 <= reserve(limit) <= MOST_KEPT
    assert HTTP <= http_connections(limit) <= MOST_HTTP
    if limit > 2 * HTTP:
        assert taken + http_connections(limit) + reserve(limit) == limit
        assert taken >= http_connections(limit) or http_connections(limit) == HTTP
        assert reserve(limit) >= min(MOST_KEPT, limit // 5)
