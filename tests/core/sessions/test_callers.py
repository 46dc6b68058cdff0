"""The sequences of several callers on one copy, in any order of events: nobody is kept out, nothing is lost."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.core.batching import Waiting, WaitUntil
from mesh.core.errors import Overloaded, UnknownSequence
from mesh.core.sessions.schedule import Schedule, Sequence, Step

MAX_LIVE, MAX_WAITING, IDLE_S = 4, 8, 10.0
ANYBODY = st.sampled_from(["a", "b", "c"])


class Copy(RuleBasedStateMachine):
    """A schedule, what it runs, and the steps that it owes an end."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self.schedule: Schedule[int] = Schedule(
            "m", max_live=MAX_LIVE, max_waiting=MAX_WAITING, idle_s=IDLE_S, on_line=self.look
        )
        self.now_s = 0.0
        self.count = 0
        self.owed: dict[int, tuple[Sequence[int], Step[int]]] = {}
        self.running: list[Sequence[int]] = []

    def look(self) -> None:
        self.looks += 1

    @rule(id_=st.integers(1, 12), caller=ANYBODY, start=st.booleans(), end=st.booleans())
    def step(self, id_: int, caller: str, start: bool, end: bool) -> None:
        self.count += 1
        step = Step(self.count, Waiting(1, None, self.now_s), start, end)
        try:
            self.owed[self.count] = self.schedule.arrive(id_, step, self.now_s, caller), step
        except UnknownSequence:
            assert not start
        except Overloaded:
            assert self.schedule.waiting == MAX_WAITING
        for each in self.schedule.displaced:
            del self.owed[each.what]
        self.schedule.displaced = []

    @rule(rows=st.integers(1, 4))
    def next(self, rows: int) -> None:
        found = self.schedule.next(max_rows=rows, delay_s=0.0, now_s=self.now_s)
        if not isinstance(found, WaitUntil):
            self.running += found

    @precondition(lambda self: self.running)
    @rule(failed=st.booleans(), data=st.data())
    def ran(self, failed: bool, data: st.DataObject) -> None:
        sequence = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        del self.owed[sequence.steps[0].what]
        self.schedule.ended(sequence, self.now_s, failed=failed)

    @precondition(lambda self: self.owed)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.owed)))
        if self.schedule.withdraw(*self.owed[number], self.now_s):
            del self.owed[number]

    @precondition(lambda self: self.owed)
    @rule(data=st.data())
    def waited_too_long(self, data: st.DataObject) -> None:
        sequence, _ = self.owed[data.draw(st.sampled_from(sorted(self.owed)))]
        for each in self.schedule.waited_too_long(sequence, self.now_s):
            del self.owed[each.what]

    @rule(more_s=st.sampled_from([0.5, 4.0, IDLE_S + 1]))
    def later(self, more_s: float) -> None:
        self.now_s += more_s
        self.schedule.expire(self.now_s)

    @invariant()
    def every_sequence_is_in_one_list_of_its_caller(self) -> None:
        callers = self.schedule._callers
        live = [each for caller in callers._all.values() for each in caller.live.values()]
        waits = [each for caller in callers._all.values() for each in caller.waits.values()]
        assert all(each.live for each in live)
        assert not any(each.live for each in waits)
        assert sorted(each.id for each in live + waits) == sorted(self.schedule._sequences)
        assert (len(live), len(waits)) == (self.schedule.live, callers.waits)
        assert set(callers._waiting) == {name for name, caller in callers._all.items() if caller.waits}
        assert all(caller.live or caller.waits for caller in callers._all.values())
        for caller in callers._all.values():
            assert [each.last_s for each in caller.live.values()] == sorted(
                each.last_s for each in caller.live.values()
            )

    @invariant()
    def steps_are_counted(self) -> None:
        assert self.schedule.waiting == len(self.owed) - len(self.running) <= MAX_WAITING
        assert 0 <= self.schedule.live <= MAX_LIVE

    @invariant()
    def nobody_waits_for_a_place_that_is_free(self) -> None:
        assert self.schedule.live == MAX_LIVE or not self.schedule._callers.waits

    @invariant()
    def nobody_waits_behind_an_idle_sequence_of_one_with_two_more(self) -> None:
        callers = self.schedule._callers
        if callers._waiting:
            fewest = min(len(each.live) for each in callers._waiting.values())
            assert not [
                each
                for each in callers._all.values()
                if len(each.live) >= fewest + 2 and each.longest_idle() is not None
            ]

    @invariant()
    def what_can_run_is_in_the_line(self) -> None:
        schedule = self.schedule
        ready = {each.id for each in schedule._sequences.values() if each.live and each.steps and not each.running}
        assert {each.id for each in schedule._line} == ready
        assert self.looks or not ready


TestCopy = Copy.TestCase
