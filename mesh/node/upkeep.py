"""What is looked at all the time: the memory of worker processes, and runs that do not end.

A copy that outgrows what it was counted as makes room, by evicting idle copies worth less, or goes. In the node's own
process a run that does not end cannot be ended: its copy stops answering there, and is loaded in a worker.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from mesh.core.placement.ledger import MIN_BYTES
from mesh.core.suspects import Death
from mesh.core.types import DeviceKind
from mesh.core.view import VersionKey
from mesh.node.batcher import Batcher
from mesh.node.loader import Loader
from mesh.node.memory import NoRoom
from mesh.node.served import Served
from mesh.node.suspects import Suspects
from mesh.node.workers.copy import ALONE_S
from mesh.node.workers.runtime import WorkerRuntime

LOOK_S: Final = 0.25
"""A process that allocates as fast as memory can be written takes some hundred MB until it is seen."""

IDLE_LOOKS: Final = 8
"""Of so many looks, one is for copies that are not asked anything: reading /proc costs 20 us a process."""

GROWN_BYTES: Final = 4 * 1024 * 1024
"""A copy's account is changed when it is off by this, and by a sixteenth."""


class Upkeep:
    """Of the copies of one node."""

    def __init__(self, loader: Loader, workers: WorkerRuntime, suspects: Suspects) -> None:
        self._loader = loader
        self._memory = loader.memory
        self._workers = workers
        self._suspects = suspects
        self._cpu = next(each for each in loader.memory.accounts if each.device.kind is DeviceKind.CPU)

    async def run(self) -> None:
        """Look for ever."""
        looks = 0
        while True:
            await asyncio.sleep(LOOK_S)
            looks += 1
            now_s = time.monotonic()
            self._workers.look_at_loads(self._cpu.ledger.capacity)
            for key, served in self._loader.held():
                if served.loaded.apart is None:
                    self._look_at(served, now_s)
                elif not served.is_idle or looks % IDLE_LOOKS == 0:
                    served.loaded.apart.look(now_s)
                    await self._measure(key, served)

    def _look_at(self, served: Served, now_s: float) -> None:
        """Tell of a run in this process that does not end: from then on the version is loaded in a worker."""
        batcher = served.batcher
        if not batcher.running or not isinstance(batcher, Batcher) or not served.in_process:
            return
        if batcher.stuck(now_s, ALONE_S) and not self._suspects.must_isolate(served.model):
            text = f"a run went on for {ALONE_S:g} s after everybody who waited for it had left"
            self._suspects.died(served.model, Death.HUNG, text)

    async def _measure(self, key: VersionKey, served: Served) -> None:
        apart = served.loaded.apart
        assert apart is not None
        held = max(apart.bytes_held(), MIN_BYTES)
        limit = served.model.process.memory_limit_bytes
        if limit and held > limit:
            apart.end(f"it took {held} bytes, and memory_limit_bytes is {limit}")
            return
        account = self._cpu
        if self._loader.device_of(key) != account.name:
            return
        counted = account.ledger.bytes_of(key)
        if abs(held - counted) < max(GROWN_BYTES, counted >> 4) or not counted:
            return
        account.ledger.resize(key, held)
        try:
            await self._memory.settle(key, account)
        except NoRoom:
            apart.end(f"it took {held} bytes, and {account.name} of this node has {account.ledger.capacity} in all")
            return
        self._loader.resized(key, held)

    def __repr__(self) -> str:
        """Show the accounts."""
        return f"<Upkeep {self._memory!r}>"
