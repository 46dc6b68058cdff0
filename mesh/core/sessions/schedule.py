"""The steps of many sequences on one copy: whose turn it is, and which run together ("oldest" scheduling).

The steps of one sequence run one after another in the order they came; at most one step of each is in a batch. Those
whose first step has waited longest go first (Triton's oldest strategy). At most `max_live` sequences are live: more
wait, in the order they started, for one that ends or is idle for too long; between callers `callers` decides. A
sequence that goes on by itself (a generation) takes its next turn behind those that wait.

The rules of flags are Triton's: the first step says START, START on a live id begins anew, the step behind END must say
START again.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from mesh.core.batching import Run, Waiting, WaitUntil, next_batch
from mesh.core.errors import Overloaded, UnknownSequence
from mesh.core.sessions.callers import Caller, Callers

T = TypeVar("T")

SequenceId = int | str


def unknown(id_: SequenceId, model: str) -> UnknownSequence:
    """Return what the caller of a step is told whose sequence is not here (Triton's words)."""
    return UnknownSequence(
        f"inference request for sequence {id_} to model '{model}' must specify the START flag on the first request of "
        "the sequence"
    )


@dataclass(slots=True, eq=False)
class Step(Generic[T]):
    """One request of a sequence. `what` is the caller's own."""

    what: T
    waiting: Waiting
    start: bool = False
    end: bool = False
    restored: Any = None
    """The state that the sequence is put into before the step; None: as it is."""
    steps_before: int = 0
    """With `restored`: how many steps that state has behind it."""


@dataclass(slots=True, eq=False)
class Sequence(Generic[T]):
    """One live sequence."""

    id: SequenceId
    last_s: float
    """When it was last at work or asked."""
    caller: Caller[T]
    """Who began it."""
    state: Any = None
    """What its last step left; None before the first."""
    count: int = 0
    """Steps that have run."""
    untold: int = 0
    """Steps since its state was last told, and the bytes of their requests."""
    untold_bytes: int = 0
    steps: deque[Step[T]] = field(default_factory=deque)
    """Those that wait, or with `running` the one that runs and those that wait."""
    running: bool = False
    open: bool = False
    """Whether a step without START may follow the last that came."""
    begun: bool = False
    """Whether a step that starts it has had its turn: not when that one left the line before."""
    live: bool = False
    """False while it waits for another to end."""


def _nobody() -> None:
    """Tell nobody."""


class Schedule(Generic[T]):
    """The sequences of one copy. 0 <= live <= max_live; every sequence with a step is running, in line or waits.

    `on_line` is called whenever a sequence joins the line, whatever the cause (a step that came, one that ended, a
    place that became free): its owner has to look at `next` then, and learns of it nowhere else.
    """

    def __init__(
        self, model: str, *, max_live: int, max_waiting: int, idle_s: float, on_line: Callable[[], None] = _nobody
    ) -> None:
        self._model = model
        self._max_live = max_live
        self._max_waiting = max_waiting
        self._idle_s = idle_s
        self._on_line = on_line
        self._sequences: OrderedDict[SequenceId, Sequence[T]] = OrderedDict()
        """The one unused longest first."""
        self._line: deque[Sequence[T]] = deque()
        """Live, with a step that waits, none running."""
        self._callers: Callers[T] = Callers()
        """Whose they are, and the backlog: those that wait for their place."""
        self.displaced: list[Step[T]] = []
        """Steps that `arrive` took out of a full queue: its owner refuses them, and empties this."""
        self.live = 0
        self.waiting = 0
        """Steps that wait."""

    def arrive(self, id_: SequenceId, step: Step[T], now_s: float, caller: str = "") -> Sequence[T]:
        """Take a step of a caller. O(1), while there is room; O(callers) when one has to give way.

        Raises `UnknownSequence` for one that does not start where nothing is, and `Overloaded`.
        """
        found = self._sequences.get(id_)
        starts = step.start or step.restored is not None
        if not starts and (found is None or not found.open):
            raise unknown(id_, self._model)
        whose = self._callers.of(caller) if found is None else found.caller
        if self.waiting >= self._max_waiting and not self._make_room(whose, now_s):
            raise Overloaded(
                f"Exceeds maximum queue size: {self.waiting} steps of {self.live} live sequences (at most "
                f"{self._max_live}) wait for model '{self._model}'"
            )
        if found is None:
            found = self._sequences[id_] = Sequence(id_, now_s, whose)
            self._admit_or_wait(found, now_s)
        self._used(found, now_s)
        found.open = not step.end
        found.steps.append(step)
        self.waiting += 1
        if found.live and not found.running and len(found.steps) == 1:
            self._line_up(found)
        return found

    def next(
        self, *, max_rows: int, delay_s: float, now_s: float, enough: int | None = None
    ) -> list[Sequence[T]] | WaitUntil:
        """Return the sequences whose first steps run together now, marked as running; or when to look again.

        `enough` as in `next_batch`. O(batch).
        """
        line = self._line
        if not line:
            return WaitUntil(None)
        found = next_batch(
            [line[at].steps[0].waiting for at in range(min(len(line), max_rows + 1))],
            max_rows=max_rows,
            delay_s=delay_s,
            now_s=now_s,
            enough=enough,
        )
        if not isinstance(found, Run):
            return found
        batch = [line.popleft() for _ in range(found.count)]
        for each in batch:
            each.running = True
            step = each.steps[0]
            if step.restored is not None:
                each.state, each.count, each.begun = step.restored, step.steps_before, True
            elif step.start:
                each.state, each.count, each.begun = None, 0, True
                each.untold = each.untold_bytes = 0
        self.waiting -= len(batch)
        return batch

    def ended(self, sequence: Sequence[T], now_s: float, *, failed: bool = False) -> None:
        """Take the step that ran away; the next takes its place in the line. O(1).

        A sequence whose start failed has not begun: the steps behind it have nothing to follow.
        """
        step = sequence.steps.popleft()
        if failed and step.start and step.restored is None:
            sequence.begun = False
        sequence.running = False
        self._used(sequence, now_s)
        if sequence.steps:
            self._line_up(sequence)
        elif step.end or not sequence.begun:
            self._drop(sequence, now_s)
        else:
            self._idle(sequence, now_s)

    def skipped(self, sequence: Sequence[T], now_s: float) -> None:
        """Take the step away whose turn it was, and which does not run. Without its start a sequence has not begun."""
        step = sequence.steps[0]
        if step.start or step.restored is not None:
            sequence.begun = False
        self.ended(sequence, now_s)

    def again(self, sequence: Sequence[T], now_s: float) -> None:
        """Let the step that ran take another turn, behind those that wait. O(1)."""
        step = sequence.steps[0]
        step.restored, step.start = None, False
        step.waiting = step.waiting._replace(enqueued_s=now_s)
        sequence.running = False
        sequence.last_s = now_s
        self.waiting += 1
        self._line_up(sequence)

    def withdraw(self, sequence: Sequence[T], step: Step[T], now_s: float) -> bool:
        """Take a step out that waits; False when it runs or is gone. O(steps of the sequence, and the line)."""
        if step not in sequence.steps or (sequence.running and sequence.steps[0] is step):
            return False
        first = sequence.steps[0] is step
        sequence.steps.remove(step)
        self.waiting -= 1
        if step.end:
            # Its END was never heard: the sequence goes on.
            sequence.open = True
        if first and not sequence.steps:
            if sequence.live:
                self._line.remove(sequence)
            if step.start and not sequence.count:
                self._drop(sequence, now_s)
            elif sequence.live:
                self._idle(sequence, now_s)
        return True

    def waited_too_long(self, sequence: Sequence[T], now_s: float) -> list[Step[T]]:
        """Drop a sequence that waits for its place, and return its steps; none of one that has its place.

        Triton's rule: a step that times out in the backlog takes its whole sequence along, as the steps behind it
        would have nothing to follow, and a sequence that is live runs all that it was given. O(its steps).
        """
        if sequence.live or self._sequences.get(sequence.id) is not sequence:
            return []
        steps = list(sequence.steps)
        sequence.steps.clear()
        self.waiting -= len(steps)
        self._drop(sequence, now_s)
        return steps

    def expire(self, now_s: float) -> list[Sequence[T]]:
        """Drop the sequences that nobody asked for too long, and return them. O(dropped)."""
        dropped = []
        while self._sequences:
            oldest = next(iter(self._sequences.values()))
            if now_s - oldest.last_s <= self._idle_s:
                break
            if oldest.steps:
                # At work: it is not idle. Looked at again behind the others.
                self._used(oldest, now_s)
            else:
                dropped.append(oldest)
                self._drop(oldest, now_s)
        return dropped

    def find(self, id_: SequenceId) -> Sequence[T] | None:
        """Return the sequence with this id."""
        return self._sequences.get(id_)

    def remove(self, sequence: Sequence[T], now_s: float) -> None:
        """Drop an idle sequence: another copy has it."""
        assert not sequence.steps
        self._drop(sequence, now_s)

    def _admit_or_wait(self, sequence: Sequence[T], now_s: float) -> None:
        if self.live < self._max_live:
            self._admit(sequence)
            return
        self._callers.waits_for_place(sequence)
        idle = self._callers.gives_way()
        if idle is not None:
            self._drop(idle, now_s)

    def _admit(self, sequence: Sequence[T]) -> None:
        sequence.live = True
        self.live += 1
        self._callers.lives(sequence)

    def _idle(self, sequence: Sequence[T], now_s: float) -> None:
        """Let the caller of a sequence that became idle give way where it has to."""
        if self._callers.waits and (idle := self._callers.gives_way(sequence.caller)) is not None:
            self._drop(idle, now_s)

    def _make_room(self, caller: Caller[T], now_s: float) -> bool:
        """Take the steps of another's sequence out of a full queue; False when there are none that have to go."""
        leaves = self._callers.leaves_the_queue(caller)
        if leaves is None:
            return False
        self.displaced += self.waited_too_long(leaves, now_s)
        return True

    def _used(self, sequence: Sequence[T], now_s: float) -> None:
        sequence.last_s = now_s
        self._sequences.move_to_end(sequence.id)
        self._callers.used(sequence)

    def _drop(self, sequence: Sequence[T], now_s: float) -> None:
        if self._sequences.get(sequence.id) is sequence:
            del self._sequences[sequence.id]
        # At once: whoever still holds the sequence must not hold its memory.
        sequence.state = None
        self._callers.left(sequence)
        if not sequence.live:
            return
        sequence.live = False
        self.live -= 1
        admitted = self._callers.next()
        if admitted is not None:
            self._admit(admitted)
            admitted.last_s = now_s
            if admitted.steps:
                self._line_up(admitted)

    def _line_up(self, sequence: Sequence[T]) -> None:
        self._line.append(sequence)
        self._on_line()

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Schedule live={self.live} backlog={self._callers.waits} waiting={self.waiting}>"
