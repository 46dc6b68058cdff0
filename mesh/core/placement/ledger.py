"""Bytes of one device: what copies hold, what loads have reserved, what is left.

Invariants: 0 <= held, 0 <= reserved, and held + reserved <= capacity after every successful `reserve`. A measurement
may push `held` above capacity (a copy turned out larger than predicted): then `free` is 0 and nothing more fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mesh.core.types import ModelVersion
from mesh.core.view import VersionKey

MIN_BYTES = 1024 * 1024
"""Predicted at least: a session of the smallest ONNX model takes about this much beside its file."""

LOADED_FACTOR = 2
"""Predicted bytes in memory per byte of file: weights plus workspace, before anything was measured."""


ENOUGH_LOADED = 5
"""Versions of a runtime that must have been loaded before their factor counts."""

CAUTIOUS = 0.75
"""Share of a runtime's versions that its factor is enough for."""

_NONE: Mapping[str, float] = {}


def predicted_bytes(model: ModelVersion, factors: Mapping[str, float] = _NONE) -> int:
    """Return what a copy is expected to take in memory: what one took before, or a multiple of its files.

    `factors` are `learned_factors`; a runtime that is not among them has `LOADED_FACTOR`.
    """
    if model.loaded_bytes:
        return max(MIN_BYTES, model.loaded_bytes)
    return max(MIN_BYTES, int(model.size_bytes * factors.get(model.runtime, LOADED_FACTOR)))


def learned_factors(models: Iterable[ModelVersion]) -> dict[str, float]:
    """Return, by runtime, how many bytes in memory a byte of files became in those of `models` that were loaded.

    Models smaller than `MIN_BYTES` say nothing: what they take is the session. O(models log models).
    """
    found: dict[str, list[float]] = {}
    for model in models:
        if model.loaded_bytes and model.size_bytes >= MIN_BYTES:
            found.setdefault(model.runtime, []).append(model.loaded_bytes / model.size_bytes)
    return {
        runtime: round(sorted(ratios)[int(CAUTIOUS * (len(ratios) - 1))], 2)
        for runtime, ratios in sorted(found.items())
        if len(ratios) >= ENOUGH_LOADED
    }


class Ledger:
    """The account of one device of `capacity` bytes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._held: dict[VersionKey, int] = {}
        self._reserved: dict[VersionKey, int] = {}
        self.held = 0
        """Bytes of loaded copies: the sum of `_held`, kept, as there may be thousands."""
        self.reserved = 0
        """Bytes promised to loads that go on: the sum of `_reserved`."""

    def bytes_of(self, key: VersionKey) -> int:
        """Return what a copy holds; 0 when it holds nothing."""
        return self._held.get(key, 0)

    @property
    def free(self) -> int:
        """Bytes that a new load may reserve. Never negative."""
        return max(0, self.capacity - self.held - self.reserved)

    def reserve(self, key: VersionKey, size: int) -> bool:
        """Set `size` bytes aside for a load of `key`; False, and nothing changed, when they are not free."""
        if key in self._reserved or size > self.free:
            return False
        self._reserved[key] = size
        self.reserved += size
        return True

    def commit(self, key: VersionKey, measured: int) -> None:
        """Turn the reservation of `key` into `measured` held bytes; a copy it replaces is gone from the account."""
        self.cancel(key)
        self.held += measured - self._held.get(key, 0)
        self._held[key] = measured

    def cancel(self, key: VersionKey) -> None:
        """Give the reservation of a failed load back."""
        self.reserved -= self._reserved.pop(key)

    def resize(self, key: VersionKey, measured: int) -> None:
        """Say what a held copy takes now; it may be more than there is (`over`)."""
        if key in self._held:
            self.held += measured - self._held[key]
            self._held[key] = measured

    @property
    def over(self) -> int:
        """Bytes that copies hold, or loads were promised, beyond the capacity. Never negative."""
        return max(0, self.held + self.reserved - self.capacity)

    def release(self, key: VersionKey) -> None:
        """Take a closed copy out of the account."""
        self.held -= self._held.pop(key, 0)

    def __repr__(self) -> str:
        """Show the sums."""
        return f"<Ledger held={self.held} reserved={self.reserved} free={self.free} of {self.capacity}>"
