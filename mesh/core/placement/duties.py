"""What the leader does about copies while nobody waits for them: one pass over the mesh, and the changes it calls for.

A pass looks at every version that has a placement or a minimum, says how many copies it should have, and changes the
placement where that is not so. In the order of what is worse to be without: models that lost their last copy, models
whose node is leaving, minimums, load, and what is only nice to have in memory that nobody uses.

Level-triggered as the rest of placement: a pass depends on what is, so that a new leader goes on where the last one
was. The shell is `mesh.router.steward`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from heapq import nlargest
from typing import Final

from mesh.core.placement.asked import Asked, neighbours_of, zones_of
from mesh.core.placement.autoscale import Scaler
from mesh.core.placement.choose import Scored, choose
from mesh.core.placement.demand import Demand
from mesh.core.reconcile import next_request_s
from mesh.core.types import (
    Copy,
    CopyState,
    ModelVersion,
    Node,
    NodeId,
    Placement,
    ScaleToZero,
    Scaling,
)
from mesh.core.view import ClusterView, VersionKey

HOT_RATE: Final = 1 / 300
"""Requests per second from which a model that lost its last copy comes back unasked: one in five minutes."""

STEADY_RATE: Final = 1.0
"""Requests per second on average over the last hour or so from which a model gets a second copy, in free memory."""

FREE_SHARE: Final = 0.1
"""Share of a device that stays free of what is only nice to have: a load that somebody waits for finds room there."""

LOADS_AT_ONCE: Final = 16
"""Loads that a pass may have begun and not seen the end of, over all nodes, if these are no more than four times as
many: others wait for theirs too."""

NODES_A_LOAD: Final = 4
"""With more nodes than that, one such load for so many nodes."""


@dataclass(frozen=True, slots=True)
class Duty:
    """A placement to write, if nobody changed it meanwhile."""

    before: Placement | None
    after: Placement
    why: str
    fewer: bool = False
    """It takes a copy away: `Demand.lowered` wants to hear of it when it is done."""


@dataclass(frozen=True, slots=True)
class _Need:
    """How many copies a version has and should have. Lower `urgency` is more urgent."""

    urgency: int
    rate: float
    key: VersionKey
    have: tuple[NodeId, ...]
    want: int
    why: str


class Pass:
    """One pass at `now_s` over `view` with the demand as known. `begun_s` is since when this leader watches it.

    Versions are looked at in as many parts as its caller likes (`keys`, `look`; `look_to_fill`), so that a process that
    has other things to do can do them in between; then it is decided, once.
    """

    def __init__(self, view: ClusterView, demand: Demand, *, now_s: float, begun_s: float) -> None:
        self._view = view
        self._demand = demand
        self._now_s = now_s
        self._begun_s = begun_s
        self._nodes = {id_: view.nodes[id_] for id_ in sorted(view.nodes)}
        self._staying = {id_ for id_, node in view.nodes.items() if not (node.draining or node.leaving)}
        at_once = max(LOADS_AT_ONCE, len(view.nodes) // NODES_A_LOAD)
        self._left = at_once - sum(node.loading for node in view.nodes.values())
        self.more = False
        """Whether more would have been loaded if not so much were being loaded already."""
        self.orphans: list[VersionKey] = []
        """Placements that were looked at and whose version is not in the view."""
        self._needs: list[_Need] = []
        self._worth: list[tuple[float, VersionKey]] = []

    def duties(self, keys: Iterable[VersionKey] | None = None, *, fill: bool = False) -> list[Duty]:
        """Return what to write, most urgent first; of `keys` alone when they are given. O(versions + writes x nodes).

        `fill` looks for models worth having in memory that is free, too.
        """
        self.look(self.keys() if keys is None else keys)
        if fill:
            self.look_to_fill(self._demand.learner.histories)
        return self.decide()

    def look(self, keys: Iterable[VersionKey]) -> None:
        """Note which of `keys` have too few or too many copies. O(keys)."""
        self._needs += [need for key in keys if (need := self._need(key)) is not None]

    def look_to_fill(self, keys: Iterable[VersionKey]) -> None:
        """Note which of `keys` are worth having in memory that is free, when there is some. O(keys)."""
        if self._left <= 0 or not any(_free_share(self._nodes[id_]) > FREE_SHARE for id_ in self._staying):
            return
        rates = ((self._demand.rate(key, self._now_s), key) for key in keys)
        self._worth += [(rate, key) for rate, key in rates if rate >= HOT_RATE and self._may_fill(key)]

    def decide(self) -> list[Duty]:
        """Return what to write about all that was looked at, most urgent first. O(needs log needs + writes x nodes)."""
        self._needs.sort(key=lambda need: (need.urgency, -need.rate, need.key))
        found = [duty for need in self._needs if (duty := self._duty(need)) is not None]
        return found + list(self._fill({(duty.after.model, duty.after.version) for duty in found}))

    def keys(self) -> Iterator[VersionKey]:
        """Yield the versions that a whole pass looks at: those with a placement or a minimum."""
        view = self._view
        yield from view.placements
        for name, versions in view.models.items():
            for version, model in versions.items():
                if model.scaling.min_copies and (name, version) not in view.placements:
                    yield name, version

    def _need(self, key: VersionKey) -> _Need | None:
        """Return what is wrong with the number of a version's copies; None when nothing is."""
        view = self._view
        model = view.models.get(key[0], {}).get(key[1])
        placement = view.placements.get(key)
        if model is None and placement is not None:
            self.orphans.append(key)
        if model is None or (placement is not None and placement.off):
            return None
        named = placement.nodes if placement is not None else ()
        scaler, copies = self._demand.scalers.get(key), self._copies(key)
        have = tuple(node for node in named if node in self._staying and not _failed(copies.get(node)))
        ready = sum(node in copies and copies[node].state is CopyState.READY for node in have)
        rate = self._demand.rate(key, self._now_s)
        missing = self._missing(key, model.scaling.min_copies, have, rate)
        if missing is not None:
            return missing
        if not have or (scaler is None and len(have) == 1 and _is_content_with_one(model.scaling)):
            # Without a copy it was evicted: callers bring it back, or free memory does, and never at others' expense.
            return None
        desired = (scaler or Scaler(self._begun_s)).desired(
            model.scaling, ready=ready, now=len(have), nodes=len(self._staying), now_s=self._now_s
        )
        if desired.copies == len(have) or (desired.copies < len(have) and ready < len(have)):
            return None
        if desired.copies == len(have) - 1 == 1 and self._demand.average(key, self._now_s) >= STEADY_RATE / 2:
            return None  # The second copy of a model in steady use stays while nobody needs its memory.
        return _Need(3, rate, key, have, desired.copies, desired.why)

    def _missing(self, key: VersionKey, least: int, have: tuple[NodeId, ...], rate: float) -> _Need | None:
        """Return the need of a version that is without a copy it should have whatever its load; else None."""
        view = self._view
        if len(have) >= max(1, least):
            return None
        serving, want = bool(view.serving.get(key)), max(1, least)
        named = view.placements[key].nodes if key in view.placements else ()
        lost = [node for node in named if node not in view.nodes]
        if not have and lost and not serving and rate >= HOT_RATE:
            return _Need(0, rate, key, have, want, f"its last copy went with node {lost[0]}")
        if not have and serving and (rate >= HOT_RATE or least):
            return _Need(1, rate, key, have, want, "the node that serves it is leaving")
        if len(have) < least and len(have) < len(self._staying):
            return _Need(2, rate, key, have, least, f"it is never to have fewer than {least}")
        return None

    def _duty(self, need: _Need) -> Duty | None:
        if need.want < len(need.have):
            return self._take_away(need)
        return self._add(need, spare=False)

    def _add(self, need: _Need, *, spare: bool) -> Duty | None:
        """Return the placement with more nodes; None when no node can take it, or too many loads go on already."""
        if self._left <= 0:
            self.more = True
            return None
        view, key = self._view, need.key
        model = view.models[key[0]][key[1]]
        before = view.placements.get(key)
        asked = self._asked(key, model)
        choice = choose(asked, list(self._nodes.values()), need.want - len(need.have))
        chosen = [each for each in choice.scored[: need.want - len(need.have)] if not spare or _is_free(each)]
        if not chosen:
            return None
        for each in chosen:
            self._nodes[each.on.id] = each.without_room(asked)
            self._left -= 1
        kept = tuple(node for node in (before.nodes if before else ()) if node in view.nodes)
        nodes = kept + tuple(each.on.id for each in chosen if each.on.id not in kept)
        after = replace(before or Placement(*key, requested_s=self._now_s), nodes=nodes)
        if any(each.on.id in asked.copies for each in chosen):
            # It failed there, long enough ago: a node tries again for another request only.
            after = replace(after, requested_s=next_request_s(before, self._now_s))
        where = ", ".join(each.on.id for each in chosen)
        return Duty(before, after, f"a copy more on {where}: {need.why}")

    def _take_away(self, need: _Need) -> Duty | None:
        """Return the placement without the copy whose node has the least memory left."""
        before = self._view.placements[need.key]
        going = min(need.have, key=lambda id_: (_free_share(self._nodes[id_]), id_))
        nodes = tuple(node for node in before.nodes if node != going)
        return Duty(before, replace(before, nodes=nodes), f"a copy less, on {going}: {need.why}", fewer=True)

    def _fill(self, done: Collection[VersionKey]) -> Iterator[Duty]:
        """Yield what is worth having in free memory: models in demand that no node holds, second copies of the busy."""
        worth = (each for each in self._worth if each[1] not in done)
        for rate, key in nlargest(max(0, self._left), worth):
            have = self._view.placements[key].nodes if key in self._view.placements else ()
            have = tuple(node for node in have if node in self._staying)
            why = "a second one for steady use" if have else "in demand, and memory is free"
            duty = self._add(_Need(4, rate, key, have, len(have) + 1, why), spare=True)
            if duty is not None:
                yield duty

    def _may_fill(self, key: VersionKey) -> bool:
        view = self._view
        model = view.models.get(key[0], {}).get(key[1])
        placement = view.placements.get(key)
        if model is None or (placement is not None and placement.off):
            return False
        if any(each.copy.state is not CopyState.READY for each in view.copies.get(key, ())):
            return False
        have = sum(node in self._staying for node in placement.nodes) if placement is not None else 0
        if not have:
            return not view.serving.get(key)
        limit = model.scaling.max_copies or len(self._staying)
        return have == 1 < limit and self._demand.average(key, self._now_s) >= STEADY_RATE

    def _copies(self, key: VersionKey) -> dict[NodeId, Copy]:
        return {each.node.id: each.copy for each in self._view.copies.get(key, ())}

    def _asked(self, key: VersionKey, model: ModelVersion) -> Asked:
        located = self._view.copies.get(key, ())
        zones = zones_of(self._view, [each.node.id for each in located if each.node.id in self._staying])
        copies = {each.node.id: each.copy for each in located}
        near, factors = neighbours_of(self._view, model), self._view.forecast.factors
        suspect = self._view.suspect(model)
        return Asked(model, self._now_s, copies, zones=zones, factors=factors, neighbours=near, suspect=suspect)


def _failed(copy: Copy | None) -> bool:
    return copy is not None and copy.state is CopyState.FAILED


def _is_content_with_one(scaling: Scaling) -> bool:
    """Tell whether a version that nobody asks for is right with one copy: what nearly all are, and quick to see."""
    return scaling.min_copies <= 1 and scaling.scale_to_zero is ScaleToZero.PRESSURE


def _free_share(node: Node) -> float:
    return max((device.free_bytes / max(1, device.total_bytes) for device in node.devices), default=0.0)


def _is_free(each: Scored) -> bool:
    return not each.room.evicts_bytes and each.room.free_share >= FREE_SHARE
