"""Answers in the order of what was begun, whatever the order in which they are ready."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.core.ordering import Ordering


@given(st.permutations(range(8)))
def test_all_are_given_out_in_order(order: list[int]) -> None:
    ordering: Ordering[int, str] = Ordering()
    for key in range(8):
        ordering.begin(key)
    given_out: list[tuple[int, str]] = []
    for at, key in enumerate(order):
        given_out += ordering.answered(key, f"of {key}")
        # As many as there are without a gap from the first on.
        ready = set(order[: at + 1])
        assert len(given_out) == next(n for n in range(9) if n not in ready)
    assert given_out == [(key, f"of {key}") for key in range(8)]
    assert not ordering.waits


class Begun(RuleBasedStateMachine):
    """Things that are begun and answered in any order, some while others are given out."""

    def __init__(self) -> None:
        super().__init__()
        self.ordering: Ordering[int, int] = Ordering()
        self.begun = 0
        self.open: list[int] = []
        self.out: list[int] = []

    @rule()
    def begin(self) -> None:
        self.ordering.begin(self.begun)
        self.open.append(self.begun)
        self.begun += 1

    @precondition(lambda self: self.open)
    @rule(data=st.data(), again=st.booleans())
    def answer(self, data: st.DataObject, again: bool) -> None:
        key = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        for found, answer in self.ordering.answered(key, -key):
            assert answer == -found
            self.out.append(found)
            if again:
                again = False
                self.begin()
                last = self.open.pop()
                self.out += [each for each, _ in self.ordering.answered(last, -last)]

    @invariant()
    def nothing_is_held_that_is_first(self) -> None:
        first = min(self.open, default=self.begun)
        assert self.out == list(range(first))
        assert self.ordering.waits == (len(self.out) < self.begun)


TestBegun = Begun.TestCase
