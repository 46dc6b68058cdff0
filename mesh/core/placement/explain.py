"""Why a model would go where: the decision itself, made over all nodes, and what if a node were not there.

Nothing here decides anything of its own: it calls `choose` as the cold path does, looks at every node instead of
enough of them, and keeps what each filter and score said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mesh.core.placement.asked import Asked, neighbours_of, zones_of
from mesh.core.placement.choose import Choice, choose
from mesh.core.types import ModelVersion, Node, NodeId
from mesh.core.view import ClusterView


@dataclass(frozen=True, slots=True)
class Explained:
    """A version, what was asked, and the decision."""

    asked: Asked
    choice: Choice


def explain(view: ClusterView, model: ModelVersion, *, now_s: float, without: NodeId | None = None) -> Explained:
    """Return where a copy of `model` (another one, if it has some) would go now. O(nodes)."""
    nodes = [view.nodes[id_] for id_ in sorted(view.nodes) if id_ != without]
    return _decide(view, model, nodes, now_s=now_s, without=without)


def without_node(view: ClusterView, gone: NodeId, *, now_s: float) -> list[Explained]:
    """Return what would become of each version that only `gone` serves, those used last first.

    Each takes its room from the ones after it. O(versions on the node x nodes).
    """
    nodes = [view.nodes[id_] for id_ in sorted(view.nodes) if id_ != gone]
    lost = sorted(view.held.get(gone, {}).values(), key=lambda copy: (-copy.last_used_s, copy.model, copy.version))
    found = []
    for copy in lost:
        key = (copy.model, copy.version)
        model = view.models.get(key[0], {}).get(key[1])
        serving = view.serving.get(key, ())
        if model is None or [each.node.id for each in serving] != [gone]:
            continue
        decided = _decide(view, model, nodes, now_s=now_s, without=gone)
        found.append(decided)
        if decided.choice.nodes:
            taken = decided.choice.scored[0]
            nodes = [taken.without_room(decided.asked) if node.id == taken.on.id else node for node in nodes]
    return found


def _decide(
    view: ClusterView, model: ModelVersion, nodes: Sequence[Node], *, now_s: float, without: NodeId | None
) -> Explained:
    located = [each for each in view.copies.get((model.name, model.version), ()) if each.node.id != without]
    copies = {each.node.id: each.copy for each in located}
    near, factors = neighbours_of(view, model), view.forecast.factors
    zones, suspect = zones_of(view, copies), view.suspect(model)
    asked = Asked(model, now_s, copies, zones=zones, factors=factors, neighbours=near, suspect=suspect)
    return Explained(asked, choose(asked, nodes, 1, enough=max(1, len(nodes))))
