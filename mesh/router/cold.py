"""Waiting for a cold model: one drive per version, however many calls wait for it.

`mesh.core.placement.cold` decides each step; this file performs it (a compare-and-swap on the placement) and looks
again at the next view. A drive outlives the callers that gave up, so that the load goes on for the next one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from mesh.api.clock import steady_s
from mesh.core.errors import (
    DeadlineExceeded,
    Loading,
    MeshError,
    NotReady,
    Overloaded,
    RegistryUnavailable,
    UnknownModel,
)
from mesh.core.placement.cold import Place, Refused, Serving, Step, Waiting, cold_step
from mesh.core.placement.progress import progress
from mesh.core.types import ModelVersion, NodeId, Placement
from mesh.core.view import ClusterView, VersionKey
from mesh.registry import records
from mesh.registry.keys import placement_key
from mesh.registry.mirror import Mirror
from mesh.registry.store import Guard, Store
from mesh.telemetry import logs

log = logs.get(__name__)

LOOK_AGAIN_S = 0.5
"""A drive looks again after this long without a new view: a suspicion ends, a failed write is repeated."""

LEAST_ESTIMATE_S = 1.0
"""A load that is expected to be over sooner is waited for, however short the deadline: the estimate is no better."""

DRIVE_IDLE_S = 120.0
"""A drive whose callers all left goes on for this long. Loads that take longer finish on the node all the same."""


MARGIN = 0.05
MOST_MARGIN_S = 0.1
"""Share of the time left, and at most how much of it, taken off a wait: what is said at its end (which load was waited
for, and how long that takes) must reach the caller before the caller's own clock cuts it off."""


def patience_s(deadline_s: float | None, now_s: float, most_s: float) -> float:
    """Return until when a call waits for a cold model: `most_s` at most, and so long that it still hears why."""
    if deadline_s is None:
        return now_s + most_s
    return min(now_s + most_s, deadline_s - max(0.002, min(MOST_MARGIN_S, MARGIN * (deadline_s - now_s))))


@dataclass(slots=True)
class _Drive:
    task: asyncio.Task[None]
    waiting: int = 0
    why: str = "it is being placed"
    registry: str = ""
    """Why the placement could not be written; empty when it was, or need not be."""
    left_s: float = field(default_factory=time.monotonic)
    since_s: float = field(default_factory=steady_s)


