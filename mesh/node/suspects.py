"""The versions that ended processes, as one node knows and tells them: mesh-wide through the registry, here at once.

`mesh.core.suspects` says what a death leads to. What a process of this node died of counts here from the moment it is
told; it is written by compare-and-swap as soon as the registry answers, in the order of the deaths.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from mesh.api.clock import steady_s
from mesh.core import suspects
from mesh.core.errors import MeshError
from mesh.core.suspects import Death, Suspect
from mesh.core.types import ModelVersion, NodeId
from mesh.core.view import VersionKey
from mesh.registry import records
from mesh.registry.keys import suspect_key
from mesh.registry.mirror import Mirror
from mesh.registry.store import Store
from mesh.telemetry import logs
from mesh.telemetry.metrics import NodeMetrics

log = logs.get(__name__)

AGAIN_S = 1.0
"""How long after the registry did not answer a death is written again."""


@dataclass(frozen=True, slots=True)
class _Event:
    """A death that is to be written."""

    model: ModelVersion
    how: Death
    text: str
    at_s: float


@dataclass(slots=True)
class _Known:
    """What is known here and perhaps not yet in the view."""

    suspect: Suspect
    revision: int = 0
    """Of the registry when it was written; 0: it is not."""
    history: object = None
    """Which history of the registry that is a revision of (`Mirror.anew`)."""


class Suspects:
    """One per node process. All but `run` are called from the event loop's thread, and wait for nothing."""

    def __init__(self, node: NodeId, *, mirror: Mirror, store: Store, metrics: NodeMetrics) -> None:
        self._node = node
        self._mirror = mirror
        self._store = store
        self._metrics = metrics
        self._known: dict[VersionKey, _Known] = {}
        self._events: deque[_Event] = deque()
        self._news = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None
        """Called after a death was told here; what other nodes tell is news of the view."""

    def died(self, model: ModelVersion, how: Death, text: str) -> None:
        """Take that `model` ended a process: a worker, or the one of this node that was here before.

        `text` says what it died of, such as "segmentation fault". Only what the model alone is to blame for: a process
        that was ended from outside, by an operator or because it was not needed any more, is nobody's death.
        """
        event = _Event(model, how, text, steady_s())
        key = (model.name, model.version)
        self._metrics.model_died(model.name, model.version, how.value)
        log.error("a model ended a process", model=model.name, version=model.version, process=how.value, why=text)
        current = self._mirror.view.models.get(model.name, {}).get(model.version)
        if current is not None and current.digest != model.digest:
            return  # Its files changed meanwhile: what is known of the new ones stays.
        self._known[key] = _Known(self._after(self.of(model), event))
        self._events.append(event)
        self._news.set()
        self.on_change()

    def worker_died(self, model: ModelVersion, text: str) -> float:
        """Take that `model` ended a worker; return the seconds until it may be started again."""
        self.died(model, Death.WORKER, text)
        return self.pause_left_s(model)

    def of(self, model: ModelVersion) -> Suspect | None:
        """Return what is known of a version; None: nothing that counts for these files."""
        key = (model.name, model.version)
        known = self._known.get(key)
        if known is not None and known.revision and self._is_seen(known):
            # The view has it, or what came after it: another death, or an operator's release.
            del self._known[key]
            known = None
        suspect = known.suspect if known is not None else self._mirror.view.suspects.get(key)
        return suspect if suspect is not None and suspect.digest == model.digest else None

    def _is_seen(self, known: _Known) -> bool:
        # What another history lacks stays in the view (`mesh.core.lost`).
        return self._mirror.view.revision >= known.revision or self._mirror.anew is not known.history

    def must_isolate(self, model: ModelVersion) -> bool:
        """Tell whether a version may not run in this node's own process. O(1)."""
        return suspects.must_isolate(self.of(model), model.digest)

    def pause_s(self, model: ModelVersion, now_s: float) -> float:
        """Return the seconds until a version may be loaded again, 0 when it may now; `now_s` as `steady_s`. O(1)."""
        return suspects.pause_s(self.of(model), model.digest, now_s)

    def pause_left_s(self, model: ModelVersion) -> float:
        """Return the seconds from now until a version may be loaded again. O(1)."""
        return self.pause_s(model, steady_s())

    async def run(self) -> None:
        """Write what is told, for ever. Cancelled, what is not written yet is lost."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._events:
                try:
                    await self._write(self._events[0])
                except MeshError as error:
                    log.warning("could not write what a process died of", error=error.message)
                    await asyncio.sleep(AGAIN_S)
                else:
                    self._events.popleft()

    async def _write(self, event: _Event) -> None:
        """Write one death behind those that others wrote. Raises `RegistryUnavailable`."""
        model = event.model
        path, key = suspect_key(model.name, model.version), (model.name, model.version)
        while True:
            entry = await self._store.get(path)
            # Whoever wrote what cannot be read: a death is not left out for it.
            before = records.suspect_of(entry)
            after = self._after(self._mirror.own(before) if before is not None else None, event)
            expected = entry.mod_revision if entry is not None else 0
            said = replace(after, quiet_s=round(max(0.0, steady_s() - after.last_s), 1))
            revision = await self._store.replace(path, records.encode(said), expected=expected)
            if revision is not None:
                break
        more = any((each.model.name, each.model.version) == key for each in list(self._events)[1:])
        if not more:
            self._known[key] = _Known(after, revision, self._mirror.anew)

    def _after(self, before: Suspect | None, event: _Event) -> Suspect:
        return suspects.died(before, event.model, event.how, event.text, self._node, event.at_s)

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Suspects known={len(self._known)} to_write={len(self._events)}>"
