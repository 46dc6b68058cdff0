"""The sessions of one router by their ids: how many there are, what is kept of them, and which are forgotten."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from mesh.api.messages import control
from mesh.core.sessions.session import Session
from mesh.core.view import ClusterView, Located, VersionKey
from mesh.router.live import Key, Live, Totals
from mesh.router.target import Target

IDLE_SLACK_S: Final = 5.0
"""How much longer than a node a router keeps what it knows of an idle sequence."""
SWEEP_S: Final = 5.0
TRIM_BYTES: Final = 1024 * 1024
"""So many bytes more come between two looks: a look is O(sessions)."""
ENOUGH: Final = 0.9
"""Of what may be kept is left when it was too much: the next time is not the next step."""
SHARE: Final = 16
"""One session may keep so many-th of what all may."""


class SessionTable:
    """At most `max_bytes` are kept. 0 <= kept_bytes, the sum of what the sessions keep."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._live: OrderedDict[Key, Live] = OrderedDict()
        """The one unused longest first."""
        self._serving: dict[VersionKey, tuple[Located, ...]] = {}
        """Where versions with sessions were served when that was looked at last."""
        self._sweeper: asyncio.TimerHandle | None = None
        self._by_name: dict[tuple[str, int | str], Live] = {}
        """By model and id: the session that began last, of whichever version."""
        self._totals: dict[VersionKey, Totals] = {}
        self._trim_at = max_bytes
        """Bytes at which it is looked for what need not be kept."""
        self.kept_bytes = 0

    def get(self, key: Key) -> Live | None:
        """Return the session with this id."""
        return self._live.get(key)

    def begun(self, name: str, id_: int | str) -> Live | None:
        """Return the session of a model that began last: one that goes on stays with the version it began with."""
        return self._by_name.get((name, id_))

    def used(self, key: Key, target: Target, now_s: float) -> Live:
        """Return the session for a step that comes now, a new one where there is none. O(1)."""
        live = self._live.get(key)
        if live is None:
            sequence = target.model.sequence
            core = Session(self._max_bytes // SHARE, sequence is None or sequence.replayable)  # type: ignore[var-annotated] # of steps
            live = self._live[key] = Live(key, target, core, now_s)
            live.totals = self.totals(live.version)
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
        """Count what a session keeps now; when all keep too much, the ones unused longest are no longer protected."""
        kept = live.core.kept_bytes
        self.kept_bytes += kept - live.counted
        live.counted = kept
        if self.kept_bytes > self._trim_at:
            self._trim()

    def _trim(self) -> None:
        for each in self._live.values():
            if self.kept_bytes <= self._max_bytes * ENOUGH:
                break
            each.core.unprotect()
            self.kept_bytes += each.core.kept_bytes - each.counted
            each.counted = each.core.kept_bytes
        # What is left above the bound is on its way, and cannot go: it is not looked at again at every step.
        self._trim_at = max(self._max_bytes, self.kept_bytes + TRIM_BYTES)

    def forget(self, live: Live) -> None:
        """Drop a session. Idempotent."""
        if self._live.get(live.key) is live:
            self.kept_bytes -= live.counted
            live.counted = 0
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
            place = live.core.place
            if place is not None:
                group.nodes[place[0]] += 1
        return [groups[key] for key in sorted(groups)]

    def close(self) -> None:
        """Stop looking for idle ones."""
        if self._sweeper is not None:
            self._sweeper.cancel()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        if self.kept_bytes <= self._max_bytes:
            self._trim_at = self._max_bytes
        for live in list(self._live.values()):
            idle_s = live.model.sequence.idle_s if live.model.sequence is not None else 0.0
            if now_s - live.last_s > idle_s + IDLE_SLACK_S and not any(each.step for each in live.core.entries):
                self.forget(live)
        versions = {live.version for live in self._live.values()}
        self._serving = {version: seen for version, seen in self._serving.items() if version in versions}
        self._sweeper = loop.call_later(SWEEP_S, self._sweep) if self._live else None

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<SessionTable live={len(self._live)} kept_bytes={self.kept_bytes}>"
