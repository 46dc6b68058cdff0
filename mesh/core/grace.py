"""Which deletions of nodes to believe after the registry was away.

While the registry does not answer, nodes cannot renew their leases, so right after it came back records of nodes that
serve perfectly well may expire or be gone altogether. For `grace_s` after the watch is live again such deletions are
held back, until the node registers again or the grace passes. A node that said it drains left on purpose: its deletion
counts at once. The time and the changes are given by the caller (`mesh.registry.mirror`), who folds what comes out.
"""

from __future__ import annotations

from collections.abc import Iterable

from mesh.core.fold import Change, NodeChange
from mesh.core.types import Node, NodeId
from mesh.core.view import ClusterView


class Grace:
    """Holds deletions back. `held` is a subset of the nodes of the view that its changes are folded into."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._live = True
        self._until_s = float("-inf")
        self._held: set[NodeId] = set()

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Grace live={self._live} held={len(self._held)}>"

    @property
    def held(self) -> frozenset[NodeId]:
        """Nodes whose deletion is held back."""
        return frozenset(self._held)

    @property
    def next_s(self) -> float | None:
        """When to call `due` next; None while nothing is held, or while the registry is away (nothing is known)."""
        return self._until_s if self._held and self._live else None

    def lost(self) -> None:
        """Note that the watch lost the registry."""
        self._live = False

    def live(self, now_s: float) -> None:
        """Note that the watch is live; after a loss, a grace begins at `now_s`."""
        if not self._live:
            self._live = True
            self._until_s = now_s + self._grace_s

    def step(self, view: ClusterView, changes: Iterable[Change], now_s: float) -> tuple[Change, ...]:
        """Return the changes to fold into `view` now, in order; hold the others. O(changes)."""
        now: list[Change] = []
        latest: dict[NodeId, Node | None] = {}
        for change in changes:
            if isinstance(change, NodeChange):
                # Whatever is said of a node last counts.
                self._held.discard(change.id)
                known = latest.get(change.id, view.nodes.get(change.id))
                latest[change.id] = change.node
                if change.node is None and now_s < self._until_s and known is not None and not known.draining:
                    self._held.add(change.id)
                    latest[change.id] = known
                    continue
            now.append(change)
        return tuple(now)

    def due(self, now_s: float) -> tuple[Change, ...]:
        """Return the held deletions once the grace has passed. O(held)."""
        if not self._held or not self._live or now_s < self._until_s:
            return ()
        released, self._held = self._held, set()
        return tuple(NodeChange(node, None) for node in sorted(released))
