"""What to do next for a version that requests wait for: nothing, place it, or say that it cannot be had.

Level-triggered: the answer depends on what is, not on what happened, so that any router may ask at any time and after
any restart. The shell (`mesh.router.cold`) performs it and asks again at the next view.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from mesh.core.errors import LoadFailed, MeshError, NoCapacity
from mesh.core.placement.choose import choose
from mesh.core.placement.filters import Asked
from mesh.core.types import CopyState, ModelVersion, NodeId, Placement
from mesh.core.view import ClusterView

RETRY_FAILED_S = 10.0
"""How long a failed load is not tried again for mere requests: a broken model must not be loaded over and over."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A copy serves; ask it."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nodes were asked to load it and have not finished, or no node can be asked at this moment."""

    nodes: tuple[NodeId, ...]
    why: str
    """What is waited for, for the error if the caller's deadline passes."""


@dataclass(frozen=True, slots=True)
class Place:
    """Write this placement, if nobody was faster."""

    placement: Placement


@dataclass(frozen=True, slots=True)
class Refused:
    """It cannot be had; callers get this error."""

    error: MeshError


Step = Serving | Waiting | Place | Refused


def cold_step(
    view: ClusterView,
    model: ModelVersion,
    placement: Placement | None,
    *,
    avoid: Collection[NodeId],
    now_s: float,
    forced: bool = False,
) -> Step:
    """Return the next step for `model`. `placement` is the latest one known, `avoid` the nodes that just failed.

    `forced` (an operator's load) tries a load again that failed, at once. O(nodes x copies per node).
    """
    key = (model.name, model.version)
    if not forced and any(each.node.id not in avoid for each in view.serving.get(key, ())):
        return Serving()
    held = placement or Placement(model.name, model.version)
    failed = _failures(view, model, since_s=now_s if forced else held.requested_s)
    present = [node for node in held.nodes if node in view.nodes and not view.nodes[node].draining]
    loading = tuple(node for node in present if node not in avoid and node not in failed)
    if loading and not forced and not held.off:
        return Waiting(loading, f"loading on {', '.join(loading)}")
    if failed and now_s - held.requested_s >= RETRY_FAILED_S:
        failed = {}
    # While failures count, the request that they answer keeps its time, and the failed nodes stay in the placement: a
    # node forgets the failure of a version that is no longer placed on it, and would be chosen again.
    requested_s = held.requested_s if failed else now_s
    choice = choose(Asked(model, requested_s, avoid), view.nodes.values(), model.min_copies)
    if choice.nodes:
        kept = tuple(node for node in present if node in failed)
        return Place(Placement(model.name, model.version, kept + choice.nodes, off=False, requested_s=requested_s))
    if failed:
        return Refused(LoadFailed(next(iter(failed.values()))))
    if choice.soon:
        return Waiting((), choice.why_none())
    return Refused(NoCapacity(f"no node can hold model '{model.name}' version {model.version}: {choice.why_none()}"))


def _failures(view: ClusterView, model: ModelVersion, *, since_s: float) -> dict[NodeId, str]:
    """Return what went wrong where, for the request of `since_s` and for these very files."""
    found = {}
    for each in view.copies.get((model.name, model.version), ()):
        copy = each.copy
        if copy.state is CopyState.FAILED and copy.requested_s >= since_s and copy.digest in ("", model.digest):
            named = copy.error.startswith("failed to load")
            found[each.node.id] = copy.error if named else f"failed to load '{model.name}', {copy.error}"
    return found
