"""Whether the peer of a connection still answers: when to ask it, and what its silence means. No clock, no I/O.

A process that is stopped, or a network that lets nothing through, closes no connection. So a peer that calls wait for
and that says nothing is asked with a PING, and then

| silence after the PING | then |
|---|---|
| shorter than what its answers took before | it may be busy: nothing |
| longer: `SILENT` | new calls go elsewhere, and those in flight that another can answer |
| `long_s` more: `LONG` | calls that another could have answered, but cannot be moved, end |
| `gone_s` in all: `GONE` | the connection is closed; so it is at `SILENT` when its node left the mesh |

Whatever comes from the peer ends its silence. Time in which this process itself stood still is not counted: a look
counts for `LOOK_S` at most, and between two of them everything that came was read.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

LOOK_S: Final = 0.25
"""Between two looks at a connection that was asked."""
IDLE_LOOK_S: Final = 0.5
"""Between two looks while nothing waits: so much later is noticed that a call waits."""
NEVER_S: Final = 600.0
"""Silence is counted up to here."""


class Silence(IntEnum):
    """How long nothing came that should have."""

    NONE = 0
    SILENT = 1
    LONG = 2
    GONE = 3


@dataclass(frozen=True, slots=True)
class Asking:
    """When a peer is asked, and how patient one is."""

    ask_s: float
    """Silence after which a connection with calls on it is asked."""
    least_s: float
    """Shortest time that an answer is waited for: a peer that is busy, or a machine that is, answers late."""
    most_s: float
    """Longest, however long answers took. What takes longer was no answer but a standstill."""
    long_s: float
    gone_s: float


AMONG_OURSELVES: Final = Asking(ask_s=0.5, least_s=1.0, most_s=1.5, long_s=0.5, gone_s=20.0)
"""Between processes of a mesh, where another copy may answer: a caller waits for 2.75 s at most. An event loop that
stands for a second while a model loads is no reason to run calls elsewhere."""
OF_CALLERS: Final = Asking(ask_s=5.0, least_s=5.0, most_s=5.0, long_s=0.0, gone_s=5.0)
"""Where silence can only end calls: a peer that vanished is noticed after 10 s."""


class Patience:
    """How long an answer of one peer is waited for, from how long its answers took: mean and deviation (RFC 6298).

    `least_s` <= `s` <= `most_s`.
    """

    __slots__ = ("_asking", "_deviation_s", "_mean_s", "s")

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self._mean_s = self._deviation_s = -1.0
        self.s = asking.least_s

    def measured(self, took_s: float) -> None:
        """Take how long an answer took. O(1)."""
        if took_s > self._asking.most_s:
            return
        if self._mean_s < 0:
            self._mean_s, self._deviation_s = took_s, took_s / 2
        else:
            self._deviation_s += (abs(took_s - self._mean_s) - self._deviation_s) / 4
            self._mean_s += (took_s - self._mean_s) / 8
        self.s = min(self._asking.most_s, max(self._asking.least_s, self._mean_s + 4 * self._deviation_s))

    def __repr__(self) -> str:
        """Show it."""
        return f"<Patience s={self.s:.2f} mean_s={self._mean_s:.4f}>"


class Alive:
    """One connection. `look` at it after `next_s`; the peers' `patience` outlives it."""

    __slots__ = ("_asked_s", "_asking", "_counted_s", "_heard_s", "_looked_s", "patience", "silence")

    def __init__(self, asking: Asking, patience: Patience) -> None:
        self._asking = asking
        self.patience = patience
        self._asked_s: float | None = None
        self._looked_s = self._heard_s = 0.0
        self._counted_s = 0.0
        """Silence since it was asked, in looks."""
        self.silence = Silence.NONE

    def look(self, now_s: float, heard_s: float, echoed_s: float, *, waits: bool) -> bool:
        """Look at it; True: send a PING now. `silence` is up to date then. O(1).

        `heard_s` is when anything came last, `echoed_s` when the answer to a PING did; `waits`: whether calls do.
        """
        took_s, self._looked_s = min(LOOK_S, now_s - self._looked_s), now_s
        asked_s = self._asked_s
        if asked_s is not None and echoed_s >= asked_s:
            self.patience.measured(echoed_s - asked_s)
            self._asked_s = asked_s = None
        if heard_s > self._heard_s:
            self._heard_s = heard_s
            self._counted_s = 0.0
        elif asked_s is not None:
            self._counted_s = min(NEVER_S, self._counted_s + took_s)
        self.silence = self._judged()
        if asked_s is None and waits and now_s - heard_s >= self._asking.ask_s:
            self._asked_s = now_s
            self._counted_s = 0.0
            return True
        return False

    def _judged(self) -> Silence:
        silent_s, asking = self._counted_s, self._asking
        if silent_s < self.patience.s:
            return Silence.NONE
        if silent_s >= asking.gone_s:
            return Silence.GONE
        return Silence.SILENT if silent_s < self.patience.s + asking.long_s else Silence.LONG

    def next_s(self, now_s: float, *, waits: bool) -> float:
        """Return in how many seconds to look again."""
        if self._asked_s is not None:
            return LOOK_S
        if not waits:
            return IDLE_LOOK_S
        # A moment later than the silence is long enough: timers are not exact.
        return min(IDLE_LOOK_S, max(LOOK_S / 5, self._heard_s + self._asking.ask_s - now_s + LOOK_S / 25))

    def __repr__(self) -> str:
        """Show what is known."""
        asked = "asked" if self._asked_s is not None else "quiet"
        return f"<Alive {self.silence.name} {asked} silent_s={self._counted_s:.2f} {self.patience!r}>"
