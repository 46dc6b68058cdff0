"""Making what this node holds what it should hold: loads, swaps, unloads and evictions.

`mesh.core.reconcile` says what to do; this file does it, one task per version, and looks again after every change of
the view or of its own copies.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mesh.core.errors import LoadFailed, MeshError
from mesh.core.placement.ledger import Idle, predicted_bytes
from mesh.core.reconcile import Load, Unload, desired_of, reconcile
from mesh.core.types import Copy, CopyState, ModelName, ModelVersion, NodeId, Version
from mesh.core.view import ClusterView, VersionKey, version_order
from mesh.node.capacity import Account, choose, used_bytes
from mesh.node.publish import Publisher
from mesh.node.repository import labels_of
from mesh.node.runtimes.base import Loaded, LoadSpec, Runtime
from mesh.node.runtimes.onnx import has_cuda
from mesh.node.runtimes.python import STREAMS
from mesh.node.served import Served
from mesh.registry import records
from mesh.registry.keys import placement_key
from mesh.registry.mirror import Mirror
from mesh.registry.store import Store
from mesh.telemetry import logs
from mesh.telemetry.metrics import NodeMetrics

log = logs.get(__name__)

LOADS_AT_ONCE = 2
"""Loads read disks and allocate memory: more at once make each slower and their measured bytes wrong."""

EVICT_TRIES = 5

DESCRIBE_AGAIN_S = 0.2
"""How long to wait for the view to show a signature that was written, before writing it again."""


class Loader:
    """Holds the copies of one node."""

    def __init__(
        self,
        node: NodeId,
        *,
        mirror: Mirror,
        store: Store,
        publisher: Publisher,
        runtimes: Mapping[str, Runtime],
        accounts: Sequence[Account],
        metrics: NodeMetrics,
        executor: Executor,
        default_queue_size: int,
        drain_s: float,
    ) -> None:
        self._node = node
        self._mirror = mirror
        self._store = store
        self._publisher = publisher
        self._runtimes = runtimes
        self._accounts = accounts
        self._metrics = metrics
        self._executor = executor
        self._default_queue_size = default_queue_size
        self._drain_s = drain_s
        self._loading = asyncio.Semaphore(LOADS_AT_ONCE)
        self._making_room = asyncio.Lock()
        self._wake = asyncio.Event()
        self._copies: dict[VersionKey, Copy] = {}
        self._served: dict[VersionKey, Served] = {}
        self._latest: dict[str, VersionKey] = {}
        """The latest version held of the names that were asked for without one; emptied when a copy is added."""
        self._tasks: dict[VersionKey, asyncio.Task[None]] = {}
        self._evicting: set[VersionKey] = set()
        self.on_change: Callable[[], None] = lambda: None
        """Called after any copy changed its state."""

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

    def copies(self) -> tuple[Copy, ...]:
        """Return every copy with its last use, in key order."""
        return tuple(
            replace(copy, last_used_s=self._served[key].last_used_s) if key in self._served else copy
            for key, copy in sorted(self._copies.items())
        )

    def served(self) -> list[Served]:
        """Return the copies that answer."""
        return [self._served[key] for key in sorted(self._served)]

    async def run(self) -> None:
        """Reconcile for ever. Cancelled, it leaves the copies as they are; `close` ends them."""
        while True:
            view = self._mirror.view
            self._wake.clear()
            for action in reconcile(desired_of(view, self._node), self._copies):
                match action:
                    case Load(model, requested_s) if self._is_free((model.name, model.version)):
                        self._start((model.name, model.version), self._load(model, requested_s))
                    case Unload(key) if self._is_free(key):
                        self._start(key, self._unload(key))
                    case _:
                        pass  # Busy with this version: looked at again when that ends.
            for key, served in self._served.items():
                if self._is_free(key) and _lacks_signature(view, served.model):
                    self._start(key, self._describe(served.model, served.loaded))
            moved = asyncio.ensure_future(self._mirror.next(view))
            woken = asyncio.ensure_future(self._wake.wait())
            try:
                await asyncio.wait((moved, woken), return_when=asyncio.FIRST_COMPLETED)
            finally:
                moved.cancel()
                woken.cancel()

    async def close(self) -> None:
        """Stop loading and close every copy."""
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        served = list(self._served.values())
        self._served.clear()
        await asyncio.gather(*(self._close(each) for each in served))

    def _is_free(self, key: VersionKey) -> bool:
        """Tell whether nothing is being done with a version; if something is, the loop looks again when that ends."""
        return key not in self._tasks and key not in self._evicting

    def _start(self, key: VersionKey, work: object) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)  # type: ignore[arg-type] # a coroutine of ours
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._ended(key))

    def _ended(self, key: VersionKey) -> None:
        del self._tasks[key]
        self._wake.set()

    def _set(self, copy: Copy) -> None:
        self._copies[copy.model, copy.version] = replace(copy, changed_s=time.time())
        self.on_change()

    async def _load(self, model: ModelVersion, requested_s: float) -> None:
        key = (model.name, model.version)
        copy = Copy(model.name, model.version, CopyState.LOADING, requested_s=requested_s, digest=model.digest)
        old = self._served.get(key)
        if old is None:
            self._set(copy)
        started_s = time.monotonic()
        try:
            async with self._loading:
                account = choose(model, self._accounts, gpu_runs=model.runtime == "onnx" and has_cuda())
                labels = await asyncio.to_thread(labels_of, _folder(model))
                copy = replace(copy, device=account.name)
                loaded, measured = await self._load_into(model, account)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong, the copy must not stay "loading"
            self._metrics.load_done(model.name, model.version, False, time.monotonic() - started_s)  # noqa: FBT003 - a fact
            text = error.message if isinstance(error, MeshError) else f"failed to load '{model.name}', {error!r}"
            log.warning("load failed", model=model.name, version=model.version, error=text)
            # While older files serve, they go on serving; the record says what went wrong with the new ones.
            state = CopyState.FAILED if old is None else CopyState.READY
            held = 0 if old is None else old.bytes
            self._set(replace(copy, state=state, error=text, bytes=held))
            return
        seconds = time.monotonic() - started_s
        self._metrics.load_done(model.name, model.version, True, seconds)  # noqa: FBT003 - a fact
        executor = ThreadPoolExecutor(STREAMS) if model.decoupled else self._executor
        self._latest.clear()
        self._served[key] = Served(
            model,
            loaded,
            executor,
            bytes_held=measured,
            default_queue_size=self._default_queue_size,
            labels=labels,
        )
        self._set(replace(copy, state=CopyState.READY, bytes=measured))
        log.info("loaded", model=model.name, version=model.version, bytes=measured, seconds=round(seconds, 3))
        if old is not None:
            await self._close(old)

    async def _load_into(self, model: ModelVersion, account: Account) -> tuple[Loaded, int]:
        """Reserve, load, measure. Raises `LoadFailed`; the reservation is given back then."""
        key = (model.name, model.version)
        runtime = self._runtimes.get(model.runtime)
        if runtime is None:
            raise LoadFailed(f"failed to load '{model.name}', this node has no runtime '{model.runtime}'")
        size = predicted_bytes(model.size_bytes)
        await self._make_room(model, account, size)
        committed = False
        try:
            before = used_bytes(account.device)
            loaded = await asyncio.to_thread(runtime.load, LoadSpec(model, _folder(model), account.now()))
            await _check_batch_axis(model, loaded)
            # Noise of other work may hide a small load: never less than the files themselves.
            measured = max(used_bytes(account.device) - before, model.size_bytes)
            account.ledger.commit(key, measured)
            committed = True
            return loaded, measured
        finally:
            if not committed:
                account.ledger.cancel(key)

    async def _make_room(self, model: ModelVersion, account: Account, size: int) -> None:
        """Reserve `size` bytes, evicting idle copies that were used longest ago. Raises `LoadFailed`."""
        key = (model.name, model.version)
        async with self._making_room:
            if account.ledger.reserve(key, size):
                return
            idle = [
                Idle(each, served.bytes, served.last_used_s)
                for each, served in self._served.items()
                if served.is_idle and each not in self._tasks and self._copies[each].device == account.name
            ]
            victims = account.ledger.victims(size, idle)
            for victim in victims or ():
                await self._evict(victim)
            if not account.ledger.reserve(key, size):
                ledger = account.ledger
                raise LoadFailed(
                    f"failed to load '{model.name}', it needs {size} bytes on {account.name} of node '{self._node}', "
                    f"which has {ledger.free} of {ledger.capacity} free and holds {len(self._served)} models, "
                    f"{len(idle)} of them idle"
                )

    async def _evict(self, key: VersionKey) -> None:
        """Take this node out of a version's placement and drop the copy. Raises `RegistryUnavailable`."""
        # The loop sees the placement change before this is done with it, and must not unload the copy as well.
        self._evicting.add(key)
        try:
            path = placement_key(*key)
            for _ in range(EVICT_TRIES):
                entry = await self._store.get(path)
                if entry is None:
                    break
                placement = records.decode_placement(entry.value)
                nodes = tuple(node for node in placement.nodes if node != self._node)
                value = records.encode(replace(placement, nodes=nodes))
                if await self._store.replace(path, value, expected=entry.mod_revision) is not None:
                    break
            log.info("evicted", model=key[0], version=key[1])
            await self._unload(key)
        finally:
            self._evicting.discard(key)
            self._wake.set()

    async def _unload(self, key: VersionKey) -> None:
        served = self._served.pop(key, None)
        if served is not None:
            self._set(replace(self._copies[key], state=CopyState.DRAINING))
            await self._close(served)
            self._release(key)
            log.info("unloaded", model=key[0], version=key[1])
        del self._copies[key]
        self.on_change()

    def _release(self, key: VersionKey) -> None:
        for account in self._accounts:
            account.ledger.release(key)

    async def _close(self, served: Served) -> None:
        """Wait for what is in flight, then close."""
        try:
            async with asyncio.timeout(self._drain_s):
                await served.drained()
        except TimeoutError:
            log.warning("closing a model that is still at work", model=served.model.name, in_flight=served.in_flight)
        try:
            await asyncio.to_thread(served.loaded.close)
        except Exception as error:  # noqa: BLE001 - a user's close can raise anything
            log.warning("a model's close raised", model=served.model.name, error=str(error))
        if served.executor is not self._executor:
            served.executor.shutdown(wait=False, cancel_futures=True)

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


def _folder(model: ModelVersion) -> Path:
    return Path(unquote(urlsplit(model.source).path))


async def _check_batch_axis(model: ModelVersion, loaded: Loaded) -> None:
    """Close `loaded` and raise `LoadFailed` when requests could not be joined as model.yaml says they can."""
    if not model.max_batch_size:
        return
    fixed = next((spec for spec in loaded.inputs if spec.shape[:1] != (-1,)), None)
    if fixed is not None:
        await asyncio.to_thread(loaded.close)
        raise LoadFailed(
            f"failed to load '{model.name}', it has max_batch_size {model.max_batch_size}, so input '{fixed.name}' "
            f"must begin with an axis of any size; it is {list(fixed.shape)}: export it so, or set max_batch_size to 0"
        )


def _lacks_signature(view: ClusterView, model: ModelVersion) -> bool:
    """Tell whether the record of these very files does not say what goes in and out, which their load found out."""
    record = view.models.get(model.name, {}).get(model.version)
    return record is not None and record.digest == model.digest and not (record.inputs and record.outputs)
