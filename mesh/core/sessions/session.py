"""One session on a router: its steps since the last snapshot, and where they go. What makes it outlive its node.

A step that was sent is kept until an answer brings the state behind it (a snapshot). When the node is lost, the steps
behind the snapshot are sent to another copy, the first with the snapshot to begin from: those that were answered
already run there for their effect only, one at a time, and the others are answered from there. So every step is
answered once, in order, with what an undisturbed run gives, as long as steps are functions of state and inputs.

| event | then |
|---|---|
| a step comes | it is sent, unless there is no place, it is on its way out, or another stream waits for answers |
| an answer with a state | the steps up to it are forgotten |
| the place is lost | another is wanted, and the kept steps are sent there |
| the place is leaving | new steps wait for the answers of the old; the state is fetched if steps would run again |
| the place is lost, and what is kept does not make the state, or must not run twice | the unanswered steps fail |
| there is no room for the snapshot | another node keeps it, and it is brought back before another place is wanted |

Steps are kept up to `max_bytes`, and `MOST_STEPS` of them: beyond it what is kept is not whole until the next state
comes. Snapshots are bounded by whoever calls `put_away`. A place is a node's process; the same node after a restart is
another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mesh.core.types import NodeId

T = TypeVar("T")

MOST_STEPS = 1024
"""Steps that are kept of one session: what a survivor would have to run again takes longer than anybody waits."""

Place = tuple[NodeId, str]
"""A node's id and incarnation."""


@dataclass(slots=True, eq=False)
class Entry(Generic[T]):
    """A step that is kept."""

    message: bytes
    owner: object
    """The stream it came on: steps of another one wait until all of these are answered."""
    step: T | None
    """Whom to answer; None once answered, when it only runs for its effect."""
    start: bool
    end: bool
    sent: bool = False
    """To the place that the session has now."""
    awaited: bool = False
    """Sent, and not yet answered by that place."""
    attempts: int = 0
    deaths: int = 0
    """Places that went while they ran it, or may have."""


@dataclass(slots=True, eq=False)
class Send(Generic[T]):
    """Send this step to the session's place, after the state (if any) that it begins from.

    What comes back is for the session only as long as its `epoch` is this.
    """

    entry: Entry[T]
    restore: bytes | None
    epoch: int


