from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.core.errors import Code
from mesh.core.traffic.held import CallerBytes, HeldBytes, TooMuchHeld

LIMIT = 1000
SIZES = st.integers(0, LIMIT)


class Holding(RuleBasedStateMachine):
    """Connections that come, take, hold what cannot be refused, give back and go."""

    def __init__(self) -> None:
        super().__init__()
        self.all = HeldBytes(LIMIT)
        self.callers: list[CallerBytes] = []
        self.refused = 0

    @rule()
    def connect(self) -> None:
        self.callers.append(self.all.caller())

    @precondition(lambda self: self.callers)
    @rule(data=st.data(), size=SIZES)
    def take(self, data: Any, size: int) -> None:
        caller, before = data.draw(st.sampled_from(self.callers)), self.all.held
        try:
            caller.take(size)
        except TooMuchHeld:
            self.refused += 1
            assert self.all.held == before
            assert caller.held + size > LIMIT - before - size
        else:
            assert self.all.held == before + size
            assert self.all.held <= LIMIT
            assert caller.held <= LIMIT - self.all.held

    @precondition(lambda self: self.callers)
    @rule(data=st.data(), size=SIZES)
    def must_hold(self, data: Any, size: int) -> None:
        data.draw(st.sampled_from(self.callers)).add(size)

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def give_back(self, data: Any) -> None:
        caller = data.draw(st.sampled_from(self.callers))
        caller.add(-data.draw(st.integers(0, caller.held)))

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def go(self, data: Any) -> None:
        caller = data.draw(st.sampled_from(self.callers))
        caller.close()
        caller.add(17)
        self.callers.remove(caller)

    @invariant()
    def what_is_held_is_the_sum(self) -> None:
        assert self.all.held == sum(caller.held for caller in self.callers)
        assert self.all.refused == self.refused

    @invariant()
    def whoever_takes_all_leaves_half_of_the_rest_to_a_newcomer(self) -> None:
        free = LIMIT - self.all.held
        newcomer = self.all.caller()
        if free >= 0:
            newcomer.take(free // 2)
            newcomer.close()


test_holding = Holding.TestCase


def test_a_connection_alone_gets_half_and_a_second_one_still_gets_some() -> None:
    held = HeldBytes(LIMIT)
    greedy, other = held.caller(), held.caller()
    taken = fill(greedy.take)
    assert taken == LIMIT // 2
    assert not greedy.is_full
    assert fill(other.take) == LIMIT // 4
    other.add(-200)
    greedy.add(200)
    assert greedy.is_full
    assert not other.is_full


def fill(take: Callable[[int], None]) -> int:
    taken = 0
    while True:
        try:
            take(10)
        except TooMuchHeld:
            return taken
        taken += 10


def test_a_refusal_says_what_is_held_and_when_to_call_again() -> None:
    held = HeldBytes(LIMIT)
    caller = held.caller()
    caller.take(300)
    with pytest.raises(
        TooMuchHeld, match=r"holds 300 bytes .* 300 of them for this connection, and takes no 400"
    ) as caught:
        caller.take(400)
    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "HELD_BYTES")
    assert caught.value.retry_after_s == 1.0
    assert caught.value.facts == {"held": "300", "limit": "1000", "connection": "300"}
