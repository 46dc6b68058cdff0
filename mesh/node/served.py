"""A loaded copy as the hot path sees it: its record, its runtime's version, its batcher and its counters."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor

from mesh.core.types import ModelVersion, TensorSpec
from mesh.node.batcher import Batcher
from mesh.node.runtimes.base import Loaded
from mesh.node.statistics import Statistics


class Served:
    """One copy that answers. `in_flight` counts its requests; `idle` is set while there are none."""

    def __init__(
        self, model: ModelVersion, loaded: Loaded, executor: Executor, *, bytes_held: int, default_queue_size: int
    ) -> None:
        self.model = model
        self.loaded = loaded
        self.executor = executor
        self.bytes = bytes_held
        self.statistics = Statistics()
        self.batcher = Batcher(model, loaded, executor, self.statistics, default_queue_size=default_queue_size)
        self.inputs: tuple[TensorSpec, ...] = loaded.inputs
        self.outputs: dict[str, TensorSpec] = {spec.name: spec for spec in loaded.outputs}
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.last_used_s = 0.0
        self.closing = False

    def enter(self) -> None:
        """Count a request in."""
        self.in_flight += 1
        self.idle.clear()

    def leave(self) -> None:
        """Count it out."""
        self.in_flight -= 1
        self.last_used_s = time.time()
        if not self.in_flight:
            self.idle.set()

    def __repr__(self) -> str:
        """Show what it is and how busy."""
        return f"<Served {self.model.name}/{self.model.version} in_flight={self.in_flight} {self.batcher!r}>"
