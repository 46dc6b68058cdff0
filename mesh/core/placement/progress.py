"""How far the loads of a version are: where each stands in its node's queue, and how long it is likely to take."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.core.types import Copy, CopyState, NodeId
from mesh.core.view import ClusterView, VersionKey


@dataclass(frozen=True, slots=True)
class Progress:
    """One load that goes on or waits for its turn."""

    node: NodeId
    ahead: int
    """Loads that this node was asked for earlier and has not finished."""
    estimate_s: float
    """Seconds that the load itself took before; 0 when none ever ended."""

    @property
    def told(self) -> str:
        """Return it as words for people."""
        behind = f" behind {self.ahead} other{'s' if self.ahead > 1 else ''}" if self.ahead else ""
        usual = f", which took {self.estimate_s:.1f} s before" if self.estimate_s else ""
        return f"loading on node '{self.node}'{behind}{usual}"


def progress(view: ClusterView, key: VersionKey) -> list[Progress]:
    """Return the loads of a version, in the order of the nodes. O(copies on the nodes that load it).

    Since when they go on is not among it: that is by each node's clock.
    """
    model = view.models.get(key[0], {}).get(key[1])
    estimate_s = model.load_s if model is not None else 0.0
    loads = [each for each in view.copies.get(key, ()) if each.copy.state is CopyState.LOADING]
    return [Progress(each.node.id, _ahead(view, each.node.id, each.copy), estimate_s) for each in loads]


def _ahead(view: ClusterView, node: NodeId, copy: Copy) -> int:
    # Only times of one node's clock are compared.
    mine = (copy.changed_s, copy.model, copy.version)
    return sum(
        other.state is CopyState.LOADING and (other.changed_s, other.model, other.version) < mine
        for other in view.held.get(node, {}).values()
    )
