"""The leader's work: learn what is asked for, tell the nodes what it means, keep as many copies as there should be.

Every router is a candidate; one leads. It reads the nodes' usage, `mesh.core.placement.duties` decides, and placements
are written by compare-and-swap, so that two leaders at a time (one that does not know yet that it is none) do no harm.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Final

from mesh.api.clock import steady_s
from mesh.api.messages import node_control
from mesh.core.errors import MeshError
from mesh.core.placement.demand import Demand, Usage
from mesh.core.placement.duties import Duty, Pass
from mesh.core.placement.ledger import learned_factors
from mesh.core.placement.orphans import PLACEMENT_S
from mesh.core.sightings import grown
from mesh.core.types import ModelName, ModelVersion, Node, NodeId, Version
from mesh.core.view import ClusterView, VersionKey
from mesh.registry import records
from mesh.registry.keys import FORECAST, LEADER, placement_key, suspect_key
from mesh.registry.leader import Election
from mesh.registry.mirror import Mirror
from mesh.registry.store import Store
from mesh.router.channels import Channels
from mesh.router.tidy import Tidy
from mesh.telemetry import logs
from mesh.wire.lasting import lasting

log = logs.get(__name__)

READ_S: Final = 1.0
"""How often the nodes' usage is read and copies in use are looked at."""

WHOLE_S: Final = 5.0
"""How often every placement is looked at, whatever happened; at once when a node came, went or is leaving."""

WHOLE_SHARE: Final = 0.05
"""Share of a core that looking at everything may take: with very many models it is done less often."""

SLICE: Final = 256
"""Versions looked at before requests get their turn: a millisecond or two."""

TELL_S: Final = 20.0
"""How often the forecast is written for the nodes."""

SAMPLE: Final = 5000
"""Versions that are looked at for what a runtime's models take in memory."""

LEASE_S: Final = 5
USAGE: Final = "/mesh.v1.NodeControl/Usage"
USAGE_TIMEOUT_S: Final = 2.0


