"""How good a node is for a version, among those that can hold it. One small function each; `SCORES` lists them.

A score is a number in [0, 1], higher is better, times its weight; the node with the highest sum is chosen. (The shape
of the kube-scheduler's score plugins.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mesh.core.placement.asked import Asked, Room, zone_of
from mesh.core.types import Node

LOAD_UNIT_S: Final = 1.0
"""A wait of this length for other loads halves the score."""

_WORTHLESS: Final = 1e-7
"""A loss of one request in months is as good as none."""


def least_loss(_: Asked, __: Node, room: Room, best_loss: float) -> float:
    """Prefer the node that evicts what is worth least: 1 for the best of all, a half for twice its loss."""
    return (best_loss + _WORTHLESS) / (room.loss + _WORTHLESS)


def spread(asked: Asked, on: Node, _: Room, __: float) -> float:
    """Prefer a zone without a copy, so that one failure does not take all of them."""
    return 0.0 if asked.zones and zone_of(on) in asked.zones else 1.0


def short_queue(_: Asked, on: Node, __: Room, ___: float) -> float:
    """Prefer a node on which the load begins at once: loads queue behind each other."""
    return LOAD_UNIT_S / (LOAD_UNIT_S + on.load_wait_s + 0.1 * on.loading)


def free_memory(_: Asked, __: Node, room: Room, ___: float) -> float:
    """Prefer the node that keeps the largest share of its memory free, so that models spread while memory is plenty."""
    return room.free_share


def not_busy(_: Asked, on: Node, __: Room, ___: float) -> float:
    """Prefer a node with compute to spare."""
    return 1.0 - min(1.0, max(0.0, on.busy))


def near_neighbours(asked: Asked, on: Node, _: Room, __: float) -> float:
    """Prefer a node that holds other steps of the same pipelines: their tensors need not travel."""
    count = asked.neighbours.get(on.id, 0)
    return count / (1.0 + count)


SCORES: Final[tuple[tuple[str, Callable[[Asked, Node, Room, float], float], float], ...]] = (
    ("loss", least_loss, 4.0),
    ("zone", spread, 2.0),
    ("queue", short_queue, 1.0),
    ("free", free_memory, 0.5),
    ("busy", not_busy, 0.5),
    ("pipeline", near_neighbours, 1.0),
)
"""(name, function, weight). What is evicted outweighs all but a second zone: it is what callers feel for hours."""
