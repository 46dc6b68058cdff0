"""What a load takes: how much more of a device is used after it than before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mesh.core.placement.ledger import MIN_BYTES
from mesh.core.types import Device, ModelVersion
from mesh.node.capacity import Account, used_bytes


class Growth:
    """One load's part of a device's growth, with that of the loads that went on at the same time."""

    def __init__(self, capacity: int, before: int) -> None:
        self._capacity = capacity
        self.before = before
        self.after = before
        self.overlapped = False

    def of_load(self, model: ModelVersion) -> int:
        """Return the bytes that the load of `model` took, as far as can be told.

        Other work may hide a small load: never less than the files themselves, or what a session takes. With another
        load at the same time, what was measured before counts if it is less, and never more than the device has.
        """
        taken = self.after - self.before
        if self.overlapped and model.loaded_bytes:
            taken = min(taken, model.loaded_bytes)
        found = max(taken, model.size_bytes, MIN_BYTES)
        return min(found, self._capacity) if self.overlapped else found

    def __repr__(self) -> str:
        """Show the measurement."""
        return f"<Growth {self.after - self.before} overlapped={self.overlapped}>"


class Growths:
    """Measures loads, and notices which ones overlap. `used` says what is used on a device now."""

    def __init__(self, used: Callable[[Device], int] = used_bytes) -> None:
        self._used = used
        self._now: dict[str, set[Growth]] = {}

    @contextmanager
    def of(self, account: Account) -> Iterator[Growth]:
        """Measure what happens inside."""
        others = self._now.setdefault(account.name, set())
        growth = Growth(account.ledger.capacity, self._used(account.device))
        for each in others:
            each.overlapped = growth.overlapped = True
        others.add(growth)
        try:
            yield growth
        finally:
            others.discard(growth)
            growth.after = self._used(account.device)

    def __repr__(self) -> str:
        """Show how many loads go on."""
        return f"<Growths {sum(map(len, self._now.values()))}>"
