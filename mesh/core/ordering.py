"""Answers in the order in which what they answer was begun: one that is ready before its turn waits for those ahead.

(`preserve_ordering` of Triton's dynamic batcher.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
A = TypeVar("A")


class _NotYet:
    """Stands where an answer will be."""


_NOT_YET = _NotYet()


class Ordering(Generic[K, A]):
    """What was begun and is not answered, oldest first. Every answer is given out exactly once."""

    def __init__(self) -> None:
        self._turns: OrderedDict[K, A | _NotYet] = OrderedDict()

    def begin(self, key: K) -> None:
        """Give `key` its turn, behind all that was begun before. O(1)."""
        self._turns[key] = _NOT_YET

    def begin_all(self, keys: Iterable[K]) -> None:
        """Give each its turn. O(keys)."""
        self._turns.update(dict.fromkeys(keys, _NOT_YET))

    def answered(self, key: K, answer: A) -> Iterator[tuple[K, A]]:
        """Take the answer of what was begun; yield those whose turn it is now. O(1) for each that is yielded.

        Each is gone before it is yielded: more may be begun and answered meanwhile.
        """
        self._turns[key] = answer
        while self._turns:
            first = next(iter(self._turns))
            found = self._turns[first]
            if isinstance(found, _NotYet):
                return
            del self._turns[first]
            yield first, found

    @property
    def waits(self) -> bool:
        """Whether anything was begun that is not answered, or whose answer waits."""
        return bool(self._turns)

    def __repr__(self) -> str:
        """Show the count."""
        return f"<Ordering {len(self._turns)}>"
