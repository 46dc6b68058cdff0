"""From (view, changes) to the next view.

A change is one registry key that now has a record, or none. Folding changes one by one gives the same view as folding
them all at once from an empty one (tests/core/test_fold.py), so a watch and a fresh list never disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from immutables import Map, MapMutation

from mesh.core.pipeline.spec import Pipeline
from mesh.core.placement.forecast import SUPPOSED, Forecast
from mesh.core.suspects import Suspect
from mesh.core.types import Copy, ModelName, ModelVersion, Node, NodeId, Placement, Version
from mesh.core.view import ClusterView, Host, Located, VersionKey, may_serve

Record = Node | ModelVersion | Placement

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class NodeChange:
    """A node's record came, changed or (None) went."""

    id: NodeId
    node: Node | None


@dataclass(frozen=True, slots=True)
class CopyChange:
    """A copy's record came, changed or (None) went."""

    node: NodeId
    key: VersionKey
    copy: Copy | None


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
class PipelineChange:
    """A pipeline came, changed or (None) went."""

    name: str
    pipeline: Pipeline | None


@dataclass(frozen=True, slots=True)
class ForecastChange:
    """The leader told its forecast anew, or (None) it went."""

    forecast: Forecast | None


@dataclass(frozen=True, slots=True)
class SuspectChange:
    """What is known of a version that ended processes came, changed or (None) went."""

    key: VersionKey
    suspect: Suspect | None


Change = NodeChange | CopyChange | ModelChange | PlacementChange | PipelineChange | ForecastChange | SuspectChange


def fold(view: ClusterView, changes: Iterable[Change], revision: int) -> ClusterView:
    """Return the view after `changes`, at `revision`. O(changes x log keys + nodes + copies of nodes that moved).

    A map in which nothing changed is the same object as before.
    """
    copies = _Copies(view)
    models, placements = _Changing(view.models), _Changing(view.placements)
    placed: _Grouped[Placement] = _Grouped(view.placed)
    pipelines, used_in = _Changing(view.pipelines), _Changing(view.used_in)
    suspects = _Changing(view.suspects)
    forecast = view.forecast
    for change in changes:
        match change:
            case NodeChange(id_, node):
                copies.node(id_, node)
            case CopyChange(id_, key, copy):
                copies.copy(id_, key, copy)
            case ModelChange((name, version), model):
                _fold_model(models, name, version, model)
            case PlacementChange(key, placement):
                _fold_placement(placed, key, placements.get(key), placement)
                placements.set(key, placement)
            case PipelineChange(called, pipeline):
                _fold_pipeline(used_in, called, pipelines.get(called), pipeline)
                pipelines.set(called, pipeline)
            case ForecastChange(told):
                forecast = told or SUPPOSED
            case SuspectChange(key, suspect):
                suspects.set(key, suspect)
    listed, serving = copies.indexes()
    return ClusterView(
        revision,
        copies.nodes,
        models.finish(),
        placements.finish(),
        copies.held.finish(),
        listed,
        serving,
        placed.finish(),
        pipelines.finish(),
        used_in.finish(),
        forecast,
        suspects.finish(),
    )


def _fold_model(
    models: _Changing[ModelName, Mapping[Version, ModelVersion]],
    name: ModelName,
    version: Version,
    model: ModelVersion | None,
) -> None:
    held = dict(models.get(name) or {})
    if model is None:
        held.pop(version, None)
    else:
        held[version] = model
    models.set(name, held or None)


def _fold_placement(
    placed: _Grouped[Placement], key: VersionKey, before: Placement | None, after: Placement | None
) -> None:
    for id_ in before.nodes if before is not None else ():
        placed.set(id_, key, None)
    for id_ in after.nodes if after is not None else ():
        placed.set(id_, key, after)


def _fold_pipeline(
    used_in: _Changing[str, tuple[str, ...]], name: str, before: Pipeline | None, after: Pipeline | None
) -> None:
    for model in {step.model for step in (before.steps if before is not None else ())}:
        used_in.set(model, tuple(each for each in used_in.get(model) or () if each != name) or None)
    for model in {step.model for step in (after.steps if after is not None else ())}:
        used_in.set(model, tuple(sorted({*(used_in.get(model) or ()), name})))


