"""What is looked at all the time: the memory of worker processes, and runs that do not end.

A copy that outgrows what it was counted as makes room, by evicting idle copies worth less, or goes. In the node's own
process a run that does not end cannot be ended: its copy stops answering there, and is loaded in a worker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

from mesh.core.placement.ledger import MIN_BYTES
from mesh.core.types import DeviceKind
from mesh.core.view import VersionKey
from mesh.node.memory import Memory, NoRoom
from mesh.node.served import Served
from mesh.node.workers.runtime import WorkerRuntime
from mesh.telemetry import logs

log = logs.get(__name__)

LOOK_S: Final = 0.25
"""A process that allocates as fast as memory can be written takes some hundred MB until it is seen."""

IDLE_LOOKS: Final = 8
"""Of so many looks, one is for copies that are not asked anything: reading /proc costs 20 us a process."""

GROWN_BYTES: Final = 4 * 1024 * 1024
"""A copy's account is changed when it is off by this, and by a sixteenth."""


class Upkeep:
    """`served` are the copies that answer; `account_of` names the device of one; `resized` is told new sizes."""

    def __init__(
        self,
        memory: Memory,
        workers: WorkerRuntime,
        *,
        served: Callable[[], Iterable[tuple[VersionKey, Served]]],
        device_of: Callable[[VersionKey], str],
        resized: Callable[[VersionKey, int], None],
    ) -> None:
        self._memory = memory
        self._workers = workers
        self._served = served
        self._device_of = device_of
        self._resized = resized
        self._cpu = next(each for each in memory.accounts if each.device.kind is DeviceKind.CPU)

    async def run(self) -> None:
        """Look for ever."""
        looks = 0
        while True:
            await asyncio.sleep(LOOK_S)
            looks += 1
            now_s = time.monotonic()
            self._workers.look_at_loads(self._cpu.ledger.capacity)
            for key, served in list(self._served()):
                if served.loaded.apart is not None and (not served.is_idle or looks % IDLE_LOOKS == 0):
                    served.loaded.apart.look(now_s)
                    await self._measure(key, served)

    async def _measure(self, key: VersionKey, served: Served) -> None:
        apart = served.loaded.apart
        assert apart is not None
        held = max(apart.bytes_held(), MIN_BYTES)
        limit = served.model.process.memory_limit_bytes
        if limit and held > limit:
            apart.end(f"took {held} bytes, and memory_limit_bytes is {limit}")
            return
        account = self._cpu
        if self._device_of(key) != account.name:
            return
        counted = account.ledger.bytes_of(key)
        if abs(held - counted) < max(GROWN_BYTES, counted >> 4) or not counted:
            return
        account.ledger.resize(key, held)
        try:
            await self._memory.settle(key, account)
        except NoRoom:
            apart.end(f"took {held} bytes, and {account.name} of this node has {account.ledger.capacity} in all")
            return
        self._resized(key, held)

    def __repr__(self) -> str:
        """Show the accounts."""
        return f"<Upkeep {self._memory!r}>"
