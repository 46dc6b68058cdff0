"""From (view, changes) to the next view.

A change is one registry key that now has a record, or none. Folding changes one by one gives the same view as folding
them all at once from an empty one (tests/core/test_fold.py), so a watch and a fresh list never disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from mesh.core.placement.forecast import SUPPOSED, Forecast
from mesh.core.types import ModelVersion, Node, NodeId, Placement, Version
from mesh.core.view import ClusterView, Located, VersionKey, may_serve

Record = Node | ModelVersion | Placement

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class NodeChange:
    """A node's record came, changed or (None) went."""

    id: NodeId
    node: Node | None


@dataclass(frozen=True, slots=True)
class ModelChange:
    """A version's record came, changed or (None) went."""

    key: VersionKey
    model: ModelVersion | None


@dataclass(frozen=True, slots=True)
class PlacementChange:
    """A placement came, changed or (None) went."""

    key: VersionKey
    placement: Placement | None


@dataclass(frozen=True, slots=True)
class ForecastChange:
    """The leader told its forecast anew, or (None) it went."""

    forecast: Forecast | None


Change = NodeChange | ModelChange | PlacementChange | ForecastChange


def fold(view: ClusterView, changes: Iterable[Change], revision: int) -> ClusterView:
    """Return the view after `changes`, at `revision`. O(keys in the maps that changed)."""
    nodes = dict(view.nodes)
    models = dict(view.models)
    placements = dict(view.placements)
    placed = dict(view.placed)
    fresh: set[NodeId] = set()
    forecast = view.forecast
    touched: set[VersionKey] = set()
    for change in changes:
        match change:
            case NodeChange(id_, node):
                for each in (nodes.get(id_), node):
                    touched.update((copy.model, copy.version) for copy in (each.copies if each else ()))
                _set(nodes, id_, node)
            case ModelChange((name, version), model):
                held: dict[Version, ModelVersion] = dict(models.get(name, {}))
                _set(held, version, model)
                _set(models, name, held or None)
            case PlacementChange(key, placement):
                _index(placed, fresh, placements.get(key), placement)
                _set(placements, key, placement)
            case ForecastChange(told):
                forecast = told or SUPPOSED
    if not touched:
        return ClusterView(revision, nodes, models, placements, view.copies, view.serving, placed, forecast)
    copies, serving = dict(view.copies), dict(view.serving)
    found: dict[VersionKey, list[Located]] = {key: [] for key in touched}
    for id_ in sorted(nodes):
        for copy in nodes[id_].copies:
            listed = found.get((copy.model, copy.version))
            if listed is not None:
                listed.append(Located(nodes[id_], copy))
    # A node whose record changed must be the same object in every Located: its other copies are in `touched` too,
    # because a node's own copies before and after were all added above.
    for key, located in found.items():
        _set(copies, key, tuple(located) or None)
        _set(serving, key, tuple(each for each in located if may_serve(each.node, each.copy)) or None)
    return ClusterView(revision, nodes, models, placements, copies, serving, placed, forecast)


def _index(
    placed: dict[NodeId, Mapping[VersionKey, Placement]],
    fresh: set[NodeId],
    before: Placement | None,
    after: Placement | None,
) -> None:
    """Note in `placed` that a placement changed. What is in `fresh` is this fold's own and may be written to."""
    for placement in (before, after):
        if placement is None:
            continue
        key = (placement.model, placement.version)
        for node in placement.nodes:
            held = placed.get(node, {})
            if node not in fresh:
                held = dict(held)
                fresh.add(node)
            assert isinstance(held, dict)
            _set(held, key, None if placement is before else placement)
            _set(placed, node, held or None)
            if not held:
                fresh.discard(node)


def _set(mapping: dict[K, V], key: K, value: V | None) -> None:
    if value is None:
        mapping.pop(key, None)
    else:
        mapping[key] = value
