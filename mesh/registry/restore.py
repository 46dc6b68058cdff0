"""Putting back what the registry lost with its data: every process with a view of it can.

`mesh.core.lost` says what. It is written only where there is nothing, after a moment by chance, so that mostly one
process of many does the work and the others find it done. Owns the mark, too, by which a history is known again.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from mesh.api.clock import steady_s
from mesh.core.errors import MeshError
from mesh.core.fold import Change, ModelChange, PipelineChange, PlacementChange, SuspectChange
from mesh.core.view import ClusterView
from mesh.registry.keys import HISTORY, model_key, pipeline_key, placement_key, suspect_key
from mesh.registry.mirror import Mirror
from mesh.registry.records import Record, encode
from mesh.registry.store import Guard, Store, batches
from mesh.registry.trouble import Trouble
from mesh.telemetry import logs

log = logs.get(__name__)

ROUTER_S: Final = (0.0, 0.5)
"""Between these many seconds after it has read that all is gone a router begins: sooner than nodes, which have enough
to do."""
NODE_S: Final = (0.5, 3.0)


class Restore:
    """One per process. `after_s` is the range of the moment that it waits."""

    def __init__(self, mirror: Mirror, store: Store, after_s: tuple[float, float]) -> None:
        self._mirror = mirror
        self._store = store
        self._after_s = after_s
        self._trouble = Trouble(lambda text: log.warning("cannot put back what the registry lost", why=text))

    async def run(self) -> None:
        """Mark the registry's history, and put back what it loses, for ever, whatever it says meanwhile."""
        while True:
            anew = self._mirror.anew
            try:
                await self._mark()
                if self._mirror.lost:
                    await asyncio.sleep(random.uniform(*self._after_s))  # noqa: S311 - spreads load, no secret
                    await self._put_back()
            except MeshError as error:
                self._trouble.met(error)
                await asyncio.sleep(self._trouble.pause_s)
            else:
                self._trouble.over()
                if self._mirror.anew is anew:
                    await anew.wait()

    async def _mark(self) -> None:
        await self._store.replace(HISTORY, secrets.token_hex(8).encode(), expected=0)

    async def _put_back(self) -> None:
        """Write what is still missing where there is nothing. Raises as the store does."""
        lost, view = self._mirror.lost.held, self._mirror.view
        found = {path: (change, record) for change in lost if (at := _record(view, change)) for path, record in (at,)}
        written = 0
        for batch in batches({path: encode(record) for path, (_, record) in found.items()}):
            written += await self._write(batch)
            for path in batch:
                self._mirror.lost.back(found[path][0])
        log.warning("put back what the registry lost", records=written, by_others=len(lost) - written)

    async def _write(self, batch: Mapping[str, bytes | None]) -> int:
        """Write what is not there of a batch; return how many. Where somebody was quicker, by halves."""
        absent: Sequence[Guard] = [Guard(path, mod_revision=0) for path in batch]
        if await self._store.write(batch, guards=absent) is not None:
            return len(batch)
        if len(batch) == 1:
            return 0
        paths = list(batch)
        halves = (paths[: len(paths) // 2], paths[len(paths) // 2 :])
        return sum([await self._write({path: batch[path] for path in half}) for half in halves])

    def __repr__(self) -> str:
        """Show where it stands."""
        return f"<Restore {self._trouble!r}>"


def _record(view: ClusterView, gone: Change) -> tuple[str, Record] | None:
    """Return the key and the record that a deletion is about, as the view still has it."""
    match gone:
        case ModelChange((name, version)) if (model := view.models.get(name, {}).get(version)) is not None:
            return model_key(name, version), model
        case PlacementChange(key) if (placement := view.placements.get(key)) is not None:
            return placement_key(*key), placement
        case PipelineChange(name) if (pipeline := view.pipelines.get(name)) is not None:
            return pipeline_key(name), pipeline
        case SuspectChange(key) if (suspect := view.suspects.get(key)) is not None:
            quiet_s = max(suspect.quiet_s, round(steady_s() - suspect.last_s, 1))
            return suspect_key(*key), replace(suspect, quiet_s=quiet_s)
    return None
