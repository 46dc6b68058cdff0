"""The sessions of one router by their ids: how many there are, what is kept of them, and which are forgotten."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from typing import Final

from mesh.api.messages import control
from mesh.core.errors import MeshError
from mesh.core.sessions.session import Session
from mesh.core.view import ClusterView, Located, VersionKey
from mesh.router.live import Keeping, Key, Live, Totals
from mesh.router.spill import Spill
from mesh.router.target import Target, Targets

IDLE_SLACK_S: Final = 5.0
"""How much longer than a node a router keeps what it knows of an idle sequence."""
SWEEP_S: Final = 5.0
SPILLS: Final = 0.5
"""Of what may be kept: beyond it snapshots go to other nodes. The rest is for those on their way."""
LEFT: Final = 0.8
"""Of a bound is left when it was passed: the next time is not the next step, as a look is O(sessions)."""
LOOK: Final = 32
"""A look that did not help is done again when so many-th of the bound came since."""
FEW: Final = 64
"""Snapshots that find no node before a look for others is given up."""
SHARE: Final = 16
"""One session may keep steps of so many-th of what all may; a snapshot that is larger goes to another node at once."""


class SessionTable:
    """At most `max_bytes` are kept, and what is on its way to another node. 0 <= kept_bytes, the sum of all sessions.

    From half of it on snapshots go to other nodes, of the sessions unused longest first. What no node takes, and comes
    to more than the whole, is dropped: those sessions are not protected until their next state.
    """

    def __init__(self, max_bytes: int, spill: Spill) -> None:
        self._max_bytes = max_bytes
        self._spill = spill
        spill.on_done = self.spilled
        self._live: OrderedDict[Key, Live] = OrderedDict()
        """The one unused longest first."""
        self._serving: dict[VersionKey, tuple[Located, ...]] = {}
        """Where versions with sessions were served when that was looked at last."""
        self._sweeper: asyncio.TimerHandle | None = None
        self._by_name: dict[tuple[str, int | str], Live] = {}
        """By model and id: the session that began last, of whichever version."""
        self._totals: dict[VersionKey, Totals] = {}
        self._trim_at = max_bytes * SPILLS
        """Bytes, without those on their way, at which it is looked for what need not be kept."""
        self._share = max_bytes // SHARE
        self.kept_bytes = 0

    def get(self, key: Key) -> Live | None:
        """Return the session with this id."""
        return self._live.get(key)

    def begun(self, name: str, id_: int | str) -> Live | None:
        """Return the session of a model that began last: one that goes on stays with the version it began with."""
        return self._by_name.get((name, id_))

    def begun_with(self, target: Target, id_: int | str, targets: Targets) -> Target:
        """Return the version that a sequence began with, where that is not the latest any more and still there."""
        live = self.begun(target.model.name, id_)
        if live is None or live.target is target or live.key[1] == target.model.version:
            return target
        try:
            return targets.find(live.key[0], live.key[1])
        except MeshError:
            return target

    def again(self, target: Target, id_: int | str) -> Live | None:
        """Return the session that began last of a model for a step that comes now, if nothing of it changed. O(1)."""
        live = self._by_name.get((target.model.name, id_))
        if live is None or live.target is not target:
            return None
        now_s = time.monotonic()
        if now_s - live.last_s > live.idle_s and live.is_idle(now_s):
            # What is left of it is no sequence any more; a copy that was asked by another router may still have it.
            self.forget(live)
            return None
        self._live.move_to_end(live.key)
        live.last_s = now_s
        live.totals.steps += 1
        return live

    def used(self, key: Key, target: Target, now_s: float) -> Live:
        """Return the session for a step that comes now, a new one where there is none. O(1)."""
        live = self._live.get(key)
        if live is not None and live.is_idle(now_s):
            self.forget(live)
            live = None
        if live is None:
            sequence = target.model.sequence
            core = Session(self._share, sequence is None or sequence.replayable)  # type: ignore[var-annotated] # of steps
            live = self._live[key] = Live(key, target, core, now_s)
            live.totals = self.totals(live.version)
            live.idle_s = sequence.idle_s if sequence is not None else math.inf
            self._by_name[key[0], key[2]] = live
            self._serving.setdefault(live.version, target.candidates)
            if self._sweeper is None:
                self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
        else:
            self._live.move_to_end(key)
            live.last_s = now_s
            live.target = target
        live.totals.steps += 1
        return live

    def totals(self, version: VersionKey) -> Totals:
        """Return the counters of a version."""
        found = self._totals.get(version)
        if found is None:
            found = self._totals[version] = Totals()
        return found

    def counted(self, live: Live) -> None:
        """Count what a session keeps now, and see to what is too much."""
        self._count(live)
        if live.counted > self._share and not live.spilling and len(live.core.snapshot or b"") > self._share:
            self._let_go(live)
        if self.kept_bytes - self._spill.pending_bytes > self._trim_at:
            self._trim()

    def spilled(self, live: Live, snapshot: bytes, kept: Keeping | None) -> None:
        """Hear that a snapshot is at another node, or (None) that none took it: the next is asked then."""
        if self.get(live.key) is not live:
            return  # It was forgotten meanwhile, and counts no more.
        if kept is None:
            self._trim_at = self._max_bytes * SPILLS
        elif live.core.put_away(snapshot):
            live.kept = kept
        self.counted(live)

    def _trim(self) -> None:
        bound, failed = self._max_bytes * SPILLS, 0
        excess = self.kept_bytes - self._spill.pending_bytes - bound * LEFT
        for each in self._live.values():
            if excess <= 0 or failed >= FEW:
                break
            if each.core.snapshot is not None and not each.spilling:
                going = self._spill.begin(each)
                self._count(each)
                excess -= going
                failed += not going
        if self.kept_bytes > self._max_bytes:
            self._unprotect()
        kept = self.kept_bytes - self._spill.pending_bytes
        # What is left above the bound cannot go: it is not looked at again at every step.
        self._trim_at = max(bound, kept + self._max_bytes // LOOK)

    def _unprotect(self) -> None:
        # Those last whose snapshot is elsewhere: dropping their steps saves little, and costs as much.
        for away in (False, True):
            for each in self._live.values():
                if self.kept_bytes <= self._max_bytes - self._max_bytes // LOOK:
                    return
                if each.counted and each.core.away is away and not each.spilling:
                    each.core.unprotect()
                    self._count(each)

    def _let_go(self, live: Live) -> None:
        if not self._spill.begin(live) and live.core.kept_bytes > self._max_bytes * SPILLS:
            live.core.unprotect()
        self._count(live)

    def _count(self, live: Live) -> None:
        self.kept_bytes += live.core.kept_bytes - live.counted
        live.counted = live.core.kept_bytes
        if live.kept is not None:
            self._drop_old(live)

    def _drop_old(self, live: Live) -> None:
        """Let no node keep a snapshot that is not the last any more."""
        assert live.kept is not None
        if not live.core.away and (live.core.snapshot is None or live.core.snapshot is not live.kept.snapshot):
            self._spill.drop(live)

    def forget(self, live: Live) -> None:
        """Drop a session. Idempotent."""
        if self._live.get(live.key) is live:
            self.kept_bytes -= live.counted
            live.counted = 0
            self._spill.drop(live)
            if self._by_name.get((live.key[0], live.key[2])) is live:
                del self._by_name[live.key[0], live.key[2]]
            if live.trace is not None:
                live.trace.end()
            del self._live[live.key]

    def moved(self, view: ClusterView) -> list[Live]:
        """Return the sessions whose versions are served otherwise than before. O(versions) while nothing changes."""
        changed = set()
        for version, before in self._serving.items():
            now = view.serving.get(version, ())
            if now is not before:
                self._serving[version] = now
                changed.add(version)
        return [live for live in self._live.values() if live.version in changed] if changed else []

    def messages(self) -> list[control.SessionGroup]:
        """Return what there is of each version, by name. Scrapes call it from a thread of their own."""
        groups = {
            (name, version): control.SessionGroup(
                model=name,
                version=version,
                steps=totals.steps,
                failovers=totals.failovers,
                lost=totals.lost,
                generations=totals.generations,
                responses=totals.responses,
            )
            for (name, version), totals in list(self._totals.items())
        }
        for live in list(self._live.values()):
            group = groups.get(live.version)
            if group is None:
                continue  # It began just now.
            group.live += 1
            group.kept_bytes += live.core.kept_bytes
            group.unprotected += not live.core.whole
            group.kept_elsewhere += live.core.away
            place = live.core.place
            if place is not None:
                group.nodes[place[0]] += 1
        return [groups[key] for key in sorted(groups)]

    def close(self) -> None:
        """Stop looking for idle ones, and sending them to other nodes."""
        self._spill.close()
        if self._sweeper is not None:
            self._sweeper.cancel()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        if self.kept_bytes - self._spill.pending_bytes <= self._max_bytes * SPILLS:
            self._trim_at = self._max_bytes * SPILLS
        for live in list(self._live.values()):
            idle_s = live.model.sequence.idle_s if live.model.sequence is not None else 0.0
            if now_s - live.last_s > idle_s + IDLE_SLACK_S and live.is_idle(now_s):
                self.forget(live)
        versions = {live.version for live in self._live.values()}
        self._serving = {version: seen for version, seen in self._serving.items() if version in versions}
        self._sweeper = loop.call_later(SWEEP_S, self._sweep) if self._live else None

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<SessionTable live={len(self._live)} kept_bytes={self.kept_bytes}>"
