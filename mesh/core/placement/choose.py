"""The nodes to load a version on: filter, score, pick.

With many nodes not all of them are looked at: from a place in the roster that the model's name gives, nodes are asked
one by one until `ENOUGH` can hold it. Routers that see the same nodes therefore look at the same ones, and different
models at different ones. (The kube-scheduler's percentageOfNodesToScore, without its chance.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Final

from mesh.core.placement.asked import Asked, Room
from mesh.core.placement.filters import FILTERS, ROOM, Refuse, no_room
from mesh.core.placement.scores import SCORES
from mesh.core.types import Node, NodeId

ENOUGH: Final = 48
"""Nodes that can hold it, among which the best is taken: on average one in the best 2% of all."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A node that can hold the version."""

    on: Node
    room: Room
    scores: tuple[float, ...]
    """One per entry of `SCORES`, weighted."""
    total: float

    def without_room(self, asked: Asked) -> Node:
        """Return the node as it will be when it has begun this load, for decisions made before it says so itself."""
        room, devices = self.room, []
        for device in self.on.devices:
            if device == room.device:
                free = max(0, device.free_bytes + room.evicts_bytes - asked.needs)
                left = [point for point in device.curve if point[0] > room.evicts_bytes]
                curve = tuple((size - room.evicts_bytes, max(0.0, loss - room.loss)) for size, loss in left)
                devices.append(replace(device, free_bytes=free, curve=curve))
            else:
                devices.append(device)
        return replace(self.on, devices=tuple(devices), loading=self.on.loading + 1)


@dataclass(frozen=True, slots=True)
class Choice:
    """The decision and what it was made from."""

    nodes: tuple[NodeId, ...]
    """Best first; empty when every node refused."""
    refused: Mapping[NodeId, tuple[str, Refuse]] = field(default_factory=dict)
    """By the name of the first filter that said no."""
    scored: tuple[Scored, ...] = ()
    """Best first."""
    unseen: int = 0
    """Nodes that were not looked at, because enough others can hold it."""

    @property
    def soon(self) -> bool:
        """Whether a node may pass in a moment: none is there yet, or one refused for a passing reason."""
        return not self.nodes and (not self.refused or any(said.passing for _, said in self.refused.values()))

    @property
    def in_use(self) -> bool:
        """Whether all that stands in the way is that every copy on the nodes that could hold it is in use."""
        return not self.nodes and any(name == ROOM for name, _ in self.refused.values())

    def why_none(self) -> str:
        """Return one sentence that says why no node was found."""
        if not self.refused:
            return "no node is registered"
        told = [f"node '{node}': {said.reason}" for node, (_, said) in sorted(self.refused.items())[:_TOLD]]
        more = len(self.refused) - len(told)
        return "; ".join([*told, f"and {more} more nodes"] if more else told)


_TOLD: Final = 5


def choose(asked: Asked, roster: Sequence[Node], count: int, *, enough: int = ENOUGH) -> Choice:
    """Return up to `count` nodes for the version, best first. `roster` is in the order of the nodes' ids.

    The same arguments give the same answer. O(nodes asked x (filters + scores)).
    """
    refused: dict[NodeId, tuple[str, Refuse]] = {}
    able: list[tuple[Node, Room]] = []
    enough = max(enough, count)
    for on in _from(roster, asked.model.name):
        verdict = _first_no(asked, on)
        if verdict is not None:
            refused[on.id] = verdict
            continue
        room = asked.room_on(on)
        if room is None:
            refused[on.id] = (ROOM, no_room(asked, on))
            continue
        able.append((on, room))
        if len(able) >= enough:
            break
    scored = _scored(asked, able)
    return Choice(
        tuple(each.on.id for each in scored[:count]),
        refused,
        scored,
        len(roster) - len(refused) - len(able),
    )


def _from(roster: Sequence[Node], name: str) -> Iterator[Node]:
    if len(roster) <= ENOUGH:
        yield from roster
        return
    start = int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) % len(roster)
    for index in range(len(roster)):
        yield roster[index + start - len(roster)]


def _first_no(asked: Asked, on: Node) -> tuple[str, Refuse] | None:
    for name, ask in FILTERS:
        said = ask(asked, on)
        if said.__class__ is Refuse:
            assert isinstance(said, Refuse)
            return name, said
    return None


def _scored(asked: Asked, able: Sequence[tuple[Node, Room]]) -> tuple[Scored, ...]:
    best_loss = min((room.loss for _, room in able), default=0.0)
    found = []
    for on, room in able:
        scores = tuple([weight * score(asked, on, room, best_loss) for _, score, weight in SCORES])
        found.append(Scored(on, room, scores, sum(scores)))
    # Ties go by a number that model and node give together, so that different models spread over equal nodes.
    name = asked.model.name
    return tuple(sorted(found, key=lambda each: (-round(each.total, 9), _tie(name, each.on.id))))


def _tie(model: str, node: str) -> bytes:
    return blake2b(f"{model}\0{node}".encode(), digest_size=8).digest()
