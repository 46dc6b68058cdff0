"""The bytes that callers make one process hold: arriving, waiting, inflated, kept for another attempt, unread.

One account per process, with a part for each connection. A connection may hold as much as would still be free beside
it (a dynamic threshold, as switches give their queues): alone half of all, and less the more others hold.
"""

from __future__ import annotations

from typing import Final

from mesh.core.errors import Code, MeshError

COUNTED: Final = 64 * 1024
"""Bytes of a message from which on it is counted: thousands of smaller ones are bounded by windows and queues."""

RETRY_S: Final = 1.0
"""When a caller may try again: what fills an account is mostly gone within a second."""


class TooMuchHeld(MeshError):
    """This process holds as much for its callers as it may."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "HELD_BYTES"


class HeldBytes:
    """The account of one process. `held` is the sum of its callers'. O(1) each."""

    __slots__ = ("held", "limit", "refused")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.refused = 0
        """How often something was not taken."""

    def caller(self) -> CallerBytes:
        """Return the part of one more connection."""
        return CallerBytes(self)

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<HeldBytes {self.held} of {self.limit} refused={self.refused}>"


class CallerBytes:
    """What one connection makes the process hold. 0 <= held."""

    __slots__ = ("_closed", "_of", "held")

    def __init__(self, of: HeldBytes) -> None:
        self._of = of
        self._closed = False
        self.held = 0

    def take(self, size: int) -> None:
        """Count `size` more bytes. Raises `TooMuchHeld`, and counts nothing, when that is more than its part."""
        of = self._of
        if self.held + size > of.limit - of.held - size:
            raise self.refusal(size)
        self.add(size)

    def refusal(self, size: int) -> TooMuchHeld:
        """Return, and count, what a caller is told for whom `size` bytes more are too many."""
        of = self._of
        of.refused += 1
        return TooMuchHeld(
            f"this process holds {of.held} bytes of requests and answers, {self.held} of them for this connection, and "
            f"takes no {size} more for it; call again later, or read the answers that wait",
            retry_after_s=RETRY_S,
            facts={"held": str(of.held), "limit": str(of.limit), "connection": str(self.held)},
        )

    def add(self, size: int) -> None:
        """Count what cannot be refused: an answer that is there; or, below 0, what is gone."""
        if not self._closed:
            self.held += size
            self._of.held += size

    @property
    def is_full(self) -> bool:
        """Whether this connection holds its part, so that nothing new should be begun for it."""
        return self.held > self._of.limit - self._of.held

    def close(self) -> None:
        """Count nothing for it any more: the connection is gone."""
        self.add(-self.held)
        self._closed = True

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<CallerBytes {self.held} of {self._of!r}>"


UNLIMITED: Final = 1 << 62
