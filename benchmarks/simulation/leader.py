"""The leading router of a simulated mesh: real demand, real passes, over a view that real changes were folded to.

It reads once a second what was asked of the copies, as a real one does, and never more than that.
"""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.simulation.world import World
from mesh.core.fold import Change, CopyChange, ModelChange, NodeChange, PlacementChange, fold
from mesh.core.placement.demand import Demand, Usage
from mesh.core.placement.duties import HOT_RATE, Duty, Pass
from mesh.core.types import Copy, CopyState, ModelVersion, NodeId, Placement
from mesh.core.view import ClusterView, VersionKey
from mesh.router.steward import READ_S, TELL_S, WHOLE_S


class Leader:
    """Follows a `World` and does its duties at `passed`."""

    def __init__(self, world: World, models: Iterable[ModelVersion]) -> None:
        self._world = world
        self._demand = Demand()
        self._begun_s = self._read_s = self._looked_s = self._told_s = world.now_s
        self._placements: dict[VersionKey, Placement] = {}
        self._more = False
        self._pending: list[Change] = [ModelChange((model.name, model.version), model) for model in models]
        self._view = ClusterView()
        world.forecast = self._demand.forecast

    def told(self, id_: NodeId) -> None:
        """Hear a node's record, or that it is gone."""
        node = self._world.nodes.get(id_)
        self._pending.append(NodeChange(id_, node.record if node is not None else None))

    def moved(self, key: VersionKey, id_: NodeId, *, loaded: bool) -> None:
        """Hear that a copy came or went. A node that evicts leaves the placement as well; one that dies does not."""
        copy = Copy(*key, CopyState.READY, digest=key[0]) if loaded else None
        self._pending.append(CopyChange(id_, key, copy))
        before = self._placements.get(key) or Placement(*key, requested_s=self._world.now_s)
        if loaded and id_ not in before.nodes:
            self._place(key, Placement(*key, (*before.nodes, id_), requested_s=before.requested_s))
        elif not loaded and id_ in self._world.nodes:
            self._place(key, Placement(*key, tuple(each for each in before.nodes if each != id_), requested_s=1.0))

    def passed(self) -> None:
        """Read and look, when it is time to."""
        world, now_s = self._world, self._world.now_s
        if now_s - self._read_s < READ_S:
            return
        told = [
            (id_, Usage(key, count, count * 0.01, 0, now_s - last_s))
            for (id_, key), (count, last_s) in world.counts.items()
            if last_s >= self._read_s
        ]
        self._demand.read(told, self._read_s, now_s)
        self._read_s = now_s
        if now_s - self._told_s >= TELL_S:
            self._told_s = now_s
            world.forecast = self._demand.forecast = self._demand.learner.forecast()
        members = any(isinstance(change, NodeChange) and change.node is None for change in self._pending)
        self._view = fold(self._view, self._pending, self._view.revision + 1)
        self._pending.clear()
        whole = members or self._more or now_s - self._looked_s >= WHOLE_S
        self._looked_s = now_s if whole else self._looked_s
        work = Pass(self._view, self._demand, now_s=now_s, begun_s=self._begun_s)
        for duty in work.duties(None if whole else list(self._demand.scalers), fill=whole):
            self._do(duty)
        self._more = work.more if whole else self._more

    def hot_on(self, id_: NodeId) -> list[VersionKey]:
        """Return the models in demand that only this node holds: what a node that leaves waits for."""
        rate, now_s = self._demand.rate, self._world.now_s
        where = self._world.where
        return [key for key in self._world.nodes[id_].held if where[key] == {id_} and rate(key, now_s) >= HOT_RATE]

    def _do(self, duty: Duty) -> None:
        key = (duty.after.model, duty.after.version)
        before = set(duty.before.nodes if duty.before is not None else ())
        self._place(key, duty.after)
        model = self._view.models[key[0]][key[1]]
        for id_ in set(duty.after.nodes) - before:
            self._world.load_on(self._world.nodes[id_], key, model)
        for id_ in before - set(duty.after.nodes):
            node = self._world.nodes.get(id_)
            if node is not None and key in node.held:
                node.drop(key, self._world)
                self._world.publish(node)
        if duty.fewer:
            self._demand.lowered(key, self._world.now_s, self._begun_s)

    def _place(self, key: VersionKey, placement: Placement) -> None:
        self._placements[key] = placement
        self._pending.append(PlacementChange(key, placement))
