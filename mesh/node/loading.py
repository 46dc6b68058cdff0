"""One load, from the files to a copy whose bytes are known: where it runs, how long it may take, what it takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from mesh.core.errors import LoadFailed, MeshError
from mesh.core.placement.ledger import MIN_BYTES, predicted_bytes
from mesh.core.types import DeviceKind, ModelVersion
from mesh.node.capacity import Account
from mesh.node.checks import check_batch_axis
from mesh.node.closing import close
from mesh.node.growth import Growth, Growths
from mesh.node.memory import Memory
from mesh.node.publish import Publisher
from mesh.node.runtimes.base import Loaded, LoadSpec, Runtime
from mesh.node.runtimes.choice import Runtimes
from mesh.node.threads import in_own_thread
from mesh.node.workers.memory import gpu_bytes
from mesh.node.workers.runtime import WorkerRuntime
from mesh.telemetry import logs

log = logs.get(__name__)

TURN_S: Final = 10.0
"""A load that takes longer lets others begin: it waits for something, or is so large that it would keep all waiting."""

LOADS_AT_ONCE: Final = 2
"""Loads read disks and allocate memory: more at once make each slower and their measured bytes wrong."""

NOISE_BYTES: Final = 32 * 1024 * 1024
"""A load in the node's own process is measured by how that grew, which requests and allocators blur by as much."""


@dataclass(frozen=True, slots=True)
class Held:
    """A version in memory."""

    loaded: Loaded
    bytes: int
    load_s: float
    """Seconds that it took, without what it waited for room, or for what all loads wait for once."""


class Loads:
    """Performs loads. Room is reserved before, and what a load really takes is what its copy holds after."""

    def __init__(self, memory: Memory, publisher: Publisher, runtimes: Runtimes) -> None:
        self._runtimes = runtimes
        self._memory = memory
        self._publisher = publisher
        self._growth = Growths()
        self._turns = asyncio.Semaphore(LOADS_AT_ONCE)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn to load; it ends after `TURN_S`, as a load that hangs must keep no other waiting."""
        await self._turns.acquire()
        over = asyncio.Event()

        def give_back() -> None:
            if not over.is_set():
                over.set()
                self._turns.release()

        timer = asyncio.get_running_loop().call_later(TURN_S, give_back)
        try:
            yield
        finally:
            timer.cancel()
            give_back()

    async def load(
        self, spec: LoadSpec, account: Account, runtime: Runtime | WorkerRuntime, factors: Mapping[str, float]
    ) -> Held:
        """Reserve, load, measure. Raises `LoadFailed`, `NoRoom`; what was reserved is given back then."""
        model, ledger = spec.model, account.ledger
        key = (model.name, model.version)
        await self._memory.reserve(model, account, predicted_bytes(model, factors))
        committed = False
        try:
            if isinstance(runtime, WorkerRuntime):
                await runtime.warm()
            began_s = time.monotonic()
            with self._growth.of(account) as growth:
                loaded = await self._loaded(spec, runtime)
            load_s = time.monotonic() - began_s
            try:
                check_batch_axis(model, loaded)
                taken = _taken(spec, loaded, growth)
                limit = model.process.memory_limit_bytes or ledger.capacity
                noise = NOISE_BYTES if loaded.apart is None else 0
                if taken > limit + noise:
                    await self._too_large(model, loaded, taken, account, limit)
                ledger.commit(key, min(taken, ledger.capacity))
                committed = True
                await self._memory.settle(key, account)
            except BaseException:
                await close(loaded)
                if committed:
                    ledger.release(key)
                raise
            return Held(loaded, min(taken, ledger.capacity), load_s)
        finally:
            if not committed:
                ledger.cancel(key)

    async def _loaded(self, spec: LoadSpec, runtime: Runtime | WorkerRuntime) -> Loaded:
        """Return the version in memory. Raises `LoadFailed`; a load that takes too long is ended, or left behind."""
        if isinstance(runtime, WorkerRuntime):
            return await runtime.load(spec)
        model = spec.model
        try:
            async with asyncio.timeout(model.process.max_load_s):
                return await in_own_thread(
                    lambda: self._runtimes.load(runtime, spec), unwanted=lambda loaded: loaded.close()
                )
        except TimeoutError:
            raise LoadFailed(
                f"failed to load '{model.name}', its load did not end within {model.process.max_load_s:g} s "
                "(max_load_s); with isolation: process it would have been ended"
            ) from None

    async def _too_large(self, model: ModelVersion, loaded: Loaded, taken: int, account: Account, limit: int) -> None:
        """Raise `LoadFailed` for a model that does not fit, and tell the registry, so that no like node loads it."""
        if not model.process.memory_limit_bytes:
            try:
                await self._publisher.describe(replace(model, loaded_bytes=taken), loaded.inputs, loaded.outputs)
            except MeshError as error:
                log.warning("could not publish a size", model=model.name, error=error.message)
        raise LoadFailed(
            f"failed to load '{model.name}', it took {taken} bytes on {account.name}, and may take {limit} there"
        )

    def __repr__(self) -> str:
        """Show how many loads go on."""
        return f"<Loads {self._growth!r}>"


def _taken(spec: LoadSpec, loaded: Loaded, growth: Growth) -> int:
    if loaded.apart is None:
        return growth.of_load(spec.model)
    held = loaded.apart.bytes_held()
    if spec.device.kind is DeviceKind.GPU:
        on_gpu = sum(gpu_bytes(loaded.apart.pids()).values())
        return on_gpu or growth.of_load(spec.model)
    return max(held, MIN_BYTES)
