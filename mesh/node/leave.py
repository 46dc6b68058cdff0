"""Taking a node out of a version's placement, by the node itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from mesh.core.placement.forecast import History
from mesh.core.types import NodeId
from mesh.core.view import VersionKey
from mesh.registry import records
from mesh.registry.keys import placement_key
from mesh.registry.store import Store

TRIES: Final = 5


async def leave(store: Store, node: NodeId, key: VersionKey, history: History | None) -> None:
    """Take `node` out of a version's placement, and leave there what it knows of the version's requests.

    Raises `RegistryUnavailable`. After some tries that others were ahead of, it is left to the next reconcile.
    """
    path = placement_key(*key)
    for _ in range(TRIES):
        entry = await store.get(path)
        placement = records.placement_of(entry)
        if entry is None or placement is None:
            return
        left = replace(placement, nodes=tuple(each for each in placement.nodes if each != node))
        if history is not None:
            left = replace(left, heat=round(history.heat, 3), last_s=round(history.last_s, 3))
        if await store.replace(path, records.encode(left), expected=entry.mod_revision) is not None:
            return
