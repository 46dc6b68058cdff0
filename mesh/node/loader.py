"""Making what this node holds what it should hold: loads, swaps, unloads and evictions.

`mesh.core.reconcile` says what to do; this file does it, one task per version, and looks again after every change of
the view or of its own copies.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial

from mesh.api.clock import steady_s
from mesh.core.errors import MeshError
from mesh.core.placement.failing import Failing
from mesh.core.reconcile import Abandon, Load, Unload, desired_of, reconcile
from mesh.core.types import Copy, CopyState, ModelName, ModelVersion, NodeId, Version
from mesh.core.view import VersionKey, version_order
from mesh.node.capacity import Account, choose
from mesh.node.checks import lacks
from mesh.node.closing import ended
from mesh.node.copies import Copies, Hear
from mesh.node.leave import Leaves
from mesh.node.loading import LOADS_AT_ONCE, Loads
from mesh.node.look import Look
from mesh.node.memory import Memory, NoRoom
from mesh.node.publish import Publisher
from mesh.node.repository import folder_of, labels_of
from mesh.node.runtimes.base import Loaded, LoadSpec
from mesh.node.runtimes.choice import Runtimes
from mesh.node.runtimes.onnx import has_cuda
from mesh.node.sequences import SequenceBatcher
from mesh.node.served import Served
from mesh.registry.mirror import Mirror
from mesh.telemetry import logs
from mesh.telemetry.metrics import NodeMetrics

log = logs.get(__name__)

ENDING_S = 1.0
"""How long a node that ends waits for runs: its server has answered, or given up, the calls they are for."""

DESCRIBE_AGAIN_S = 0.2
"""How long to wait for the view to show a signature that was written, before writing it again."""


class Loader:
    """Holds the copies of one node."""

    def __init__(
        self,
        node: NodeId,
        *,
        mirror: Mirror,
        leaves: Leaves,
        publisher: Publisher,
        runtimes: Runtimes,
        accounts: Sequence[Account],
        metrics: NodeMetrics,
        executor: Executor,
        default_queue_size: int,
        drain_s: float,
    ) -> None:
        self._node = node
        self._mirror = mirror
        self.leaves = leaves
        self._publisher = publisher
        self._runtimes = runtimes
        self._suspects = runtimes.suspects
        self.memory = Memory(node, accounts, mirror, evictable=self._evictable, idle=self._idle, evict=self._evict)
        self._metrics = metrics
        self._executor = executor
        self._default_queue_size = default_queue_size
        self._drain_s = drain_s
        self._loads = Loads(self.memory, publisher, runtimes)
        self._loading: set[VersionKey] = set()
        self._paused: dict[VersionKey, asyncio.TimerHandle] = {}
        """When what wakes the loop for versions that may not be loaded yet."""
        self._look = Look(self._concerns)
        mirror.on_changes.append(self._look.changed)
        self._copies = Copies()
        self._served: dict[VersionKey, Served] = {}
        self._leaving: dict[VersionKey, Served] = {}
        """Those that are being closed, whose sequences routers still take."""
        self._latest: dict[str, VersionKey] = {}
        """The latest version held of the names that were asked for without one; emptied when a copy is added."""
        self._tasks: dict[VersionKey, asyncio.Task[None]] = {}
        self._evicting: set[VersionKey] = set()
        self._left: set[asyncio.Task[None]] = set()
        """What waits until the placements of versions that were evicted are left."""
        self._failing = Failing()
        self._load_s = 0.0
        """A load's seconds, averaged over the last few."""
        self._suspects.on_change = self._look.at_all

    def find(self, name: str, version: str) -> Served | None:
        """Return the copy that answers for `version` of `name`, the latest held when `version` is empty; else None."""
        if version:
            return self._served.get((ModelName(name), Version(version)))
        latest = self._latest.get(name)
        served = None if latest is None else self._served.get(latest)
        if served is None:
            held = [key for key in self._served if key[0] == name]
            if not held:
                return None
            latest = self._latest[name] = max(held, key=lambda key: version_order(key[1]))
            served = self._served[latest]
        return served

    def sequences(self, name: str, version: str) -> SequenceBatcher | None:
        """Return the sequences of a copy that answers, or is on its way out."""
        key = (ModelName(name), Version(version))
        served = self._served.get(key) or self._leaving.get(key)
        return served.sequences if served is not None else None

    def copies(self) -> tuple[Copy, ...]:
        """Return every copy. O(copies)."""
        return tuple(self._copies.values())

    def on_change(self, hear: Hear) -> None:
        """Have `hear` called after any copy changed its state."""
        self._copies.on_change = hear

    def changed_copies(self) -> dict[VersionKey, Copy | None]:
        """Return the copies that changed since this was asked last, None for one that is gone. O(those)."""
        return self._copies.changed()

    def note_uses(self, share: float) -> None:
        """Note the last use, to the minute, of this share of the copies: the next in turn; and whose pause is over."""
        self._copies.note_uses(self._served, share)
        self._copies.end_pauses(time.monotonic())

    def failing(self) -> str:
        """Return why this node should get no more models; empty when it may."""
        return self._failing.why(steady_s())

    @property
    def loading(self) -> int:
        """Loads that go on or wait for their turn."""
        return len(self._loading)

    def load_wait_s(self) -> float:
        """Return the seconds until a load asked for now would begin, as far as the last loads tell."""
        waiting = self.loading - LOADS_AT_ONCE + 1
        return max(0, waiting) * self._load_s / LOADS_AT_ONCE

    def held(self) -> list[tuple[VersionKey, Served]]:
        """Return the copies that answer, with their keys."""
        return list(self._served.items())

    def device_of(self, key: VersionKey) -> str:
        """Return the device of a copy, empty when there is none."""
        copy = self._copies.get(key)
        return copy.device if copy is not None else ""

    def resized(self, key: VersionKey, held: int) -> None:
        """Take that a copy holds more, or less, than before."""
        served = self._served.get(key)
        if served is not None:
            served.bytes = held
            served.model = replace(served.model, loaded_bytes=held)
            self._copies.set(replace(self._copies[key], bytes=held))

    def served(self) -> list[Served]:
        """Return the copies that answer."""
        return [served for _, served in sorted(self._served.items())]

    async def run(self) -> None:
        """Reconcile for ever. Cancelled, it leaves the copies as they are; `close` ends them."""
        self._look.at_all()
        while True:
            self._reconcile(await self._look.next())

    def _reconcile(self, keys: set[VersionKey] | None) -> None:
        """Begin what these versions need, None: all."""
        view = self._mirror.view
        held = self._copies if keys is None else {key: self._copies[key] for key in keys if key in self._copies}
        for action in reconcile(desired_of(view, self._node, keys), held):
            match action:
                case Load(model, requested_s) if self._may_begin(model):
                    self._start((model.name, model.version), self._load(model, requested_s), loads=True)
                case Unload(key) if self._is_free(key):
                    self._start(key, self._unload(key))
                case Unload(key) | Abandon(key) if key in self._loading:
                    # Nobody wants it any more: a load that never ends must not keep what it holds.
                    self._tasks[key].cancel()
                case _:
                    pass  # Busy with this version: looked at again when that ends.
        for key in list(self._served if keys is None else keys & self._served.keys()):
            served = self._served[key]
            if self._is_free(key) and served.in_process and self._suspects.must_isolate(served.model):
                # It ended a node's process somewhere: it is loaded again where it harms no other.
                self._start(key, self._unload(key))
            elif self._is_free(key) and lacks(view, served.model):
                self._start(key, self._describe(served.model, served.loaded))

    def _concerns(self, key: VersionKey) -> bool:
        return key in self._copies or key in self._mirror.view.placed.get(self._node, ())

    def _may_begin(self, model: ModelVersion) -> bool:
        """Tell whether a load may begin; the loop looks again when it may."""
        key = (model.name, model.version)
        pause_s = self._suspects.pause_s(model, steady_s())
        if pause_s and (key not in self._paused or self._paused[key].when() <= asyncio.get_running_loop().time()):
            # One timer, however often the view moves meanwhile; a release is news by itself.
            self._paused[key] = asyncio.get_running_loop().call_later(pause_s, self._look.at, key)
        elif not pause_s and (waiting := self._paused.pop(key, None)) is not None:
            waiting.cancel()
        return not pause_s and self._is_free(key)

    async def close(self) -> None:
        """Stop loading and close every copy."""
        for task in list(self._tasks.values()):
            task.cancel()
        for leaving in list(self._left):
            leaving.cancel()
        await asyncio.gather(*self._tasks.values(), *self._left, return_exceptions=True)
        served = list(self._served.values())
        for each in served:
            each.gone = True
        self._served.clear()
        await asyncio.gather(*(self._close(each, ENDING_S) for each in served))

    def _is_free(self, key: VersionKey) -> bool:
        """Tell whether nothing is being done with a version; if something is, the loop looks again when that ends."""
        return key not in self._tasks and key not in self._evicting

    def _start(self, key: VersionKey, work: object, *, loads: bool = False) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)  # type: ignore[arg-type] # a coroutine of ours
        self._tasks[key] = task
        if loads:
            self._loading.add(key)
        task.add_done_callback(lambda _: self._ended(key))

    def _ended(self, key: VersionKey) -> None:
        del self._tasks[key]
        self._loading.discard(key)
        self._look.at(key)

    def _lost(self, key: VersionKey, served: Served, why: str) -> None:
        """Take a copy out whose processes cannot be started again."""
        if self._served.get(key) is not served:
            return
        del self._served[key]
        self._latest.clear()
        served.gone = True
        self.memory.release(key)
        copy = self._copies[key]
        self._copies.set(replace(copy, state=CopyState.FAILED, error=why, bytes=0, failures=copy.failures + 1))
        log.warning("a copy was lost", model=key[0], version=key[1], why=why)
        self._look.at(key)

    async def _load(self, model: ModelVersion, requested_s: float) -> None:
        key = (model.name, model.version)
        copy = Copy(model.name, model.version, CopyState.LOADING, requested_s=requested_s, digest=model.digest)
        old, before = self._served.get(key), self._copies.get(key)
        if old is None:
            self._copies.set(copy)
        started_s = time.monotonic()
        try:
            async with self._loads.turn():
                account = choose(model, self.memory.accounts, gpu_runs=model.runtime == "onnx" and has_cuda())
                labels = await asyncio.to_thread(labels_of, folder_of(model))
                copy = replace(copy, device=account.name)
                runtime = self._runtimes.of(model)
                spec, factors = LoadSpec(model, folder_of(model), account.now()), self._mirror.view.forecast.factors
                held = await self._loads.load(spec, account, runtime, factors)
        except NoRoom as error:
            log.warning("gave a load up", model=model.name, version=model.version, why=error.message)
            await self._give_up(key, kept=old is not None)
            return
        except asyncio.CancelledError:
            if old is None:
                self._drop(key)
            raise
        except Exception as error:  # noqa: BLE001 - whatever goes wrong, the copy must not stay "loading"
            self._metrics.load_done(model.name, model.version, False, time.monotonic() - started_s)  # noqa: FBT003 - a fact
            text = error.message if isinstance(error, MeshError) else f"failed to load '{model.name}', {error!r}"
            log.warning("load failed", model=model.name, version=model.version, error=text)
            # While older files serve, they go on serving; the record says what went wrong with the new ones.
            state = CopyState.FAILED if old is None else CopyState.READY
            others = self._mirror.view.serving.get(key, ())
            self._failing.failed(key, text, steady_s(), elsewhere=any(each.node.id != self._node for each in others))
            failures = 1 if before is None or before.digest != model.digest else before.failures + 1
            self._copies.set(
                replace(copy, state=state, error=text, bytes=0 if old is None else old.bytes, failures=failures)
            )
            return
        seconds = time.monotonic() - started_s
        self._failing.loaded()
        self._load_s += (held.load_s - self._load_s) / 8
        self._metrics.load_done(model.name, model.version, True, seconds)  # noqa: FBT003 - a fact
        if held.loaded.apart is not None:
            held.loaded.apart.on_lost = lambda why: self._lost(key, served, why)
        self._latest.clear()
        self._served[key] = served = Served(
            replace(model, loaded_bytes=held.bytes, load_s=round(held.load_s, 4)),
            held.loaded,
            held.loaded.executor or self._executor,
            bytes_held=held.bytes,
            default_queue_size=self._default_queue_size,
            load_s=held.load_s,
            history=self.leaves.left(key) if old is None else old.history,
            labels=labels,
            in_process=runtime.in_process,
        )
        self._copies.set(replace(copy, state=CopyState.READY, bytes=held.bytes))
        log.info("loaded", model=model.name, version=model.version, bytes=held.bytes, seconds=round(seconds, 3))
        if old is not None:
            old.gone = True
            await self._close(old)

    def _evictable(self, device: str) -> Iterator[tuple[VersionKey, Served]]:
        for key in self._served:
            if (served := self._idle(key, device)) is not None:
                yield key, served

    def _idle(self, key: VersionKey, device: str) -> Served | None:
        """Return a copy on a device that nobody uses now; None for any other."""
        served = self._served.get(key)
        if served is None or not served.is_idle or not self._is_free(key) or self._copies[key].device != device:
            return None
        return served

    async def _give_up(self, key: VersionKey, *, kept: bool) -> None:
        """Leave a load that finds no room here to other nodes."""
        try:
            await self.leaves.leave(key, None)
        except MeshError as error:
            log.warning("could not give a load up", model=key[0], error=error.message)
        if not kept:
            self._drop(key)

    async def _evict(self, key: VersionKey) -> None:
        """Drop a copy, and take this node out of its version's placement: that may take longer."""
        served = self._served.get(key)
        if served is None:
            return  # It went by another way while others were evicted.
        # The loop must neither unload the copy as well, nor load it again before it is out of the placement.
        self._evicting.add(key)
        log.info("evicted", model=key[0], version=key[1])
        try:
            await self._unload(key)
        finally:
            leaving = asyncio.create_task(self.leaves.evicted(key, served.history))
            self._left.add(leaving)
            leaving.add_done_callback(partial(self._was_left, key))

    def _was_left(self, key: VersionKey, leaving: asyncio.Task[None]) -> None:
        self._left.discard(leaving)
        self._evicting.discard(key)
        self._look.at(key)

    async def _unload(self, key: VersionKey) -> None:
        served = self._served.pop(key, None)
        if served is not None:
            served.gone = True
            self._copies.set(replace(self._copies[key], state=CopyState.DRAINING))
            self._leaving[key] = served
            try:
                if served.sequences is not None:
                    await served.sequences.given_away()
                await self._close(served)
            finally:
                del self._leaving[key]
            self.memory.release(key)
            log.info("unloaded", model=key[0], version=key[1])
        self._drop(key)

    def _drop(self, key: VersionKey) -> None:
        """Hold a copy no more, nor its numbers."""
        self._copies.drop(key)
        self._metrics.dropped(*key)

    async def _close(self, served: Served, within_s: float | None = None) -> None:
        """Wait for what is in flight, then close."""
        if within_s is None:
            # What hangs in this process is not waited for: it was, before it was told.
            within_s = ENDING_S if served.in_process and self._suspects.must_isolate(served.model) else self._drain_s
        await ended(served, within_s)

    async def _describe(self, model: ModelVersion, loaded: Loaded) -> None:
        try:
            await self._publisher.describe(model, loaded.inputs, loaded.outputs)
        except MeshError as error:
            log.warning("could not publish a signature", model=model.name, error=error.message)
        # The view is a moment behind the write: without this, the loop would write again before it hears of it.
        await asyncio.sleep(DESCRIBE_AGAIN_S)

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Loader copies={len(self._copies)} serving={len(self._served)} busy={len(self._tasks)}>"
