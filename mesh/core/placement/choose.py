"""The nodes to load a version on: snapshot, filter, return early if none is left, score, pick."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mesh.core.placement.filters import FILTERS, Asked, Refuse
from mesh.core.placement.scores import SCORES
from mesh.core.types import Node, NodeId


@dataclass(frozen=True, slots=True)
class Choice:
    """The decision and what it was made from."""

    nodes: tuple[NodeId, ...]
    """Best first; empty when every node refused."""
    refused: Mapping[NodeId, Refuse]
    scores: Mapping[NodeId, float]

    @property
    def soon(self) -> bool:
        """Whether a node may pass in a moment: none is there yet, or one refused for a passing reason."""
        return not self.nodes and (not self.refused or any(said.passing for said in self.refused.values()))

    def why_none(self) -> str:
        """Return one sentence that says why no node was found."""
        if not self.refused:
            return "no node is registered"
        return "; ".join(f"node '{node}': {said.reason}" for node, said in sorted(self.refused.items()))


def choose(asked: Asked, nodes: Iterable[Node], count: int) -> Choice:
    """Return up to `count` nodes for the version, best first, ties by name. O(nodes x (filters + scores))."""
    refused: dict[NodeId, Refuse] = {}
    scores: dict[NodeId, float] = {}
    for node in nodes:
        verdict = next((said for each in FILTERS if isinstance(said := each(asked, node), Refuse)), None)
        if verdict is not None:
            refused[node.id] = verdict
        else:
            scores[node.id] = sum(weight * score(asked, node) for score, weight in SCORES)
    best = sorted(scores, key=lambda node: (-scores[node], node))
    return Choice(tuple(best[:count]), refused, scores)
