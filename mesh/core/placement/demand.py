"""What is asked of every model: histories for the forecast, requests in flight for the autoscaler.

Fed by the leader with what nodes tell of their copies (NodeControl.Usage): counters that only grow while a copy lives.
Times are the leader's own; a node's clock is used for nothing but how long ago something was.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mesh.core.placement.autoscale import Scaler
from mesh.core.placement.forecast import Forecast, History, Learner
from mesh.core.types import NodeId
from mesh.core.view import VersionKey


@dataclass(frozen=True, slots=True)
class Usage:
    """What a node tells of one copy."""

    key: VersionKey
    requests: int
    """Since it was loaded."""
    busy_s: float
    """Seconds that they took in all."""
    in_flight: int
    idle_s: float
    """How long ago the last one ended."""


@dataclass(frozen=True, slots=True)
class _Read:
    at_s: float
    requests: int
    busy_s: float


class Demand:
    """The demand of all models of a mesh. State only for models that were asked for."""

    def __init__(self) -> None:
        self.learner: Learner[VersionKey] = Learner()
        self.forecast: Forecast = self.learner.forecast()
        self.scalers: dict[VersionKey, Scaler] = {}
        self._reads: dict[tuple[NodeId, VersionKey], _Read] = {}

    def read(self, told: Iterable[tuple[NodeId, Usage]], since_s: float, now_s: float) -> None:
        """Take in what all nodes told at `now_s`; `since_s` is when they were read before. O(copies told)."""
        in_flight: dict[VersionKey, float] = {}
        asked: list[tuple[float, VersionKey, int]] = []
        for node, usage in told:
            before = self._reads.get((node, usage.key))
            if before is None or before.requests > usage.requests:
                # A copy not heard of, or loaded anew: all that is known to be recent is its last request.
                recent = min(1, usage.requests) if usage.idle_s <= now_s - since_s else 0
                each_s = usage.busy_s / max(1, usage.requests)
                before = _Read(since_s, usage.requests - recent, usage.busy_s - recent * each_s)
            requests, span_s = usage.requests - before.requests, max(1e-3, now_s - since_s)
            self._reads[node, usage.key] = _Read(now_s, usage.requests, usage.busy_s)
            busy = max(0.0, usage.busy_s - before.busy_s) / span_s if requests else 0.0
            # A long request is in no total before it ends.
            in_flight[usage.key] = in_flight.get(usage.key, 0.0) + max(
                busy, float(usage.in_flight) if not requests else 0
            )
            if requests:
                asked.append((now_s - min(usage.idle_s, now_s - since_s), usage.key, requests))
        for at_s, key, requests in sorted(asked):
            self.learner.asked(key, requests, at_s)
        self.learner.passed(now_s)
        for key, count in in_flight.items():
            self.scalers.setdefault(key, Scaler()).sample(since_s, now_s, count)
        self._tidy(now_s)

    def remembered(self, key: VersionKey, heat: float, last_s: float) -> None:
        """Take over what an earlier leader or a node left of a model's history; what is known here is newer."""
        if key not in self.learner.histories and last_s:
            self.learner.histories[key] = History(heat, last_s)

    def rate(self, key: VersionKey, now_s: float) -> float:
        """Return the requests per second to expect of a model; 0 for one that nobody asked for."""
        history = self.learner.histories.get(key)
        return self.forecast.rate(history, now_s) if history is not None else 0.0

    def average(self, key: VersionKey, now_s: float) -> float:
        """Return the requests per second of the last hour or so."""
        return self.learner.histories.get(key, History()).average(now_s)

    def lowered(self, key: VersionKey, now_s: float, begun_s: float) -> None:
        """Note that a copy was taken away; `begun_s` is since when the demand is watched."""
        self.scalers.setdefault(key, Scaler(begun_s)).lowered(now_s)

    def _tidy(self, now_s: float) -> None:
        for key in [key for key, scaler in self.scalers.items() if scaler.is_idle(now_s)]:
            del self.scalers[key]
        for read in [read for read, value in self._reads.items() if now_s - value.at_s > 3600]:
            del self._reads[read]

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Demand {self.learner!r} in use={len(self.scalers)}>"
