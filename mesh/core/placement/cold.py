"""What to do next for a version that requests wait for: nothing, place it, or say that it cannot be had.

Level-triggered: the answer depends on what is, not on what happened, so that any router may ask at any time and after
any restart. The shell (`mesh.router.cold`) performs it and asks again at the next view.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from mesh.core.errors import Churn, LoadFailed, Loading, MeshError, NoCapacity
from mesh.core.placement.asked import Asked, neighbours_of
from mesh.core.placement.choose import Choice, choose
from mesh.core.placement.filters import SHORT_PAUSE_S
from mesh.core.reconcile import next_request_s
from mesh.core.suspects import pause_s, refusal
from mesh.core.types import Copy, CopyState, ModelVersion, Node, NodeId, Placement
from mesh.core.view import ClusterView, VersionKey

CHURN_AFTER_S = 3.0
"""How long requests wait for a copy in use to become idle. A mesh whose every copy is in use has no room for more;
taking turns would make all of them slow."""


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
    since_s: float,
    forced: bool = False,
) -> Step:
    """Return the next step for `model`. `placement` is the latest one known, `avoid` the nodes that just failed.

    `since_s` is when requests began to wait for it: with all memory in use, they wait a moment and are then refused.

    `forced` (an operator's load) tries a load again that failed, at once. O(nodes x copies per node).
    """
    key = (model.name, model.version)
    held_back = _held_back(view, model, now_s)
    if held_back is not None or (not forced and _serves(view, key, avoid)):
        return Serving() if held_back is None else Refused(held_back)
    held = placement or Placement(model.name, model.version)
    failed = {} if forced else _failures(view, model, held)
    present = [node for node in held.nodes if node in view.nodes and not view.nodes[node].draining]
    loading = tuple(node for node in present if node not in avoid and node not in failed)
    failed = {node: copy for node, copy in failed.items() if copy.pause_s}
    if loading and not forced and not held.off:
        return Waiting(loading, f"loading on {', '.join(loading)}")
    choice = where(view, model, avoid=avoid, now_s=now_s, forced=forced)
    if choice.nodes:
        # While failures count, the request that they answer keeps its time, and the failed nodes stay in the placement:
        # a node forgets the failure of a version that is no longer placed on it, and would be chosen again. A node
        # whose own failure is over loads again only for a request that is newer.
        again = any(each.node.id in choice.nodes for each in view.copies.get(key, ()))
        kept = () if again else tuple(node for node in present if node in failed)
        requested_s = held.requested_s if kept else next_request_s(placement, now_s)
        return Place(replace(held, nodes=kept + choice.nodes, off=False, requested_s=requested_s))
    if loading:
        return _at_it_already(view, held, loading, now_s)
    if failed:
        copy = next(iter(failed.values()))
        facts = {"model": model.name, "version": model.version}
        return Refused(LoadFailed(_told(copy), retry_after_s=copy.pause_s, facts=facts))
    return _without_a_node(model, choice, waited_s=now_s - since_s)


def _serves(view: ClusterView, key: VersionKey, avoid: Collection[NodeId]) -> bool:
    return any(each.node.id not in avoid for each in view.serving.get(key, ()))


def _held_back(view: ClusterView, model: ModelVersion, now_s: float) -> MeshError | None:
    """Return why a version that ended processes is not loaded now and waiting for it makes no sense; else None."""
    suspect = view.suspect(model)
    if suspect is None:
        return None
    refused = refusal(suspect, model, now_s)
    left_s = pause_s(suspect, model.digest, now_s)
    if refused is not None or left_s <= SHORT_PAUSE_S or view.serving.get((model.name, model.version)):
        return refused
    facts = {"model": model.name, "version": model.version, "deaths": str(suspect.deaths), "last": suspect.text}
    return Loading(
        f"model '{model.name}' version {model.version} ended a process ({suspect.text}) and is loaded again in "
        f"{left_s:.0f} s",
        retry_after_s=left_s,
        facts=facts,
    )


def _at_it_already(view: ClusterView, held: Placement, nodes: tuple[NodeId, ...], now_s: float) -> Step:
    """Return what becomes of an operator's load when `nodes`, which were asked before, are all that can hold it."""
    if held.off:
        return Place(replace(held, nodes=nodes, off=False, requested_s=next_request_s(held, now_s)))
    if any(each.node.id in nodes for each in view.serving.get((held.model, held.version), ())):
        return Serving()
    return Waiting(nodes, f"loading on {', '.join(nodes)}")


def _without_a_node(model: ModelVersion, choice: Choice, *, waited_s: float) -> Step:
    """Return what becomes of requests for a version that no node can take now."""
    facts = {"model": model.name, "version": model.version}
    what = f"model '{model.name}' version {model.version}"
    if choice.in_use and waited_s > CHURN_AFTER_S:
        told = f"{what} cannot be loaded now, all memory that it could go to is in use: {choice.why_none()}"
        return Refused(Churn(told, retry_after_s=CHURN_AFTER_S, facts=facts))
    if choice.soon:
        return Waiting((), choice.why_none())
    return Refused(NoCapacity(f"no node can hold {what}: {choice.why_none()}", facts=facts))


def where(
    view: ClusterView, model: ModelVersion, *, avoid: Collection[NodeId], now_s: float, forced: bool = False
) -> Choice:
    """Return the nodes to load `model` on, as many as it asks for at once, among those that have no copy of it."""
    copies: dict[NodeId, Copy] = {each.node.id: each.copy for each in view.copies.get((model.name, model.version), ())}
    asked = Asked(
        model,
        now_s,
        copies,
        avoid=avoid,
        forced=forced,
        factors=view.forecast.factors,
        neighbours=neighbours_of(view, model),
        suspect=view.suspect(model),
    )
    return choose(asked, roster(view), max(1, model.scaling.min_copies))


def _failures(view: ClusterView, model: ModelVersion, held: Placement) -> dict[NodeId, Copy]:
    """Return the copies of these very files whose load failed for the request at hand."""
    return {
        each.node.id: each.copy
        for each in view.copies.get((model.name, model.version), ())
        if each.copy.state is CopyState.FAILED
        and each.copy.requested_s == held.requested_s
        and each.copy.digest in ("", model.digest)
    }


def _told(copy: Copy) -> str:
    named = copy.error.startswith("failed to load")
    return copy.error if named else f"failed to load '{copy.model}', {copy.error}"


def roster(view: ClusterView) -> Sequence[Node]:
    """Return the nodes in the order of their ids."""
    return [view.nodes[id_] for id_ in sorted(view.nodes)]
