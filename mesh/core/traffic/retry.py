"""Whether a failed call may be sent again, to another copy.

| an attempt ended | it is followed by another |
|---|---|
| certainly before it ran (never sent, refused, not held there) | always, within the attempts |
| with the death of the process that ran it, or may have run it | once, and never when its model is suspect |
| with an answer | never: another copy would answer alike |

A request that a process died of would take the next one with it, so that one bad request could end every node: one
other copy is a fair trade between that and a node that only was switched off. A request of a sequence is left to its
session, as it changed the sequence's state. The count is one count whatever path a call takes: whoever hands it over
hands its `Tries` over too.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from mesh.core.errors import Code, RemoteError
from mesh.core.types import NodeId

MOST_DEATHS: Final = 2
"""Processes that one call may end: the one it was sent to, and one other."""


class Fate(Enum):
    """What became of an attempt that failed."""

    NOT_RUN = "not run"
    """The model certainly never saw it."""
    DIED = "died"
    """It was running, or may have been, when its node or its worker ended."""
    ANSWERED = "answered"
    """Its node answered with an error, or its time was over."""


class Tries:
    """What was tried for one call so far. Steps of a pipeline's request are calls that share its deaths."""

    __slots__ = ("_deaths", "_whole", "failures", "tried")

    def __init__(self, whole: Tries | None = None) -> None:
        """Begin with nothing; `whole` is the request that this call is a step of."""
        self._whole = whole
        self._deaths = 0
        self.failures = 0
        """Attempts that failed and count as attempts."""
        self.tried: list[NodeId] = []
        """Nodes that failed since all that there are were asked."""

    @property
    def deaths(self) -> int:
        """Processes that ended while they ran, or may have run, this request."""
        return self._deaths if self._whole is None else self._whole.deaths

    @deaths.setter
    def deaths(self, count: int) -> None:
        if self._whole is None:
            self._deaths = count
        else:
            self._whole.deaths = count

    def failed(
        self,
        node: NodeId,
        fate: Fate,
        *,
        max_attempts: int,
        in_sequence: bool = False,
        suspect: bool = False,
        free: bool = False,
    ) -> bool:
        """Note an attempt that failed at `node`; tell whether another may follow. `free`: it counts for none. O(1)."""
        self.tried.append(node)
        self.failures += not free
        if fate is Fate.DIED:
            self.deaths += 1
        return may_retry(
            fate,
            in_sequence=in_sequence,
            suspect=suspect,
            failures=self.failures,
            deaths=self.deaths,
            max_attempts=max_attempts,
        )

    def went_on(self) -> None:
        """Hear that what follows begins behind what was answered: it is another piece of work, with its own tries."""
        self.failures = self.deaths = 0

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Tries failures={self.failures} deaths={self.deaths} tried={self.tried}>"


def may_retry(fate: Fate, *, in_sequence: bool, suspect: bool, failures: int, deaths: int, max_attempts: int) -> bool:
    """Tell whether a call is sent again whose latest attempt ended in `fate`, which is in the counts. O(1)."""
    if in_sequence or failures >= max_attempts or fate is Fate.ANSWERED:
        return False
    return fate is Fate.NOT_RUN or (deaths < MOST_DEATHS and not suspect)


def fate_of(error: RemoteError, *, not_run: bool = False, died: bool = False) -> Fate:
    """Return what became of an attempt. `not_run` and `died` are what its node said of it."""
    if not_run or error.unsent:
        return Fate.NOT_RUN
    if died or (error.transport_failed and error.status is not Code.DEADLINE_EXCEEDED):
        return Fate.DIED
    return Fate.ANSWERED