@dataclass(slots=True, eq=False)
class Session(Generic[T]):
    """See above. While there is no place nothing is awaited; entries are in the order the steps came."""

    max_bytes: int
    replayable: bool = True
    """Whether a step that was sent may be sent again. If not, only what is behind no step is saved: the snapshot."""
    place: Place | None = None
    snapshot: bytes | None = None
    away: bool = False
    """Whether another node keeps the snapshot; `snapshot` is None then."""
    entries: deque[Entry[T]] = field(default_factory=deque)
    whole: bool = True
    """Whether the snapshot and the entries make the state; before the first step too, as that starts it."""
    kept_bytes: int = 0
    epoch: int = 0
    """Counts the places it had, and the states it was put into."""
    leaving: bool = False
    gone: bool = False
    """Whether the state was lost: only a step that starts the sequence makes sense now."""
    _restores: bool = False

    def asked(self, step: T, message: bytes, owner: object, *, start: bool, end: bool) -> Entry[T]:
        """Take a step. O(1), but when it overflows."""
        self.gone = self.gone and not start
        if not self.entries and self.snapshot is None and not self.away:
            # Without START it was begun through another router: the state is with its node alone.
            self.whole = start
        entry = Entry(message, owner, step, start, end)
        self.entries.append(entry)
        self.kept_bytes += len(message)
        if self.kept_bytes > self.max_bytes or len(self.entries) > MOST_STEPS:
            self._bound()
        if self.leaving:
            self._go()
        return entry

    def send_now(self, entry: Entry[T]) -> Send[T] | None:
        """Return what to send for a step that just came, where nothing else is kept and nothing is to be decided.

        None: see `ready`. O(1).
        """
        if self.place is None or self.leaving or self._restores or len(self.entries) != 1:
            return None
        entry.sent = entry.awaited = True
        entry.attempts = 1
        return Send(entry, None, self.epoch)

    def ready(self, *, pipelined: bool) -> Iterator[Send[T]]:
        """Yield what to send now, in order; `pipelined` says whether the stream carries several steps in order.

        Nothing without a place: see `wants_place`. O(kept).
        """
        if self.place is None or self.leaving:
            return
        awaited = next((each for each in self.entries if each.awaited), None)
        if awaited is not None and (not pipelined or awaited.step is None):
            return
        owner = None if awaited is None else awaited.owner
        epoch = self.epoch
        for each in list(self.entries):
            if each.sent:
                continue
            if epoch != self.epoch:
                return  # What was sent just now was lost already.
            if owner is not None and each.owner is not owner:
                return
            restore = self.snapshot if self._restores and not each.start else None
            self._restores = False
            each.sent = each.awaited = True
            each.attempts += 1
            yield Send(each, restore, self.epoch)
            owner = each.owner
            if each.step is None or not pipelined:
                return

    @property
    def wants_place(self) -> bool:
        """Whether somebody waits for a step that has no place to go to, and what it begins from is here."""
        return self._homeless and not self.wants_snapshot

    @property
    def wants_snapshot(self) -> bool:
        """Whether the snapshot is to be brought back: the next step begins from it, at another place."""
        return self.away and self._homeless and not self.entries[0].start

    @property
    def wants_state(self) -> bool:
        """Whether the state is to be fetched: it leaves its place, and what is kept is not all or would run again."""
        return self.leaving and not self.awaited and (not self.whole or bool(self._done()))

    def may_move(self, most: int) -> bool:
        """Whether all of it can go on at another place while this one says nothing, as if it had ended. O(kept).

        Not when a step may not run again, as for `ended` with the same `most`.
        """
        runs = any(each.sent for each in self.entries)
        return (
            self.whole
            and (self.replayable or not runs)
            and all(each.deaths + each.awaited < most for each in self.entries)
        )

    @property
    def _homeless(self) -> bool:
        return self.place is None and any(each.step is not None for each in self.entries)

    @property
    def awaited(self) -> bool:
        """Whether a step that was sent has no answer yet."""
        return any(each.awaited for each in self.entries)

    @property
    def over(self) -> bool:
        """Whether nothing is kept and nothing waits."""
        return not self.entries and self.snapshot is None and self.whole and not self.away

    @property
    def fresh(self) -> bool:
        """Whether no step was answered yet."""
        return self.snapshot is None and not self.away and all(each.step is not None for each in self.entries)

    def placed(self, place: Place) -> None:
        """Give it a place, when it `wants_place`: what is kept goes there, see `ready`."""
        self.place, self.leaving = place, False
        self._restores = self.snapshot is not None
        self._unsend()

    def answered(self, send: Send[T], state: bytes | None, *, failed: bool) -> bool:
        """Take an answer: with the state behind it, without, or a failure that left the state as it was. O(kept).

        False for one that is of no interest any more: another place answers that step. Call `lost` instead when a step
        failed that runs for its effect only (`entry.step` is None).
        """
        entry = send.entry
        if send.epoch != self.epoch or not entry.awaited:
            return False
        entry.step, entry.awaited = None, False
        if failed:
            self._forget(entry)
        elif entry.end or state is not None:
            self._up_to(entry)
            self._keep(None if entry.end else state)
            self.whole = True
        elif not self.whole:
            self._forget(entry)
        else:
            self._bound()
        if self.leaving:
            self._go()
        return True

    def left(self, entry: Entry[T]) -> None:
        """Hear that nobody waits for a step any more. One that was sent may run or not. O(kept)."""
        if entry.step is None or entry not in self.entries:
            return
        entry.step, awaited = None, entry.awaited
        entry.awaited = False
        self._forget(entry)
        if awaited:
            self._not_whole()
        self._go()

    def ended(self, most: int) -> list[Entry[T]]:
        """Hear, before `lost`, that the place went in the course of what is awaited; return what must not run again.

        That is a step in the course of which `most` places went. O(kept).
        """
        for each in self.entries:
            each.deaths += each.awaited
        return [each for each in self.entries if each.deaths >= most]

    def lost(self) -> list[T]:
        """Hear that the place is gone; return the steps that cannot be answered any more, none if all can. O(kept)."""
        sent = sum([each.sent for each in self.entries])
        self.place, self.leaving = None, False
        self._unsend()
        if self.whole and not (sent and not self.replayable):
            return []
        ended = []
        must_go = 0 if self.replayable else sent
        while self.entries and (must_go > 0 or not self.entries[0].start):
            entry, must_go = self.entries.popleft(), must_go - 1
            if entry.step is not None:
                ended.append(entry.step)
                entry.step = None
        # A sequence that starts behind what is lost can still be run.
        self.snapshot, self.away, self.whole, self.gone = None, False, True, not self.entries
        self.kept_bytes = sum([len(each.message) for each in self.entries])
        return ended

    def elsewhere(self) -> None:
        """Hear that the place does not know it and ran nothing: a session begun elsewhere may be at another."""
        self.place, self.leaving = None, False
        self._unsend()

    def ended_there(self) -> None:
        """Hear that its place has ended it, so that what is kept makes no state any more. Not for `lost` ones. O(kept).

        Another place may have it by now: see `elsewhere`.
        """
        self._not_whole()

    def forgotten(self) -> None:
        """Hear that its place forgot it, as its caller wished. Steps that came since must start it anew."""
        self._keep(None)
        self.place, self.leaving = None, False
        self.whole = not self.entries or self.entries[0].start
        self._unsend()

    def leave(self) -> None:
        """Let it go to another place, when what was sent is answered: its node is leaving, or lost its copy."""
        if self.place is not None:
            self.leaving = True
            self._go()

    def fetched(self, state: bytes | None) -> list[T]:
        """Take the state that the place gave away, None if it did not; return the steps that nobody can answer now."""
        if not self.leaving or self.awaited:
            return []
        if state is None:
            return self.lost()
        for each in self._done():
            self._forget(each)
        self._keep(state)
        self.whole = True
        self._go()
        return []

    def unprotect(self) -> None:
        """Keep no more than what is to be answered: there is no room. Until the next state it cannot outlive its node.

        Nothing changes while what is kept is being sent to a new place.
        """
        running_again = any(each.step is None and not (each.sent and not each.awaited) for each in self.entries)
        if self.whole and self.place is not None and not self._restores and not running_again:
            self._not_whole()

    def put_away(self, snapshot: bytes) -> bool:
        """Hear that another node keeps this snapshot: it is not kept here any more. False: it is not wanted there.

        That is so when a later state came meanwhile, or when it is to be sent to a place just now.
        """
        if self.snapshot is not snapshot or self._restores or self._homeless:
            return False
        self._keep(None)
        self.away = True
        return True

    def brought(self, snapshot: bytes | None) -> list[T]:
        """Take back what was put away, None if it is lost; return the steps that nobody can answer now. O(kept)."""
        if not self.away:
            return []
        if snapshot is not None:
            self._keep(snapshot)
            return []
        self._not_whole()
        return [] if self.place is not None else self.lost()

    def restore(self, snapshot: bytes) -> list[T]:
        """Begin from a state that a client kept; return steps of before, which nobody may answer any more. O(kept).

        What ran since then runs again, by the steps that follow.
        """
        ended = [each.step for each in self.entries if each.step is not None]
        for each in self.entries:
            each.step, each.awaited = None, False
        self.entries.clear()
        self.kept_bytes, self.snapshot, self.whole, self.gone = len(snapshot), snapshot, True, False
        self.away = False
        self.epoch += 1
        self._restores = True
        return ended

    def _bound(self) -> None:
        """Give up what is kept where it is too much."""
        if self.kept_bytes - len(self.snapshot or b"") > self.max_bytes or len(self.entries) > MOST_STEPS:
            self.unprotect()

    def _done(self) -> list[Entry[T]]:
        return [each for each in self.entries if each.sent and not each.awaited]

    def _unsend(self) -> None:
        self.epoch += 1
        for each in self.entries:
            each.sent = each.awaited = False

    def _go(self) -> None:
        """Leave when nothing is awaited, and nothing would have to run again."""
        if self.leaving and not self.awaited and not self.wants_state:
            self.place, self.leaving = None, False
            self._unsend()

    def _keep(self, state: bytes | None) -> None:
        self.kept_bytes += len(state or b"") - len(self.snapshot or b"")
        self.snapshot, self.away = state, False

    def _forget(self, entry: Entry[T]) -> None:
        self.entries.remove(entry)
        self.kept_bytes -= len(entry.message)

    def _up_to(self, entry: Entry[T]) -> None:
        while True:
            gone = self.entries.popleft()
            self.kept_bytes -= len(gone.message)
            if gone is entry:
                return

    def _not_whole(self) -> None:
        """Keep only what is still to be answered, or to run: what was kept does not make the state any more."""
        self.whole, self.snapshot, self.away, self._restores = False, None, False, False
        self.entries = deque([each for each in self.entries if each.step is not None or not each.sent or each.awaited])
        self.kept_bytes = sum([len(each.message) for each in self.entries])

    def __repr__(self) -> str:
        """Show where it is and what is kept."""
        return f"<Session place={self.place} kept={len(self.entries)} bytes={self.kept_bytes} whole={self.whole}>"
