"""The model repository of the whole mesh: list it, load a model, unload a model.

Loading and unloading write placements; nodes reconcile. A call returns when the nodes have done it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import replace

from mesh.api import messages as m
from mesh.api.clock import steady_s
from mesh.api.messages import control
from mesh.core.errors import Conflict, DeadlineExceeded, LoadFailed, UnknownModel
from mesh.core.reconcile import next_request_s
from mesh.core.traffic.unknown import hint, refusals, unknown
from mesh.core.types import CopyState, ModelName, ModelVersion, Placement, Version
from mesh.core.view import ClusterView, VersionKey
from mesh.registry import records
from mesh.registry.keys import model_key, placement_key, suspect_key
from mesh.registry.mirror import Mirror
from mesh.registry.store import Store
from mesh.router.cold import Cold
from mesh.router.describe import model_message
from mesh.router.override import overridden, restored

WRITE_TRIES = 10
"""Compare-and-swap tries. A key that ten others changed in a row is a fault to report, not to wait out."""


REFUSED = "refused"
"""The state of a folder that no node can serve."""

SLICE = 256
"""Models described before requests get their turn: a few milliseconds."""


class Repository:
    """RepositoryIndex, RepositoryModelLoad and RepositoryModelUnload over the registry."""

    def __init__(self, mirror: Mirror, store: Store, cold: Cold) -> None:
        self._mirror = mirror
        self._store = store
        self._cold = cold

    async def index(self, *, ready_only: bool) -> m.RepositoryIndexResponse:
        """Return every version with Triton's state names; with `ready_only` those that serve now.

        Folders that cannot be served are UNAVAILABLE, with the reason.
        """
        answer = m.RepositoryIndexResponse()
        for model in await self.list(""):
            state, reason = _TRITON_STATE[model.state]
            if (state == "READY" or not ready_only) and not model.name.startswith("/"):
                words = f"{reason} {model.reason}" if model.state == "quarantined" else model.reason or reason
                answer.models.add(name=model.name, version=model.version, state=state, reason=words)
        return answer

    async def list(self, name: str) -> list[control.Model]:
        """Return every version, or those of `name`, in order, and then the folders that cannot be served.

        Raises `UnknownModel`. Requests go on in between.
        """
        view = self._mirror.view
        told = refusals(view, name)
        if name and ModelName(name) not in view.models and not told:
            raise unknown(view, name)
        names = [ModelName(name)] if name else sorted(view.models)
        found: list[control.Model] = []
        for place, each in enumerate(names):
            if place % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            for version in reversed(view.versions(each)):
                message = model_message(view, view.models[each][version])
                # What was published goes on as it was; the mistake in what is there now is said beside it.
                mistake = told.pop(f"{each}/{version}", "") or told.get(each, "")
                message.reason = "; ".join(filter(None, (message.reason, mistake)))
                found.append(message)
            if found and found[-1].name == each:
                told.pop(each, None)
        for label, why in sorted(told.items()):
            model, _, of = (label, "", "") if label.startswith("/") else label.partition("/")
            found.append(control.Model(name=model, version=of, state=REFUSED, reason=why))
        return found

    async def load(self, name: str, deadline_s: float, config: str = "") -> None:
        """Load the latest version of `name`, wherever it fits; return when it serves. `deadline_s` is monotonic.

        `config` is a JSON ModelConfig that overrides parts of the model's own until the next load without one or the
        next change of its files. Raises `LoadFailed`, for an unknown model too: Triton's clients look for that text.
        """
        view = self._mirror.view
        versions = view.versions(ModelName(name))
        if not versions:
            raise LoadFailed(
                f"failed to load '{name}', failed to poll from model repository: it is in no repository"
                f"{hint(view, name)}"
            )
        key = (ModelName(name), versions[0])
        model = await self._configure(key, config)
        forced = view.is_off(key) or not view.serving.get(key)
        await self._cold.wait(model, deadline_s, forced=forced)
        try:
            async with asyncio.timeout(max(0.0, deadline_s - time.monotonic())):
                view = await self._mirror.wait_for(lambda view: _answers(view, key, model.digest))
        except TimeoutError:
            raise DeadlineExceeded(f"model '{name}' is being loaded with its new configuration; call again") from None
        failed = [each.copy for each in view.copies[key] if each.copy.digest == model.digest and each.copy.error]
        if failed:
            raise LoadFailed(failed[0].error)

    async def _configure(self, key: VersionKey, config: str) -> ModelVersion:
        """Write the record with `config` over it, or without any override, and return it."""
        path = model_key(*key)
        for _ in range(WRITE_TRIES):
            entry = await self._store.get(path)
            if entry is None:
                break
            latest = records.decode_model(entry.value)
            wanted = overridden(latest, config) if config else restored(latest)
            if wanted == latest:
                return latest
            if await self._store.replace(path, records.encode(wanted), expected=entry.mod_revision) is not None:
                return wanted
        raise Conflict(f"the record of model '{key[0]}' keeps changing under this load; call again")

    async def unload(self, name: str, deadline_s: float) -> None:
        """Unload every version of `name` and keep requests from loading it again; return when no copy is left."""
        view = self._mirror.view
        versions = view.versions(ModelName(name))
        if not versions:
            raise unknown(view, name)
        keys = [(ModelName(name), version) for version in versions]
        for key in keys:
            await self._turn_off(key)
        try:
            async with asyncio.timeout(max(0.0, deadline_s - time.monotonic())):
                await self._mirror.wait_for(lambda view: _gone(view, keys))
        except TimeoutError:
            raise DeadlineExceeded(f"model '{name}' is being unloaded; requests in flight still finish") from None

    async def release(self, name: str, version: str) -> tuple[str, ...]:
        """Forget that `version` of `name`, or any when it is empty, ended processes; return those of which it was so.

        Raises `UnknownModel`. A node that could not load such a version tries again at once.
        """
        held = self._mirror.view.versions(ModelName(name))
        if not held or (version and Version(version) not in held):
            named = f"'{name}' version {version}" if version else f"'{name}'"
            raise UnknownModel(f"Request for unknown model: {named} is not found")
        wanted = [Version(version)] if version else held
        released = [each for each in wanted if await self._forget((ModelName(name), each))]
        return tuple(released)

    async def _forget(self, key: VersionKey) -> bool:
        if not await self._store.delete(suspect_key(*key)):
            return False
        path = placement_key(*key)
        for _ in range(WRITE_TRIES):
            entry = await self._store.get(path)
            placement = records.placement_of(entry)
            if entry is None or placement is None:
                return True
            again = replace(placement, requested_s=next_request_s(placement, steady_s()))
            if await self._store.replace(path, records.encode(again), expected=entry.mod_revision) is not None:
                return True
        raise Conflict(f"the placement of model '{key[0]}' keeps changing under this release; call again")

    async def _turn_off(self, key: VersionKey) -> None:
        path = placement_key(*key)
        for _ in range(WRITE_TRIES):
            entry = await self._store.get(path)
            requested_s = next_request_s(records.placement_of(entry), steady_s())
            off = Placement(*key, nodes=(), off=True, requested_s=requested_s)
            expected = entry.mod_revision if entry else 0
            if await self._store.replace(path, records.encode(off), expected=expected) is not None:
                return
        raise Conflict(f"the placement of model '{key[0]}' keeps changing under this unload; call again")


def _answers(view: ClusterView, key: VersionKey, digest: str) -> bool:
    """Tell whether a copy of these very files and settings serves or failed."""
    return any(
        each.copy.digest == digest and (each.copy.error or each.copy.state is CopyState.READY)
        for each in view.copies.get(key, ())
    )


def _gone(view: ClusterView, keys: Collection[VersionKey]) -> bool:
    return all(view.is_off(key) and not view.serving.get(key) for key in keys)


_TRITON_STATE = {
    "ready": ("READY", ""),
    "loading": ("LOADING", ""),
    "cold": ("UNAVAILABLE", "not loaded yet: the first request loads it"),
    "unloaded": ("UNAVAILABLE", "unloaded"),
    "failed": ("UNAVAILABLE", ""),
    "quarantined": ("UNAVAILABLE", "quarantined"),
    REFUSED: ("UNAVAILABLE", ""),
}
