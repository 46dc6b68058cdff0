"""`ClusterView`: the frozen, indexed picture of the registry that every request and every decision reads.

A view is published by one assignment and never changes. `mesh.core.fold` makes the next one from changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from immutables import Map

from mesh.core.pipeline.spec import Pipeline
from mesh.core.placement.forecast import SUPPOSED, Forecast
from mesh.core.suspects import Suspect, quarantined_s
from mesh.core.types import Copy, CopyState, ModelName, ModelVersion, Node, NodeId, Placement, Version

VersionKey = tuple[ModelName, Version]


@dataclass(frozen=True, slots=True)
class Host:
    """What requests need to know of a node. It changes seldom, unlike a `Node` with its free memory."""

    id: NodeId
    address: str
    """host:port of its gRPC server."""
    incarnation: str
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Located:
    """A copy together with the node it is on."""

    node: Host
    copy: Copy


@dataclass(frozen=True, slots=True)
class ClusterView:
    """Nodes, models, placements and the copies of every version at one registry revision.

    The maps that grow with the models are persistent ones (`immutables.Map`): the next view shares all that stayed.
    Their order means nothing.
    """

    revision: int = 0
    nodes: Mapping[NodeId, Node] = field(default_factory=dict)
    models: Mapping[ModelName, Mapping[Version, ModelVersion]] = field(default_factory=Map)
    placements: Mapping[VersionKey, Placement] = field(default_factory=Map)
    held: Mapping[NodeId, Mapping[VersionKey, Copy]] = field(default_factory=dict)
    """What each node says of its copies; it may name a node that is not in `nodes` (yet, or any more)."""
    copies: Mapping[VersionKey, tuple[Located, ...]] = field(default_factory=Map)
    """Every copy in every state on a node of `nodes`, in the order of the nodes' ids. Index of `held`."""
    serving: Mapping[VersionKey, tuple[Located, ...]] = field(default_factory=Map)
    """The copies that may take new work: ready, on a node that is not draining. Subset of `copies`."""
    placed: Mapping[NodeId, Mapping[VersionKey, Placement]] = field(default_factory=dict)
    """The placements that name a node, by node. Index of `placements`."""
    pipelines: Mapping[str, Pipeline] = field(default_factory=Map)
    """By name. A model of the same name wins."""
    used_in: Mapping[str, tuple[str, ...]] = field(default_factory=Map)
    """By the name of a model: the pipelines that have it as a step. Index of `pipelines`."""
    forecast: Forecast = SUPPOSED
    """What the leader learned of the demand."""
    suspects: Mapping[VersionKey, Suspect] = field(default_factory=Map)
    """The versions that ended processes."""

    def versions(self, name: ModelName) -> tuple[Version, ...]:
        """Return the versions of `name`, the latest first; empty for an unknown model. O(versions)."""
        return tuple(sorted(self.models.get(name, ()), key=version_order, reverse=True))

    def resolve(self, name: ModelName, version: Version) -> ModelVersion | None:
        """Return the record of `version`, or of the latest version that is not off when `version` is empty.

        None for an unknown model, an unknown version, or when every version is off. O(versions).
        """
        held = self.models.get(name)
        if held is None:
            return None
        if version:
            return held.get(version)
        for candidate in self.versions(name):
            placement = self.placements.get((name, candidate))
            if placement is None or not placement.off:
                return held[candidate]
        return None

    def suspect(self, model: ModelVersion) -> Suspect | None:
        """Return what is known of a version that ended processes; None for nearly all. O(1)."""
        suspect = self.suspects.get((model.name, model.version)) if self.suspects else None
        return suspect if suspect is not None and suspect.digest == model.digest else None

    def quarantined(self, now_s: float) -> list[VersionKey]:
        """Return the versions whose callers are refused. O(versions that ended processes)."""
        found = []
        for key, suspect in self.suspects.items():
            model = self.models.get(key[0], {}).get(key[1])
            if model is not None and quarantined_s(suspect, model.digest, now_s):
                found.append(key)
        return found

    def is_off(self, key: VersionKey) -> bool:
        """Tell whether an operator unloaded this version."""
        placement = self.placements.get(key)
        return placement is not None and placement.off

    def __repr__(self) -> str:
        """Show the counts, for logs and tests."""
        copies = sum(len(each) for each in self.copies.values())
        return (
            f"<ClusterView revision={self.revision} nodes={len(self.nodes)} models={len(self.models)} "
            f"placements={len(self.placements)} copies={copies}>"
        )


def version_order(version: Version) -> tuple[int, int, str]:
    """Return the sort key of a version: numbers by value, above any other text by its letters."""
    return (1, int(version), "") if version.isdecimal() else (0, 0, version)


def may_serve(located: Located) -> bool:
    """Tell whether a copy may take new work."""
    return located.copy.state is CopyState.READY and not located.node.draining