class _Changing(Generic[K, V]):
    """A map, being changed as soon as something is set."""

    def __init__(self, before: Mapping[K, V]) -> None:
        self._before = before
        self._now: MapMutation[K, V] | None = None

    def get(self, key: K) -> V | None:
        return self._before.get(key) if self._now is None else self._now.get(key)

    def set(self, key: K, value: V | None) -> None:
        if self._now is None:
            self._now = (self._before if isinstance(self._before, Map) else Map(self._before)).mutate()
        if value is None:
            self._now.pop(key, None)
        else:
            self._now[key] = value

    def finish(self) -> Mapping[K, V]:
        return self._before if self._now is None else self._now.finish()


class _Grouped(Generic[V]):
    """Maps by node, being changed; a node's map is there while it holds something."""

    def __init__(self, before: Mapping[NodeId, Mapping[VersionKey, V]]) -> None:
        self._before = before
        self._changing: dict[NodeId, _Changing[VersionKey, V]] = {}

    def set(self, node: NodeId, key: VersionKey, value: V | None) -> None:
        self._of(node).set(key, value)

    def get(self, node: NodeId, key: VersionKey) -> V | None:
        return self._of(node).get(key)

    def _of(self, node: NodeId) -> _Changing[VersionKey, V]:
        changing = self._changing.get(node)
        if changing is None:
            changing = self._changing[node] = _Changing(self._before.get(node, Map()))
        return changing

    def finish(self) -> Mapping[NodeId, Mapping[VersionKey, V]]:
        if not self._changing:
            return self._before
        after = dict(self._before)
        for node, changing in self._changing.items():
            if held := changing.finish():
                after[node] = held
            else:
                after.pop(node, None)
        return after


class _Copies:
    """Nodes and their copies, being changed, and which entries of the indexes that concerns."""

    def __init__(self, view: ClusterView) -> None:
        self._before = view
        self.nodes = view.nodes
        self.held: _Grouped[Copy] = _Grouped(view.held)
        self._own = False
        self._touched: dict[VersionKey, set[NodeId]] = {}

    def node(self, id_: NodeId, node: Node | None) -> None:
        if not self._own:
            self.nodes, self._own = dict(self.nodes), True
        assert isinstance(self.nodes, dict)
        before = self.nodes.get(id_)
        if node is None:
            self.nodes.pop(id_, None)
        else:
            self.nodes[id_] = node
        if _host(before) != _host(node):
            # Copies that come or go in the same fold are touched by their own changes.
            for key in self._before.held.get(id_, ()):
                self._touch(id_, key)

    def copy(self, id_: NodeId, key: VersionKey, copy: Copy | None) -> None:
        self.held.set(id_, key, copy)
        self._touch(id_, key)

    def indexes(
        self,
    ) -> tuple[Mapping[VersionKey, tuple[Located, ...]], Mapping[VersionKey, tuple[Located, ...]]]:
        """Return all copies and those that serve, by version."""
        view = self._before
        if not self._touched:
            return view.copies, view.serving
        hosts: dict[NodeId, Host | None] = {}
        copies, serving = _Changing(view.copies), _Changing(view.serving)
        for key, ids in self._touched.items():
            located = [each for each in view.copies.get(key, ()) if each.node.id not in ids]
            for id_ in ids:
                if id_ not in hosts:
                    hosts[id_] = _host(self.nodes.get(id_))
                host, copy = hosts[id_], self.held.get(id_, key)
                if host is not None and copy is not None:
                    located.append(Located(host, copy))
            located.sort(key=_by_node)
            copies.set(key, tuple(located) or None)
            serving.set(key, tuple([each for each in located if may_serve(each)]) or None)
        return copies.finish(), serving.finish()

    def _touch(self, id_: NodeId, key: VersionKey) -> None:
        touched = self._touched.get(key)
        if touched is None:
            self._touched[key] = {id_}
        else:
            touched.add(id_)


def _host(node: Node | None) -> Host | None:
    return None if node is None else Host(node.id, node.address, node.incarnation, node.draining)


def _by_node(located: Located) -> NodeId:
    return located.node.id
