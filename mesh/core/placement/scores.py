"""How good a node is for a version, among those that can hold it. One small function each; `SCORES` lists them.

A score is a number in [0, 1], higher is better, times its weight. (The shape of the kube-scheduler's score plugins.)
"""

from __future__ import annotations

from collections.abc import Callable

from mesh.core.placement.filters import Asked
from mesh.core.placement.ledger import predicted_bytes
from mesh.core.types import CopyState, Node


def free_memory(asked: Asked, node: Node) -> float:
    """Prefer the node that keeps the largest share of its memory free after the load."""
    best = 0.0
    for device in node.devices:
        if device.total_bytes and asked.model.device in ("auto", device.kind.value):
            best = max(best, (device.free_bytes - predicted_bytes(asked.model.size_bytes)) / device.total_bytes)
    return best


def few_loading(asked: Asked, node: Node) -> float:  # noqa: ARG001 - every score has this signature
    """Prefer a node that is loading little: loads queue behind each other."""
    loading = sum(copy.state is CopyState.LOADING for copy in node.copies)
    return 1 / (1 + loading)


def few_copies(asked: Asked, node: Node) -> float:  # noqa: ARG001 - every score has this signature
    """Prefer a node that holds few models, so that models spread while memory is plenty."""
    return 1 / (1 + len(node.copies))


SCORES: tuple[tuple[Callable[[Asked, Node], float], float], ...] = (
    (free_memory, 1.0),
    (few_loading, 1.0),
    (few_copies, 1.0),
)
"""(function, weight)."""
