"""Whose the sequences of one copy are, and who gives way to whom where there is not room for all.

A caller is a connection. While places are left it has as many as it wants. When none is, whoever has fewest is next,
and one that has at least two more than that gives up its own: the one idle longest. So a caller with any number of
made-up ids keeps nobody out, and a caller alone is bounded by the copy's `max_live` only.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from mesh.core.sessions.schedule import Sequence, SequenceId

T = TypeVar("T")

MARGIN = 2
"""How many more than another's a caller has before it gives way: with one more, both would take turns losing theirs."""


class Caller(Generic[T]):
    """One connection with sequences on a copy."""

    __slots__ = ("live", "name", "waits")

    def __init__(self, name: str) -> None:
        self.name = name
        self.live: OrderedDict[SequenceId, Sequence[T]] = OrderedDict()
        """The one unused longest first."""
        self.waits: OrderedDict[SequenceId, Sequence[T]] = OrderedDict()
        """Those that wait for a place, in the order they came."""

    def longest_idle(self) -> Sequence[T] | None:
        """Return the live sequence without steps that was used least lately. O(sequences at work)."""
        return next((each for each in self.live.values() if not each.steps), None)

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Caller {self.name!r} live={len(self.live)} waits={len(self.waits)}>"


class Callers(Generic[T]):
    """All of one copy's. Every sequence is in one of its caller's two lists; callers without any are forgotten."""

    def __init__(self) -> None:
        self._all: dict[str, Caller[T]] = {}
        self._waiting: dict[str, Caller[T]] = {}
        """Those with a sequence that waits; whose last got a place last is last."""
        self.waits = 0
        """Sequences that wait for a place."""

    def of(self, name: str) -> Caller[T]:
        """Return the caller of this name; it stays when it gets a sequence."""
        return self._all.get(name) or Caller(name)

    def lives(self, sequence: Sequence[T]) -> None:
        """Take a sequence that has its place. O(1)."""
        caller = self._all.setdefault(sequence.caller.name, sequence.caller)
        caller.live[sequence.id] = sequence

    def waits_for_place(self, sequence: Sequence[T]) -> None:
        """Take a sequence that has none. O(1)."""
        caller = self._all.setdefault(sequence.caller.name, sequence.caller)
        caller.waits[sequence.id] = sequence
        self._waiting.setdefault(caller.name, caller)
        self.waits += 1

    def used(self, sequence: Sequence[T]) -> None:
        """Take a sequence as used now. O(1)."""
        if sequence.live:
            sequence.caller.live.move_to_end(sequence.id)

    def left(self, sequence: Sequence[T]) -> None:
        """Forget a sequence, live or not. O(1)."""
        caller = sequence.caller
        if sequence.live:
            del caller.live[sequence.id]
        else:
            self._no_more(caller, sequence)
        if not caller.live and not caller.waits:
            self._all.pop(caller.name, None)

    def next(self) -> Sequence[T] | None:
        """Take out the sequence that has the next place: the first of whoever has fewest. O(callers that wait)."""
        if not self._waiting:
            return None
        caller = self._fewest()
        found = next(iter(caller.waits.values()))
        self._no_more(caller, found)
        if caller.waits:
            self._waiting[caller.name] = self._waiting.pop(caller.name)
        return found

    def gives_way(self, caller: Caller[T] | None = None) -> Sequence[T] | None:
        """Return the idle sequence that ends for one that waits; None when all that wait have to.

        It is `caller`'s, or of whoever has most. O(callers that wait), and O(callers) without `caller`.
        """
        if not self._waiting:
            return None
        most = caller or max(self._all.values(), key=_places)
        return most.longest_idle() if _places(most) >= _places(self._fewest()) + MARGIN else None

    def leaves_the_queue(self, caller: Caller[T]) -> Sequence[T] | None:
        """Return the sequence whose steps leave a full queue to one of `caller`'s; None when it has to be refused.

        It is the newest of whoever has most that wait. O(callers that wait).
        """
        if not self._waiting:
            return None
        most = max(self._waiting.values(), key=_waits)
        return next(reversed(most.waits.values())) if _waits(most) >= _waits(caller) + MARGIN else None

    def _fewest(self) -> Caller[T]:
        return min(self._waiting.values(), key=_places)

    def _no_more(self, caller: Caller[T], sequence: Sequence[T]) -> None:
        del caller.waits[sequence.id]
        self.waits -= 1
        if not caller.waits:
            del self._waiting[caller.name]

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Callers {len(self._all)} waiting={len(self._waiting)}>"


def _places(caller: Caller[T]) -> int:
    return len(caller.live)


def _waits(caller: Caller[T]) -> int:
    return len(caller.waits)
