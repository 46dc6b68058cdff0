"""What a node must do to hold what it should: the difference between desired and actual copies, as actions.

Level-triggered: asked after every change of either side, it needs no memory of earlier answers.

| desired | actual | action |
|---|---|---|
| yes | none | load |
| yes | failed for another request or other files | load |
| yes | ready with other files (digest) | load beside it, then swap |
| yes | loading, ready, failed for this request | none |
| no | ready, failed | unload |
| no | loading | abandon: a load may never end |
| no | draining | none: looked at again when it ends |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from mesh.core.types import Copy, CopyState, ModelVersion, NodeId, Placement
from mesh.core.view import ClusterView, VersionKey

REQUEST_STEP_S: Final = 0.001
"""Between two requests of which the later one's clock is behind."""


@dataclass(frozen=True, slots=True)
class Load:
    """Load these files; a copy of other files of the same version serves until then."""

    model: ModelVersion
    requested_s: float


@dataclass(frozen=True, slots=True)
class Unload:
    """Stop taking work, finish what is in flight, close."""

    key: VersionKey


@dataclass(frozen=True, slots=True)
class Abandon:
    """Give up a load that goes on."""

    key: VersionKey


Action = Load | Unload | Abandon


@dataclass(frozen=True, slots=True)
class Desired:
    """A version that this node should hold, and the request it answers."""

    model: ModelVersion
    requested_s: float


def desired_of(view: ClusterView, node: NodeId, keys: Iterable[VersionKey] | None = None) -> dict[VersionKey, Desired]:
    """Return what `node` should hold, of `keys` or (None) of all: placed on it, not off, with a record. O(keys)."""
    found = {}
    placed = view.placed.get(node, {})
    for key in placed if keys is None else keys:
        placement, model = placed.get(key), view.models.get(key[0], {}).get(key[1])
        if model is not None and placement is not None and not placement.off:
            found[key] = Desired(model, placement.requested_s)
    return found


def reconcile(desired: Mapping[VersionKey, Desired], held: Mapping[VersionKey, Copy]) -> list[Action]:
    """Return the actions that close the difference, unloads first (they free memory), in key order. O(both)."""
    unloads: list[Action] = [
        Unload(key)
        for key in sorted(held.keys() - desired.keys())
        if held[key].state in (CopyState.READY, CopyState.FAILED)
    ]
    unloads += [Abandon(key) for key in sorted(held.keys() - desired.keys()) if held[key].state is CopyState.LOADING]
    loads: list[Action] = [
        Load(want.model, want.requested_s)
        for key, want in sorted(desired.items(), key=lambda item: item[0])
        if _needs_load(want, held.get(key))
    ]
    return unloads + loads


def _needs_load(want: Desired, copy: Copy | None) -> bool:
    if copy is None:
        return True
    other_files = copy.digest != want.model.digest
    if copy.state is CopyState.FAILED:
        return other_files or copy.requested_s != want.requested_s
    return copy.state is CopyState.READY and other_files


def next_request_s(before: Placement | None, now_s: float) -> float:
    """Return `Placement.requested_s` of a new request at `now_s`: later than the one before, whoever's clock is off."""
    return now_s if before is None else max(now_s, before.requested_s + REQUEST_STEP_S)
