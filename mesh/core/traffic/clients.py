"""The connections of a process's clients: how many there are, how many came, and why the process ended some."""

from __future__ import annotations

from collections import Counter


class Clients:
    """The counts of one process. O(1) each, and only where a connection begins or ends."""

    __slots__ = ("ended", "open", "opened")

    def __init__(self) -> None:
        self.open = 0
        self.opened = 0
        """How many there were so far."""
        self.ended: Counter[str] = Counter()
        """By the code of the GOAWAY, those that were asked to go or cut off, and are gone."""

    def came(self) -> None:
        """Count a new one."""
        self.open += 1
        self.opened += 1

    def went(self, goaway: str) -> None:
        """Count its end, by the code of the GOAWAY that it was sent; empty where the client left by itself."""
        self.open -= 1
        if goaway:
            self.ended[goaway] += 1

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Clients open={self.open} opened={self.opened} ended={dict(self.ended)}>"
