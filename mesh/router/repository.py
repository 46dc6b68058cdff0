"""The model repository of the whole mesh: list it, load a model, unload a model.

Loading and unloading write placements; nodes reconcile. A call returns when the nodes have done it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

from mesh.api import messages as m
from mesh.api.describe import copy_message
from mesh.api.messages import control
from mesh.core.errors import Conflict, DeadlineExceeded, LoadFailed, UnknownModel
from mesh.core.types import CopyState, ModelName, ModelVersion, Placement
from mesh.core.view import ClusterView, VersionKey
from mesh.registry import records
from mesh.registry.keys import placement_key
from mesh.registry.mirror import Mirror
from mesh.registry.store import Store
from mesh.router.cold import Cold

WRITE_TRIES = 10
"""Compare-and-swap tries. A key that ten others changed in a row is a fault to report, not to wait out."""


class Repository:
    """RepositoryIndex, RepositoryModelLoad and RepositoryModelUnload over the registry."""

    def __init__(self, mirror: Mirror, store: Store, cold: Cold) -> None:
        self._mirror = mirror
        self._store = store
        self._cold = cold

    def index(self, *, ready_only: bool) -> m.RepositoryIndexResponse:
        """Return every version with Triton's state names; with `ready_only` those that serve now."""
        answer = m.RepositoryIndexResponse()
        for model in self.list(""):
            state, reason = _TRITON_STATE[model.state]
            if not ready_only or state == "READY":
                answer.models.add(name=model.name, version=model.version, state=state, reason=model.reason or reason)
        return answer

    def list(self, name: str) -> list[control.Model]:
        """Return every version, or those of `name`, in order. Raises `UnknownModel`."""
        view = self._mirror.view
        if name and ModelName(name) not in view.models:
            raise UnknownModel(f"Request for unknown model: '{name}' is not found")
        names = [ModelName(name)] if name else sorted(view.models)
        return [
            _described(view, view.models[each][version]) for each in names for version in reversed(view.versions(each))
        ]

    async def load(self, name: str, deadline_s: float) -> None:
        """Load the latest version of `name`, wherever it fits; return when it serves. `deadline_s` is monotonic.

        Raises `LoadFailed` for an unknown model too: that is Triton's answer, and its clients look for the text.
        """
        view = self._mirror.view
        versions = view.versions(ModelName(name))
        if not versions:
            raise LoadFailed(f"failed to load '{name}', failed to poll from model repository: it is in no repository")
        key = (ModelName(name), versions[0])
        forced = view.is_off(key) or not view.serving.get(key)
        await self._cold.wait(view.models[key[0]][key[1]], deadline_s, forced=forced)

    async def unload(self, name: str, deadline_s: float) -> None:
        """Unload every version of `name` and keep requests from loading it again; return when no copy is left."""
        view = self._mirror.view
        versions = view.versions(ModelName(name))
        if not versions:
            raise UnknownModel(f"Request for unknown model: '{name}' is not found")
        keys = [(ModelName(name), version) for version in versions]
        for key in keys:
            await self._turn_off(key)
        try:
            async with asyncio.timeout(max(0.0, deadline_s - time.monotonic())):
                await self._mirror.wait_for(lambda view: _gone(view, keys))
        except TimeoutError:
            raise DeadlineExceeded(f"model '{name}' is being unloaded; requests in flight still finish") from None

    async def _turn_off(self, key: VersionKey) -> None:
        path = placement_key(*key)
        off = records.encode(Placement(*key, nodes=(), off=True, requested_s=time.time()))
        for _ in range(WRITE_TRIES):
            entry = await self._store.get(path)
            expected = entry.mod_revision if entry else 0
            if await self._store.replace(path, off, expected=expected) is not None:
                return
        raise Conflict(f"the placement of model '{key[0]}' keeps changing under this unload; call again")


def _gone(view: ClusterView, keys: Collection[VersionKey]) -> bool:
    return all(view.is_off(key) and not view.serving.get(key) for key in keys)


_TRITON_STATE = {
    "ready": ("READY", ""),
    "loading": ("LOADING", ""),
    "cold": ("UNAVAILABLE", "not loaded yet: the first request loads it"),
    "unloaded": ("UNAVAILABLE", "unloaded"),
    "failed": ("UNAVAILABLE", ""),
}


def _described(view: ClusterView, model: ModelVersion) -> control.Model:
    key = (model.name, model.version)
    copies = view.copies.get(key, ())
    states = {each.copy.state for each in copies}
    reason = ""
    if view.is_off(key):
        state = "unloaded"
    elif view.serving.get(key):
        state = "ready"
    elif CopyState.LOADING in states:
        state = "loading"
    elif CopyState.FAILED in states:
        state = "failed"
        reason = "; ".join(sorted({each.copy.error for each in copies if each.copy.error}))
    else:
        state = "cold"
    return control.Model(
        name=model.name,
        version=model.version,
        runtime=model.runtime,
        state=state,
        size_bytes=model.size_bytes,
        digest=model.digest,
        reason=reason,
        copies=[copy_message(each.copy, each.node.id) for each in copies],
    )
