"""The embedded registry's leases: who lives how long, and which keys go with whom. No I/O; the time is given.

Owns ids, times to live and the keys attached. Deleting the keys of a lease that ended is `embedded_txn`'s affair.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from mesh.core.errors import Code
from mesh.registry.embedded_state import EtcdError

MIN_TTL_S: Final = 2
"""etcd raises shorter leases to one and a half election timeouts, rounded up: 2 s with its defaults."""
MAX_TTL_S: Final = 9_000_000_000
"""etcd's own bound."""


@dataclass(slots=True)
class Lease:
    """A promise to renew within `ttl_s` seconds; `keys` go when it is broken."""

    id: int
    ttl_s: int
    expires_s: float
    keys: set[bytes] = field(default_factory=set)


class Leases:
    """All leases by id. A key is attached to one lease at most."""

    def __init__(self) -> None:
        self._leases: dict[int, Lease] = {}
        self._of_key: dict[bytes, int] = {}

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Leases {len(self._leases)} keys={len(self._of_key)}>"

    def __contains__(self, lease: int) -> bool:
        """Tell whether a lease is alive."""
        return lease in self._leases

    def grant(self, lease: int, ttl_s: int, now_s: float) -> Lease:
        """Begin lease `lease`, not 0. Raises `EtcdError` when it exists or lives too long."""
        if ttl_s > MAX_TTL_S:
            raise EtcdError(Code.OUT_OF_RANGE, "etcdserver: too large lease TTL")
        if lease in self._leases:
            raise EtcdError(Code.FAILED_PRECONDITION, "etcdserver: lease already exists")
        ttl_s = max(ttl_s, MIN_TTL_S)
        self._leases[lease] = granted = Lease(lease, ttl_s, now_s + ttl_s)
        return granted

    def get(self, lease: int) -> Lease | None:
        """Return a lease that is alive."""
        return self._leases.get(lease)

    def renew(self, lease: int, now_s: float) -> int:
        """Let a lease live its whole time again; return that time in seconds, 0 for a lease that is gone."""
        found = self._leases.get(lease)
        if found is None:
            return 0
        found.expires_s = now_s + found.ttl_s
        return found.ttl_s

    def check(self, lease: int) -> None:
        """Raise `EtcdError` for a lease that is not alive; 0 is no lease."""
        if lease and lease not in self._leases:
            raise EtcdError(Code.NOT_FOUND, "etcdserver: requested lease not found")

    def attach(self, key: bytes, lease: int) -> None:
        """Let `key` go with `lease` and no other; 0 detaches it."""
        before = self._of_key.pop(key, 0)
        if before in self._leases:
            self._leases[before].keys.discard(key)
        if lease:
            self._leases[lease].keys.add(key)
            self._of_key[key] = lease

    def end(self, lease: int) -> list[bytes]:
        """End a lease and return its keys in order. Raises `EtcdError` when it is not alive."""
        found = self._leases.pop(lease, None)
        if found is None:
            raise EtcdError(Code.NOT_FOUND, "etcdserver: requested lease not found")
        for key in found.keys:
            del self._of_key[key]
        return sorted(found.keys)

    def expired(self, now_s: float) -> list[int]:
        """Return the leases that nobody renewed in time. O(leases)."""
        return [each.id for each in self._leases.values() if each.expires_s <= now_s]

    def next_expiry_s(self) -> float | None:
        """Return when the next lease expires; None without leases. O(leases)."""
        return min((each.expires_s for each in self._leases.values()), default=None)

    def ids(self) -> list[int]:
        """Return the ids of all leases, the one that expires first first."""
        return [each.id for each in sorted(self._leases.values(), key=lambda each: each.expires_s)]
