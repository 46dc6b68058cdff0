"""How many connections a process may hold, of the files that it may open: the rest is for what it needs itself."""

from __future__ import annotations

from typing import Final

HTTP: Final = 64
"""Connections to the HTTP port that there are at least: scrapers and probes."""
MOST_HTTP: Final = 10_000
"""Connections to the HTTP port at most: browsers and clients with keep-alive."""

MOST_KEPT: Final = 1024
"""Files for a process's own needs where it may open many: connections to 200 nodes, models, workers, the registry."""


def reserve(limit: int) -> int:
    """Return how many of `limit` files no caller gets: a quarter, at most `MOST_KEPT`."""
    return min(MOST_KEPT, limit // 4)


def http_connections(limit: int) -> int:
    """Return how many connections the HTTP port takes: a quarter of what is left, within `HTTP` and `MOST_HTTP`."""
    return min(MOST_HTTP, max(HTTP, (limit - reserve(limit)) // 4))


def connections(limit: int) -> int:
    """Return how many connections the gRPC port takes. At least 1."""
    return max(1, limit - reserve(limit) - http_connections(limit))