class Cold:
    """Loads on demand. `avoided` names the nodes whose connection failed a moment ago."""

    def __init__(
        self, mirror: Mirror, store: Store, *, avoided: Callable[[ClusterView], Collection[NodeId]], max_waiting: int
    ) -> None:
        self._mirror = mirror
        self._store = store
        self._avoided = avoided
        self._max_waiting = max_waiting
        self._drives: dict[VersionKey, _Drive] = {}

    async def wait(self, model: ModelVersion, deadline_s: float, *, forced: bool = False) -> None:
        """Return when a copy of `model` serves.

        Raises `Overloaded` when too many calls wait already, `Loading` at once when less than half of the expected time
        is left until `deadline_s` (monotonic), `DeadlineExceeded` at it, and what `cold_step` refuses with. The load
        goes on when its callers were refused, cancelled or late.
        """
        key = (model.name, model.version)
        drive = self._drives.get(key)
        if drive is None or forced:
            before = drive.task if drive is not None else None
            drive = self._drives[key] = _Drive(asyncio.create_task(self._run(model, before, forced=forced)))
            drive.task.add_done_callback(lambda task: self._ended(key, task))
        facts = {"model": model.name, "version": model.version, "waiting": str(drive.waiting)}
        left_s = self._left_s(model, drive)
        if drive.waiting >= self._max_waiting:
            told = f"Exceeds maximum queue size: {drive.waiting} calls wait for model '{model.name}' to load"
            raise Overloaded(told, retry_after_s=left_s, facts=facts)
        spare_s = deadline_s - time.monotonic()
        if left_s > LEAST_ESTIMATE_S and spare_s < left_s / 2:
            raise Loading(
                f"model '{model.name}' version {model.version} is being loaded, which takes about {left_s:.1f} s more, "
                f"and this call has {max(0.0, spare_s):.1f} s left; the load goes on, call again when it is done",
                retry_after_s=left_s,
                facts={**facts, "estimate_s": f"{left_s:.1f}"},
            )
        drive.waiting += 1
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline_s - time.monotonic()):
                await asyncio.shield(drive.task)
        except TimeoutError:
            if drive.registry:
                raise RegistryUnavailable(
                    f"model '{model.name}' version {model.version} was not placed in time: {drive.registry}; "
                    "it is tried again, call again later"
                ) from None
            going_on = "; ".join(each.told for each in progress(self._mirror.view, key))
            raise DeadlineExceeded(
                f"model '{model.name}' version {model.version} did not become ready in time: {going_on or drive.why}, "
                f"for {steady_s() - drive.since_s:.1f} s by now; the load goes on, call again with a longer deadline"
            ) from None
        finally:
            drive.waiting -= 1
            drive.left_s = time.monotonic()

    def _left_s(self, model: ModelVersion, drive: _Drive) -> float:
        """Return the seconds that the load is expected to take from now on: what one took before; 0 when none did."""
        if not model.load_s:
            return 0.0
        placement = self._mirror.view.placements.get((model.name, model.version))
        nodes = self._mirror.view.nodes
        queues = [nodes[node].load_wait_s for node in (placement.nodes if placement else ()) if node in nodes]
        return max(0.0, model.load_s + min(queues, default=0.0) - (steady_s() - drive.since_s))

    async def close(self) -> None:
        """Stop all drives; their callers get `NotReady`."""
        tasks = [drive.task for drive in self._drives.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, key: VersionKey, task: asyncio.Task[None]) -> None:
        drive = self._drives.get(key)
        if drive is not None and drive.task is task:
            del self._drives[key]
        if not task.cancelled():
            # Retrieved, so that an error nobody waits for any more is not reported as lost.
            task.exception()

    async def _run(self, model: ModelVersion, before: asyncio.Task[None] | None, *, forced: bool) -> None:
        if before is not None:
            await asyncio.gather(before, return_exceptions=True)
        key = (model.name, model.version)
        try:
            while True:
                view = self._mirror.view
                drive = self._drives[key]
                if not drive.waiting and time.monotonic() - drive.left_s > DRIVE_IDLE_S:
                    return
                held = view.models.get(model.name, {}).get(model.version)
                if held is None:
                    raise UnknownModel(f"Request for unknown model: '{model.name}' is not found")
                step = self._step(view, held, view.placements.get(key), forced=forced)
                match step:
                    case Serving():
                        return
                    case Refused(error):
                        raise error
                    case Place():
                        forced = not await self._place(view, held, forced=forced) and forced
                    case Waiting(_, why):
                        drive.why = why
                await self._next(view)
        except asyncio.CancelledError:
            raise NotReady("this router is shutting down") from None

    def _step(self, view: ClusterView, model: ModelVersion, placement: Placement | None, *, forced: bool) -> Step:
        since_s = self._drives[model.name, model.version].since_s
        avoid = self._avoided(view)
        return cold_step(view, model, placement, avoid=avoid, now_s=steady_s(), since_s=since_s, forced=forced)

    async def _place(self, view: ClusterView, model: ModelVersion, *, forced: bool) -> bool:
        """Write a placement as decided on the view, if the registry still has the one of the view; else decide again.

        Tells whether it was written. The view may be a moment old: another router may have placed the model already,
        and then nothing is written.
        """
        key = (model.name, model.version)
        path, drive, seen = placement_key(*key), self._drives[key], view.placements.get(key)
        try:
            step = self._step(view, model, seen, forced=forced)
            if isinstance(step, Place):
                guard = Guard(path, seen=view.revision) if seen is not None else Guard(path, mod_revision=0)
                value = records.encode(step.placement)
                if await self._store.write({}, guards=(guard,), unleased={path: value}) is not None:
                    return self._placed(step.placement, drive)
            entry = await self._store.get(path)
            latest = records.placement_of(entry)
            step = self._step(view, model, latest, forced=forced)
            if not isinstance(step, Place):
                return False
            expected = entry.mod_revision if entry else 0
            written = await self._store.replace(path, records.encode(step.placement), expected=expected)
        except MeshError as error:
            # Whatever the registry says, no caller is to blame: it is tried again for as long as one waits.
            if drive.registry != error.message:
                log.warning("cannot place a model", model=model.name, version=model.version, error=error.message)
            drive.registry = error.message
            return False
        drive.registry = ""
        return written is not None and self._placed(step.placement, drive)

    @staticmethod
    def _placed(placement: Placement, drive: _Drive) -> bool:
        drive.registry = ""
        log.info("placed", model=placement.model, version=placement.version, nodes=",".join(placement.nodes))
        return True

    async def _next(self, view: ClusterView) -> None:
        try:
            async with asyncio.timeout(LOOK_AGAIN_S):
                await self._mirror.next(view)
        except TimeoutError:
            return

    def __repr__(self) -> str:
        """Show the drives and how many calls wait for each."""
        return f"<Cold { ({f'{name}/{version}': drive.waiting for (name, version), drive in self._drives.items()}) }>"
