"""What happens to nodes: some die at once, or all are restarted one after another, as a rolling update does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from benchmarks.simulation.leader import Leader
from benchmarks.simulation.world import World

MOVE_S: Final = 20.0
"""How long a node that leaves waits for its models in demand to be ready elsewhere (`mesh node --move-s`)."""

RESTART_S: Final = 5.0

OVER: Final = object()


def of(world: World, leader: Leader | None, *, lose_percent: int, roll: bool) -> Iterator[None] | None:
    """Return what is to happen, a step at each `next`; None when nothing is."""
    if lose_percent:
        return _lose(world, lose_percent)
    return _roll(world, leader) if roll else None


def _lose(world: World, percent: int) -> Iterator[None]:
    world.lose(list(world.nodes)[: max(1, len(world.nodes) * percent // 100)])
    yield


def _roll(world: World, leader: Leader | None) -> Iterator[None]:
    for id_, node in list(world.nodes.items()):
        if leader is not None:
            world.leave(id_)
            since_s = world.now_s
            while world.now_s - since_s < MOVE_S and leader.hot_on(id_):
                yield
        world.lose([id_])
        since_s = world.now_s
        while world.now_s - since_s < RESTART_S:
            yield
        world.join(str(id_), node.ledger.capacity)
