"""Which deletions of nodes to believe after the registry was away.

While the registry does not answer, nodes cannot renew their leases, so right after it came back records of nodes that
serve perfectly well may expire or be gone altogether, and those of their copies with them. For `grace_s` after the
watch is live again such deletions are held back, until the records come again or the grace passes. A node that said it
drains left on purpose: its deletion counts at once. So does that of a copy whose node is there. The time and the
changes are given by the caller (`mesh.registry.mirror`), who folds what comes out.
"""

from __future__ import annotations

from collections.abc import Iterable

from mesh.core.fold import Change, CopyChange, NodeChange
from mesh.core.types import Node, NodeId
from mesh.core.view import ClusterView, VersionKey


class Grace:
    """Holds deletions back. `held` is a subset of the nodes of the view that its changes are folded into."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._live = True
        self._until_s = float("-inf")
        self._held: set[NodeId] = set()
        self._copies: set[tuple[NodeId, VersionKey]] = set()

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Grace live={self._live} held={len(self._held)} copies={len(self._copies)}>"

    @property
    def held(self) -> frozenset[NodeId]:
        """Nodes whose deletion is held back."""
        return frozenset(self._held)

    @property
    def next_s(self) -> float | None:
        """When to call `due` next; None while nothing is held, or while the registry is away (nothing is known)."""
        return self._until_s if (self._held or self._copies) and self._live else None

    def lost(self) -> None:
        """Note that the watch lost the registry."""
        self._live = False

    def live(self, now_s: float) -> None:
        """Note that the watch is live; after a loss, a grace begins at `now_s`."""
        if not self._live:
            self._live = True
            self._until_s = now_s + self._grace_s

    def step(self, view: ClusterView, changes: Iterable[Change], now_s: float) -> tuple[Change, ...]:
        """Return the changes to fold into `view` now, each thing's in order; hold the others. O(changes + held)."""
        changes = tuple(changes)
        now = self._nodes(view, [each for each in changes if isinstance(each, NodeChange)], now_s)
        for change in changes:
            if isinstance(change, CopyChange):
                # A lease takes the copies and their node at once, in any order: the nodes were looked at first.
                self._copies.discard((change.node, change.key))
                if change.copy is None and change.node in self._held:
                    self._copies.add((change.node, change.key))
                    continue
            if not isinstance(change, NodeChange):
                now.append(change)
        return tuple(now)

    def due(self, now_s: float) -> tuple[Change, ...]:
        """Return the held deletions once the grace has passed. O(held)."""
        if not self._live or now_s < self._until_s:
            return ()
        released, self._held = self._held, set()
        return (*(NodeChange(node, None) for node in sorted(released)), *self._release())

    def _nodes(self, view: ClusterView, changes: Iterable[NodeChange], now_s: float) -> list[Change]:
        now: list[Change] = []
        latest: dict[NodeId, Node | None] = {}
        for change in changes:
            # Whatever is said of a node last counts.
            self._held.discard(change.id)
            known = latest.get(change.id, view.nodes.get(change.id))
            latest[change.id] = change.node
            if change.node is None and now_s < self._until_s and known is not None and not known.draining:
                self._held.add(change.id)
                latest[change.id] = known
                continue
            now.append(change)
            if known is not None and (change.node is None or change.node.incarnation != known.incarnation):
                # It is another process now, or none: it will not tell of its copies again.
                now += self._release(change.id)
        return now

    def _release(self, node: NodeId | None = None) -> list[Change]:
        """Return the held deletions of copies, those of `node` only when one is given."""
        released = sorted(each for each in self._copies if node in (None, each[0]))
        self._copies.difference_update(released)
        return [CopyChange(id_, key, None) for id_, key in released]