class Steward:
    """Campaigns, and while it leads, does the slow duties. One per router process."""

    def __init__(
        self,
        mirror: Mirror,
        store: Store,
        channels: Channels,
        candidate: str,
        *,
        compact_s: float = 0.0,
        orphan_s: float = PLACEMENT_S,
    ) -> None:
        self._mirror = mirror
        self._compact_s = compact_s
        self._store = store
        self._channels = channels
        self._tidy = Tidy(store, placement_s=orphan_s)
        self._election = Election(store, LEADER, candidate, LEASE_S, on_change=self._changed)

    @property
    def leads(self) -> bool:
        """Whether this router does the duties now."""
        return self._election.is_leader

    async def run(self) -> None:
        """Campaign and lead, for ever. Cancelled, it steps down at once."""
        campaign = asyncio.create_task(lasting("the election", self._election.run))
        try:
            while True:
                await self._election.wait_for(leader=True)
                async with asyncio.TaskGroup() as tasks:
                    compacting = tasks.create_task(lasting("compacting the registry", self._compact))
                    await lasting("the leader's duties", self._lead)
                    compacting.cancel()
        finally:
            # The next leader need not wait for the lease: no more than a moment, or the registry is away anyway.
            try:
                async with asyncio.timeout(1.0):
                    await self._election.resign()
            except TimeoutError:
                campaign.cancel()
            await asyncio.gather(campaign, return_exceptions=True)

    async def _lead(self) -> None:
        demand, begun_s = self._remembered(), steady_s()
        read_s = next_whole_s = told_s = begun_s
        seen: object = None
        while self._election.is_leader:
            await asyncio.sleep(max(0.0, read_s + READ_S - steady_s()))
            now_s, view = steady_s(), self._mirror.view
            told = await self._usage(view, since_s=read_s)
            demand.read(told, read_s, now_s)
            read_s = now_s
            whole = seen != (seen := _members(view)) or now_s >= next_whole_s
            work = Pass(view, demand, now_s=now_s, begun_s=begun_s)
            try:
                took_s = await _look(work, demand, whole=whole)
                duties = work.decide()
                if whole:
                    next_whole_s = now_s + max(READ_S if work.more else WHOLE_S, took_s / WHOLE_SHARE)
                for duty in duties:
                    if await self._do(duty) and duty.fewer:
                        demand.lowered((duty.after.model, duty.after.version), now_s, begun_s)
                if whole:
                    await self._tidy.step(view, work.orphans, time.monotonic())
                    await self._tell_ages(view, now_s)
                if now_s - told_s >= TELL_S:
                    told_s = now_s
                    factors = learned_factors(_some_models(view))
                    demand.forecast = replace(demand.learner.forecast(), factors=factors)
                    await self._store.put(FORECAST, records.encode(demand.forecast))
            except MeshError as error:
                log.warning("the leader could not do its duties", error=error.message)
            except Exception:
                # Requests go on being served whatever is wrong here; the next pass looks at things anew.
                log.exception("the leader's duties failed")

    async def _tell_ages(self, view: ClusterView, now_s: float) -> None:
        """Say now and then how long ago versions ended processes, for those who start later. O(such versions)."""
        for key, suspect in view.suspects.items():
            if grown(suspect, now_s) is None:
                continue
            path = suspect_key(*key)
            entry = await self._store.get(path)
            latest = records.suspect_of(entry)
            told = grown(self._mirror.own(latest), now_s) if latest is not None else None
            if entry is not None and told is not None:
                await self._store.replace(path, records.encode(told), expected=entry.mod_revision)

    async def _compact(self) -> None:
        """Let the registry forget what is older than `compact_s`, for ever. Without it, etcd's space runs out."""
        while self._compact_s:
            revision = self._mirror.view.revision
            await asyncio.sleep(self._compact_s)
            try:
                await self._store.compact(revision)
            except MeshError as error:
                log.warning("could not compact the registry", error=error.message)

    def _remembered(self) -> Demand:
        """Return the demand as far as placements tell it: what nodes left there when they evicted."""
        demand = Demand()
        demand.forecast = self._mirror.view.forecast
        now_s = steady_s()
        for key, placement in self._mirror.view.placements.items():
            # By the clock of the node that wrote it: what that is ahead must not make it the future here.
            demand.remembered(key, placement.heat, min(placement.last_s, now_s))
        return demand

    async def _usage(self, view: ClusterView, *, since_s: float) -> list[tuple[NodeId, Usage]]:
        """Return what the nodes tell; one that does not answer tells nothing, and is asked again the next time."""
        idle_s = steady_s() - since_s + 2 * READ_S
        answers = await asyncio.gather(*(self._ask(node, idle_s) for node in view.nodes.values()))
        return [each for answer in answers for each in answer]

    async def _ask(self, node: Node, idle_s: float) -> list[tuple[NodeId, Usage]]:
        request = node_control.UsageRequest(within_s=idle_s).SerializeToString()
        try:
            channel = self._channels.to(node.address)
            reply = await channel.unary(USAGE, request, metadata=(), timeout_s=USAGE_TIMEOUT_S)
            answer = node_control.UsageResponse.FromString(reply.message)
        except (MeshError, ValueError):
            return []
        return [
            (
                node.id,
                Usage(
                    (ModelName(each.model), Version(each.version)),
                    each.requests,
                    each.busy_s,
                    each.in_flight,
                    each.idle_s,
                ),
            )
            for each in answer.copies
        ]

    async def _do(self, duty: Duty) -> bool:
        """Write a placement if it still is what the decision was made from; tell whether it was.

        Raises `RegistryUnavailable`.
        """
        after = duty.after
        path = placement_key(after.model, after.version)
        entry = await self._store.get(path)
        latest = records.placement_of(entry)
        if (latest.nodes if latest else ()) != (duty.before.nodes if duty.before else ()) or (latest and latest.off):
            return False
        expected = entry.mod_revision if entry else 0
        if await self._store.replace(path, records.encode(after), expected=expected) is None:
            return False
        log.info("changed copies", model=after.model, version=after.version, why=duty.why)
        return True

    def _changed(self, leading: bool) -> None:
        log.info("leads the placement" if leading else "no longer leads the placement")

    def __repr__(self) -> str:
        """Show whether it leads."""
        return f"<Steward {self._election!r}>"


def _some_models(view: ClusterView) -> Iterator[ModelVersion]:
    """Return enough versions to learn from; the map's own order is as good as chance."""
    return islice((model for versions in view.models.values() for model in versions.values()), SAMPLE)


async def _look(work: Pass, demand: Demand, *, whole: bool) -> float:
    """Look at every placement, or at those in use alone; return the CPU seconds it took. Requests go on meanwhile."""
    took_s = 0.0
    parts: list[tuple[Callable[[Iterable[VersionKey]], None], Iterator[VersionKey]]] = [
        (work.look, work.keys() if whole else iter(list(demand.scalers)))
    ]
    if whole:
        parts.append((work.look_to_fill, iter(list(demand.learner.histories))))
    for look, keys in parts:
        while some := list(islice(keys, SLICE)):
            began_s = time.perf_counter()
            look(some)
            took_s += time.perf_counter() - began_s
            await asyncio.sleep(0)
    return took_s


def _members(view: ClusterView) -> list[tuple[NodeId, str, bool]]:
    return [(node.id, node.incarnation, node.leaving or node.draining) for node in view.nodes.values()]
