"""Nodes that load and evict as real ones do, and a router that places as a real one does, in virtual time."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

from mesh.core.placement.asked import Asked
from mesh.core.placement.choose import choose
from mesh.core.placement.evict import Idle, curve, in_order, victims
from mesh.core.placement.forecast import SUPPOSED, Forecast, Learner
from mesh.core.placement.ledger import Ledger, predicted_bytes
from mesh.core.types import (
    Copy,
    CopyState,
    Device,
    DeviceKind,
    ModelName,
    ModelVersion,
    Node,
    NodeId,
    Version,
)
from mesh.core.view import VersionKey

LEARN_S = 10.0
"""How often the forecast is published."""
REFRESH_S = 5.0
"""How often a node tells what it has when nothing changed on it."""


class SimNode:
    """One node: a ledger, its copies, and the record it told last."""

    def __init__(self, name: str, capacity: int, zone: str) -> None:
        self.ledger = Ledger(capacity)
        device = Device(DeviceKind.CPU, 0, "cpu", capacity, capacity)
        labels = {"zone": zone} if zone else {}
        self.record = Node(NodeId(name), name, name, labels=labels, devices=(device,), repositories=("file:///r",))
        self.held: dict[VersionKey, ModelVersion] = {}
        self.told_s = 0.0

    def order(self, world: World) -> list[Idle]:
        """Return the copies that may go, in the order in which they go: all, as requests take no time here."""
        now_s, rate, histories = world.now_s, world.forecast.rate, world.learner.histories
        found = []
        for key, model in self.held.items():
            history = histories[key]
            loss = rate(history, now_s) * model.load_s
            found.append(Idle(key, self.ledger.bytes_of(key), loss, history.last_s))
        return in_order(found)

    def tell(self, world: World) -> None:
        """Publish what the node would tell now."""
        self.told_s = world.now_s
        device = replace(self.record.devices[0], free_bytes=self.ledger.free, curve=curve(self.order(world)))
        self.record = replace(self.record, devices=(device,))

    def load(self, key: VersionKey, model: ModelVersion, world: World) -> bool:
        """Load, evicting what has to go; False when what is idle is not enough."""
        needs = predicted_bytes(model)
        if not self.ledger.reserve(key, needs):
            going = victims(needs - self.ledger.free, self.order(world))
            if going is None:
                return False
            for each in going:
                self.drop(each.key, world)
            assert self.ledger.reserve(key, needs)
        self.ledger.commit(key, needs)
        self.held[key] = model
        return True

    def drop(self, key: VersionKey, world: World) -> None:
        """Evict one copy."""
        del self.held[key]
        self.ledger.release(key)
        world.dropped(key, self.record.id)


@dataclass(slots=True)
class Outcome:
    """What came of a trace."""

    requests: int = 0
    hits: int = 0
    cold_starts: int = 0
    """Loads that a request waited for."""
    loads: int = 0
    """All loads."""
    refused: int = 0
    moved_bytes: int = 0
    plans_us: list[float] = field(default_factory=list)


class Follower(Protocol):
    """Who hears what happens: the leader, where there is one."""

    def told(self, id_: NodeId) -> None:
        """Hear that a node told its record, or is gone."""

    def moved(self, key: VersionKey, id_: NodeId, *, loaded: bool) -> None:
        """Hear that a copy came or went."""

    def passed(self) -> None:
        """Hear that time passed."""


class World:
    """The mesh: nodes by id, where each version is, and what was learned of the demand."""

    def __init__(self, capacities: Iterable[int], *, zones: int = 0) -> None:
        self.follower: Follower | None = None
        self.counts: dict[tuple[NodeId, VersionKey], tuple[int, float]] = {}
        """Requests of each copy and when the last one came; kept for a follower."""
        self.now_s = 1e6
        self.nodes: dict[NodeId, SimNode] = {}
        for number, capacity in enumerate(capacities):
            name = f"node-{number:05}"
            self.nodes[NodeId(name)] = SimNode(name, capacity, f"zone-{number % zones}" if zones else "")
        self.where: dict[VersionKey, set[NodeId]] = {}
        self.learner: Learner[VersionKey] = Learner()
        self.forecast: Forecast = SUPPOSED
        self.outcome = Outcome()
        self._learned_s = self.now_s
        self._turn = 0
        self._roster: list[Node] = []
        self._places: dict[NodeId, int] = {}
        self._seat()

    def ask(self, model: ModelVersion, now_s: float) -> None:
        """Handle one request: count it, find a copy or load one."""
        self.now_s = now_s
        key = (model.name, model.version)
        self.learner.asked(key, 1, now_s)
        if self.follower is None and now_s - self._learned_s >= LEARN_S:
            self._learned_s = now_s
            self.forecast = self.learner.forecast()
        self.outcome.requests += 1
        if key in self.where:
            self.outcome.hits += 1
        else:
            self.load(key, model)
        if self.follower is not None:
            if key in self.where:
                copy = (min(self.where[key]), key)
                self.counts[copy] = (self.counts.get(copy, (0, 0.0))[0] + 1, now_s)
            self.follower.passed()

    def load(self, key: VersionKey, model: ModelVersion) -> None:
        """Place and load one copy. A node that had to refuse tells what it has, and others are tried."""
        for _ in range(3):
            began = time.perf_counter()
            choice = choose(Asked(model, self.now_s, self._copies(key)), self._roster, 1)
            self.outcome.plans_us.append((time.perf_counter() - began) * 1e6)
            if not choice.nodes:
                break
            if self.load_on(self.nodes[choice.nodes[0]], key, model):
                self.outcome.cold_starts += 1
                self._refresh()
                return
        self.outcome.refused += 1
        self._refresh()

    def load_on(self, node: SimNode, key: VersionKey, model: ModelVersion) -> bool:
        """Let one node load a copy; tell whether it found the room."""
        done = node.load(key, model, self)
        self.publish(node)
        if done:
            self.where.setdefault(key, set()).add(node.record.id)
            self.outcome.loads += 1
            self.outcome.moved_bytes += model.size_bytes
            if self.follower is not None:
                self.follower.moved(key, node.record.id, loaded=True)
        return done

    def dropped(self, key: VersionKey, id_: NodeId) -> None:
        """Note that a copy is gone."""
        self.where[key].discard(id_)
        if not self.where[key]:
            del self.where[key]
        self.counts.pop((id_, key), None)
        if self.follower is not None:
            self.follower.moved(key, id_, loaded=False)

    def follow(self, follower: Follower) -> None:
        """Tell `follower` what is and what happens from now on."""
        self.follower = follower
        for id_ in self.nodes:
            follower.told(id_)

    def lose(self, gone: Iterable[NodeId]) -> None:
        """Nodes die, with all that is on them."""
        for id_ in gone:
            node = self.nodes.pop(id_)
            for key in list(node.held):
                node.drop(key, self)
            if self.follower is not None:
                self.follower.told(id_)
        self._seat()

    def leave(self, id_: NodeId) -> None:
        """Let a node say that it is leaving: nothing new is placed on it."""
        node = self.nodes[id_]
        node.record = replace(node.record, leaving=True)
        self.publish(node)

    def join(self, name: str, capacity: int, zone: str = "") -> None:
        """Start an empty node."""
        node = SimNode(name, capacity, zone)
        self.nodes[node.record.id] = node
        self._seat()
        self.publish(node)

    def _copies(self, key: VersionKey) -> dict[NodeId, Copy]:
        return {id_: Copy(*key, CopyState.READY) for id_ in self.where.get(key, ())}

    def _refresh(self) -> None:
        """Let the node whose turn it is tell what it has again, when it is due."""
        self._turn += 1
        node = self.nodes[self._roster[self._turn % len(self._roster)].id]
        if self.now_s - node.told_s >= REFRESH_S:
            self.publish(node)

    def publish(self, node: SimNode) -> None:
        """Let a node tell what it has now."""
        node.tell(self)
        self._roster[self._places[node.record.id]] = node.record
        if self.follower is not None:
            self.follower.told(node.record.id)

    def _seat(self) -> None:
        self._roster = [self.nodes[id_].record for id_ in sorted(self.nodes)]
        self._places = {record.id: place for place, record in enumerate(self._roster)}


def model_of(name: str, size_bytes: int, load_s: float = 1.0) -> ModelVersion:
    """Return a version of `size_bytes` that takes as many in memory."""
    source = f"file:///r/{name}/1"
    return ModelVersion(
        ModelName(name), Version("1"), "onnx", source, name, size_bytes, loaded_bytes=size_bytes, load_s=load_s
    )
