"""What a placement is decided from: what is asked for, and the room for it on a node."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from mesh.core.placement.ledger import predicted_bytes
from mesh.core.suspects import Suspect
from mesh.core.types import Copy, Device, ModelName, ModelVersion, Node, NodeId, Version
from mesh.core.view import ClusterView

ZONE_LABEL: Final = "zone"
"""The node label that says what fails together. (Kubernetes: topology.kubernetes.io/zone, which counts too.)"""

_ZONE_LABELS: Final = (ZONE_LABEL, "topology.kubernetes.io/zone")


def zone_of(node: Node) -> str:
    """Return what a node fails together with; itself when it has no such label."""
    for label in _ZONE_LABELS:
        zone = node.labels.get(label)
        if zone:
            return zone
    return f"node {node.id}"


def zones_of(view: ClusterView, nodes: Iterable[NodeId]) -> set[str]:
    """Return the zones of `nodes`, as far as they are there."""
    return {zone_of(view.nodes[id_]) for id_ in nodes if id_ in view.nodes}


def neighbours_of(view: ClusterView, model: ModelVersion) -> dict[NodeId, int]:
    """Return how many models of the pipelines that `model` is in are placed on each node. O(their steps)."""
    found: dict[NodeId, int] = {}
    others = {
        (step.model, step.version)
        for name in view.used_in.get(model.name, ())
        for step in view.pipelines[name].steps
        if step.model != model.name
    }
    for name, version in others:
        known = view.resolve(ModelName(name), Version(version))
        placement = view.placements.get((known.name, known.version)) if known is not None else None
        for node in placement.nodes if placement is not None else ():
            found[node] = found.get(node, 0) + 1
    return found


@dataclass(frozen=True, slots=True)
class Room:
    """Where on a node the version would go and what that costs."""

    device: Device
    evicts_bytes: int
    """Bytes of idle copies that would go; 0 when there is room."""
    loss: float
    """What they are worth: seconds of callers' waiting per second."""
    free_share: float
    """Share of the device that stays free, 0 when something must go."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be placed and what is known about it."""

    model: ModelVersion
    now_s: float
    """By this process's clock."""
    copies: Mapping[NodeId, Copy] = field(default_factory=dict)
    """Its copies, in any state."""
    avoid: Collection[NodeId] = ()
    """Nodes whose connection failed a moment ago."""
    forced: bool = False
    """Loads that failed do not count: an operator asks again."""
    zones: Collection[str] = ()
    """Zones with a copy: another one goes elsewhere if it can."""
    factors: Mapping[str, float] = field(default_factory=dict)
    """Bytes in memory per byte of files, by runtime."""
    neighbours: Mapping[NodeId, int] = field(default_factory=dict)
    """How many models of the same pipelines are on each node."""
    suspect: Suspect | None = None
    """What is known of it when it ended processes."""

    needs: int = field(init=False)
    """Bytes it is expected to take."""

    def __post_init__(self) -> None:
        """Work out what is asked of every node once."""
        object.__setattr__(self, "needs", predicted_bytes(self.model, self.factors))

    def room_on(self, on: Node) -> Room | None:
        """Return the cheapest room for it on a node; None when no device has enough, even without its idle copies."""
        best: Room | None = None
        needs, kind = self.needs, self.model.device
        for device in on.devices:
            if kind not in ("auto", device.kind.value):
                continue
            missing = needs - device.free_bytes
            if missing <= 0:
                found = Room(device, 0, 0.0, -missing / max(1, device.total_bytes))
            else:
                point = next((point for point in device.curve if point[0] >= missing), None)
                if point is None:
                    continue
                found = Room(device, point[0], point[1], 0.0)
            if best is None or (found.loss, -found.free_share) < (best.loss, -best.free_share):
                best = found
        return best
