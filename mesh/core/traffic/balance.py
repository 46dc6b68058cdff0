"""Which copy answers: the one with fewer requests outstanding of two random ones, past nodes that just failed.

Two random choices are nearly as good as asking all and do not herd when many routers share the same picture
(Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing"). What counts is this router's own requests in
flight, then the load a node last reported: the first is exact, the second includes other routers but is old.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from mesh.core.types import Node, NodeId
from mesh.core.view import Host, Located

SUSPECT_S = 3.0
"""How long a node is passed over after its connection failed. Longer than a reconnect, shorter than a lease."""


@dataclass(slots=True)
class _Load:
    outstanding: int = 0
    reported: int = 0


class Balancer:
    """What this router knows of its nodes' load and failures. 0 <= outstanding, and every `picked` has its `done`."""

    def __init__(self) -> None:
        self._loads: dict[NodeId, _Load] = {}
        self._suspects: dict[tuple[NodeId, str], float] = {}
        self._silent: set[str] = set()
        """Addresses where nothing answers now."""

    def pick(
        self, candidates: Sequence[Located], *, tried: Collection[NodeId], now_s: float, u: float
    ) -> Located | None:
        """Return the copy to ask, None when all were tried or are suspect. `u` is random in [0, 1). O(candidates)."""
        usable = [each for each in candidates if each.node.id not in tried and not self.is_suspect(each.node, now_s)]
        if len(usable) < 2:
            return usable[0] if usable else None
        scaled = u * len(usable)
        first = int(scaled)
        # The fraction is random in [0, 1) again: it chooses among the others.
        second = int((scaled - first) * (len(usable) - 1))
        if second >= first:
            second += 1
        return min(usable[first], usable[second], key=self._weight)

    def pin(
        self, candidates: Sequence[Located], sequence: str, *, tried: Collection[NodeId], now_s: float
    ) -> Located | None:
        """Return the copy that holds `sequence`: the highest hash of (node, sequence), alike in every router.

        Rendezvous hashing: when a node goes, only its own sequences move. O(candidates).
        """
        usable = [each for each in candidates if each.node.id not in tried and not self.is_suspect(each.node, now_s)]
        return max(usable, key=lambda each: rendezvous(each.node.id, sequence), default=None)

    def picked(self, node: NodeId) -> None:
        """Count a request on its way to `node`."""
        load = self._loads.get(node)
        if load is None:
            load = self._loads[node] = _Load()
        load.outstanding += 1

    def done(self, node: NodeId, reported: int | None, count: int = 1) -> None:
        """Count the end of so many; `reported` is the node's own count of outstanding requests, None: it said none."""
        load = self._loads[node]
        load.outstanding -= count
        if reported is not None:
            load.reported = reported

    def outstanding(self, node: NodeId) -> int:
        """Return this router's requests in flight at a node."""
        load = self._loads.get(node)
        return load.outstanding if load is not None else 0

    def failed(self, node: Host | Node, now_s: float) -> None:
        """Remember that the connection to this process failed; a restarted node is another process."""
        self._suspects[node.id, node.incarnation] = now_s + SUSPECT_S

    def answered(self, node: Host) -> None:
        """Forget a failure: it answers again."""
        if self._suspects:
            self._suspects.pop((node.id, node.incarnation), None)

    def silence(self, address: str, silent: bool) -> None:  # noqa: FBT001 - an event and its value
        """Hear that nothing answers at an address any more, or that something does again."""
        if silent:
            self._silent.add(address)
        else:
            self._silent.discard(address)

    def silent(self) -> int:
        """Return how many nodes do not answer now: stopped, cut off, or so busy that it makes no difference."""
        return len(self._silent)

    def is_suspect(self, node: Host | Node, now_s: float) -> bool:
        """Tell whether this process failed a moment ago, or does not answer now."""
        if self._silent and node.address in self._silent:
            return True
        until_s = self._suspects.get((node.id, node.incarnation)) if self._suspects else None
        return until_s is not None and now_s < until_s

    @property
    def suspects(self) -> bool:
        """Whether any node failed lately, or does not answer."""
        return bool(self._suspects or self._silent)

    def forget(self, present: Collection[NodeId]) -> None:
        """Drop what is known of nodes that left and have nothing outstanding."""
        for node in [node for node, load in self._loads.items() if node not in present and not load.outstanding]:
            del self._loads[node]
        for key in [key for key in self._suspects if key[0] not in present]:
            del self._suspects[key]

    def _weight(self, located: Located) -> tuple[int, int]:
        load = self._loads.get(located.node.id)
        return (load.outstanding, load.reported) if load is not None else (0, 0)

    def __repr__(self) -> str:
        """Show outstanding requests per node and the suspects."""
        loads = " ".join(f"{node}={load.outstanding}" for node, load in sorted(self._loads.items()))
        suspects = sorted(node for node, _ in self._suspects)
        silent = f" silent={sorted(self._silent)}" if self._silent else ""
        return f"<Balancer {loads} suspects={suspects}{silent}>"


def rendezvous(node: str, sequence: str) -> bytes:
    """Return the weight of a node for a sequence: the highest wins (Thaler and Ravishankar, 1998)."""
    return blake2b(f"{node}\0{sequence}".encode(), digest_size=8).digest()
