"""The node's own record and those of its copies: what it says of itself, and when it says it again."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Mapping

import psutil

from mesh.core.types import Node, NodeId
from mesh.node.loader import Loader
from mesh.registry import records
from mesh.registry.keys import copy_key
from mesh.registry.lease import Presence
from mesh.telemetry import logs

log = logs.get(__name__)

REFRESH_S = 1.0
"""How often last uses, what is idle and a GPU's free bytes are told when nothing else changed."""

REFRESHES_PER_S = 50.0
"""What all nodes together may write like this: with many nodes, each refreshes less often."""

USES_S = 60.0
"""Within which the last use of every copy is noted: they are told to the minute."""

SPACING_S = 0.01
"""Least time between two records: copies come and go in bursts."""

OWN_S = 0.1
"""Least time between two of the node's own records when only its copies changed: what they took and how long others
would wait is a matter of more than one load."""


class Report:
    """Builds the records of a node and its copies and publishes them. One incarnation per process.

    `nodes` says how many there are in the mesh, `refused` which folders of models cannot be served, and why.
    """

    def __init__(
        self,
        node: NodeId,
        *,
        labels: Mapping[str, str],
        repositories: tuple[str, ...],
        loader: Loader,
        nodes: Callable[[], int] = lambda: 1,
        refused: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._node = node
        self._labels = dict(labels)
        self._repositories = repositories
        self._loader = loader
        self._nodes = nodes
        self._refused = refused
        self._process = psutil.Process()
        self._busy = 0.0
        self._incarnation = secrets.token_hex(8)
        self._started_s = time.time()
        self._presence: Presence | None = None
        self._dirty = asyncio.Event()
        self._later: asyncio.TimerHandle | None = None
        self._own = b""
        self._own_s = float("-inf")
        self._said = ("", False, False)
        self.address = ""
        """host:port that routers reach this node at; set when it listens."""
        self.leaving = False
        self.draining = False

    def record(self) -> Node:
        """Return what this node is at this moment."""
        return Node(
            id=self._node,
            address=self.address,
            incarnation=self._incarnation,
            started_s=self._started_s,
            labels=self._labels,
            devices=self._loader.memory.devices(),
            draining=self.draining,
            leaving=self.leaving,
            repositories=self._repositories,
            loading=self._loader.loading,
            load_wait_s=round(self._loader.load_wait_s(), 2),
            busy=self._busy,
            failing=self._loader.failing(),
            refused=self._refused(),
        )

    def is_mine(self, value: bytes) -> bool:
        """Tell whether a registry value is this very process's."""
        try:
            return records.decode_node(value).incarnation == self._incarnation
        except records.BadRecord:
            return False

    def through(self, presence: Presence) -> None:
        """Publish through `presence` from now on."""
        self._presence = presence
        self._publish()

    def changed(self, *, within_s: float = 0.0) -> None:
        """Let the records be built and published, if they differ from the last ones, within this time.

        What is to be published earlier takes it along; a burst costs one.
        """
        if not within_s:
            self._dirty.set()
            return
        loop = asyncio.get_running_loop()
        if self._later is None or self._later.when() > loop.time() + within_s:
            self._forget_later()
            self._later = loop.call_later(within_s, self._dirty.set)

    def _forget_later(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None

    def _publish(self) -> None:
        self._forget_later()
        if self._presence is None:
            return
        now_s = time.monotonic()
        said = (self.address, self.draining, self.leaving)
        if said != self._said or now_s - self._own_s >= OWN_S:
            self._said, self._own, self._own_s = said, records.encode(self.record()), now_s
        else:
            self.changed(within_s=OWN_S)
        changed = self._loader.changed_copies().items()
        copies = {copy_key(self._node, key): records.encode(copy) if copy else None for key, copy in changed}
        self._presence.change(self._own, copies)

    @property
    def ready(self) -> bool:
        """Whether this node should get work: it is not on its way out, and loads what others can load."""
        return not self.draining and not self._loader.failing()

    async def run(self) -> None:
        """Publish what changed, and what changes slowly, for ever."""
        measured_s = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(max(REFRESH_S, self._nodes() / REFRESHES_PER_S)):
                    await self._dirty.wait()
            except TimeoutError:
                pass
            self._dirty.clear()
            if time.monotonic() - measured_s >= REFRESH_S:
                measured_s = time.monotonic()
                # In tenths: finer steps would make every second's record a new one.
                self._loader.note_uses(REFRESH_S / USES_S)
                self._busy = min(1.0, round(self._process.cpu_percent() / 100 / (os.cpu_count() or 1), 1))
            self._publish()
            await asyncio.sleep(SPACING_S)
