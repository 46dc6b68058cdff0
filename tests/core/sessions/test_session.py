"""A router's session against nodes that come, go and forget: every step is answered as in an undisturbed run."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mesh.core.sessions.session import Entry, Place, Send, Session
from mesh.core.types import NodeId


def run(state: int, given: int) -> int:
    """Return the next state, which is also the answer: it differs when any step is lost, doubled or out of order."""
    return (state * 31 + given + 7) % 1_000_003


@dataclass
class Copy:
    """A copy of the model: it runs what comes, in order, and answers in order."""

    state: int | None = None
    untold: int = 0
    inbox: deque[Send[int]] = field(default_factory=deque)
    outbox: deque[tuple[Send[int], int | None, bytes | None]] = field(default_factory=deque)


class Undisturbed(RuleBasedStateMachine):
    """Steps numbered from 0; `answers` is what callers got."""

    @initialize(
        every=st.integers(1, 5),
        pipelined=st.booleans(),
        max_bytes=st.sampled_from((40, 10_000)),
        replayable=st.booleans(),
    )
    def begin(self, every: int, max_bytes: int, *, pipelined: bool, replayable: bool) -> None:
        self.every, self.pipelined = every, pipelined
        self.session: Session[int] = Session(max_bytes, replayable)
        self.copies: dict[Place, Copy] = {}
        self.places = 0
        self.flags: list[tuple[bool, bool]] = []
        self.asked: dict[int, Entry[int]] = {}
        self.streams = 1
        self.ran: set[int] = set()
        self.again: set[int] = set()
        """Steps that the client itself asked again."""
        self.expected: list[int] = []
        self.answers: dict[int, int] = {}
        self.lost: set[int] = set()
        self.steps = 0
        self.state = 0
        self.kept_elsewhere = b""

    def pump(self) -> None:
        if self.session.wants_place:
            self.places += 1
            place = (NodeId(f"n{self.places}"), "")
            self.copies[place] = Copy()
            self.session.placed(place)
        for send in self.session.ready(pipelined=self.pipelined):
            assert self.session.place is not None
            self.copies[self.session.place].inbox.append(send)

    @rule(stream=st.integers(0, 1), ends=st.integers(0, 9))
    def a_step_comes(self, stream: int, ends: int) -> None:
        over = not self.steps or self.ended
        self.ended = not ends
        number = self.steps
        self.steps += 1
        self.state = run(0 if over else self.state, number)
        self.expected.append(self.state)
        self.flags.append((over, self.ended))
        self.ask(number, stream)
        self.pump()

    def ask(self, number: int, stream: int) -> None:
        start, end = self.flags[number]
        entry = self.session.asked(number, f"{number:04}".encode(), stream, start=start, end=end)
        self.asked[number] = entry
        send = self.session.send_now(entry)
        if send is not None:
            assert self.session.place is not None
            self.copies[self.session.place].inbox.append(send)

    ended = False

    @precondition(lambda self: self.steps and not self.lost)
    @rule()
    def the_client_comes_back(self) -> None:
        """Its stream broke: it asks again for what it has no answer to, from the state behind its last answer."""
        self.streams += 1
        known = next((step for step in range(self.steps) if step not in self.answers), self.steps)
        again = list(range(known, self.steps))
        for step in again:
            self.session.left(self.asked[step])
        if again and not self.flags[known][0]:
            assert not self.session.restore(str(self.expected[known - 1]).encode())
        self.again |= set(again)
        for step in again:
            self.ask(step, self.streams)
        self.pump()

    @precondition(lambda self: any(copy.inbox for copy in self.copies.values()))
    @rule()
    def a_copy_runs_a_step(self) -> None:
        copy = next(copy for copy in self.copies.values() if copy.inbox)
        send = copy.inbox.popleft()
        number = int(send.entry.message)
        assert self.session.replayable or number not in self.ran or number in self.again, "run twice"
        self.ran.add(number)
        if send.restore is not None:
            copy.state, copy.untold = int(send.restore), 0
        elif send.entry.start:
            copy.state, copy.untold = 0, 0
        if copy.state is None:
            copy.outbox.append((send, None, None))
            return
        copy.state = run(copy.state, int(send.entry.message))
        copy.untold += 1
        told = None
        if copy.untold >= self.every and not send.entry.end:
            told, copy.untold = str(copy.state).encode(), 0
        copy.outbox.append((send, copy.state, told))

    @precondition(lambda self: any(copy.outbox for copy in self.copies.values()))
    @rule()
    def an_answer_arrives(self) -> None:
        copy = next(copy for copy in self.copies.values() if copy.outbox)
        send, value, told = copy.outbox.popleft()
        step = send.entry.step
        assert value is not None, "a copy was asked that did not know the session"
        if self.session.answered(send, told, failed=False) and step is not None:
            assert step not in self.answers, "answered twice"
            self.answers[step] = value
        self.pump()

    @precondition(lambda self: self.session.wants_state)
    @rule()
    def the_state_cannot_be_fetched(self) -> None:
        whole = self.session.whole
        ended = self.session.fetched(None)
        assert not (whole and self.session.replayable) or not ended
        self.end(ended)
        self.pump()

    def at_work(self) -> bool:
        """Tell whether the copy has steps to run, which their callers may have left: it gives no state away then."""
        return self.session.place is not None and bool(self.copies[self.session.place].inbox)

    def end(self, steps: list[int]) -> None:
        self.lost |= set(steps)
        if self.session.gone:
            # The next step would be refused if it did not start.
            self.ended = True
        if steps and not any(each.start for each in self.session.entries):
            # A caller who is told so begins anew.
            self.ended = True

    @precondition(lambda self: self.session.place is not None)
    @rule()
    def the_node_dies(self) -> None:
        assert self.session.place is not None
        del self.copies[self.session.place]
        whole = self.session.whole
        ended = self.session.lost()
        assert not (whole and self.session.replayable) or not ended
        self.end(ended)
        self.pump()

    @precondition(lambda self: self.session.place is not None and self.session.may_move(99))
    @rule()
    def the_node_says_nothing_for_a_while(self) -> None:
        """It goes on with what was sent to it, and its late answers arrive."""
        assert not self.session.ended(99)
        assert not self.session.lost()
        self.pump()

    @precondition(lambda self: self.session.place is not None)
    @rule()
    def the_node_is_leaving(self) -> None:
        self.session.leave()
        self.pump()

    @precondition(lambda self: self.session.wants_state and not self.at_work())
    @rule()
    def the_state_is_fetched(self) -> None:
        assert self.session.place is not None
        copy = self.copies[self.session.place]
        assert copy.state is not None
        self.end(self.session.fetched(str(copy.state).encode()))
        self.pump()

    @precondition(lambda self: self.session.snapshot is not None)
    @rule()
    def the_snapshot_is_put_away(self) -> None:
        snapshot = self.session.snapshot
        assert snapshot is not None
        assert not self.session.put_away(bytes(bytearray(snapshot))), "another one, though equal, is put away"
        if self.session.put_away(snapshot):
            self.kept_elsewhere = snapshot
        self.pump()

    @precondition(lambda self: self.session.away)
    @rule()
    def the_snapshot_is_brought_back(self) -> None:
        assert not self.session.brought(self.kept_elsewhere)
        assert not self.session.away
        self.pump()

    @precondition(lambda self: self.session.away)
    @rule()
    def the_node_that_keeps_the_snapshot_dies(self) -> None:
        homeless = self.session.place is None
        ended = self.session.brought(None)
        assert not ended or homeless, "a session that has its place lost steps"
        self.end(ended)
        self.pump()

    @invariant()
    def every_answer_is_that_of_an_undisturbed_run(self) -> None:
        if self.steps_known:
            assert all(self.answers[step] == self.expected[step] for step in self.answers)

    @property
    def steps_known(self) -> bool:
        return hasattr(self, "answers")

    @invariant()
    def bytes_are_counted(self) -> None:
        if self.steps_known:
            session = self.session
            kept = sum(len(each.message) for each in session.entries) + len(session.snapshot or b"")
            assert session.kept_bytes == kept

    def teardown(self) -> None:
        if not self.steps_known:
            return
        for _ in range(10_000):
            if self.session.wants_state and not self.at_work():
                self.the_state_is_fetched()
            elif self.session.wants_snapshot:
                self.the_snapshot_is_brought_back()
            elif any(copy.outbox for copy in self.copies.values()):
                self.an_answer_arrives()
            elif any(copy.inbox for copy in self.copies.values()):
                self.a_copy_runs_a_step()
            else:
                break
        missing = set(range(self.steps)) - set(self.answers) - self.lost
        assert not missing, f"never answered: {missing}"
        self.every_answer_is_that_of_an_undisturbed_run()


TestUndisturbed = Undisturbed.TestCase
TestUndisturbed.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
