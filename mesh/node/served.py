"""A loaded copy as the hot path sees it: its record, its runtime's version, its batcher and its counters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from mesh.api.clock import steady_s
from mesh.core.placement.forecast import History
from mesh.core.types import ModelVersion, TensorSpec
from mesh.node.batcher import Batcher
from mesh.node.in_order import InOrder
from mesh.node.runtimes.base import Loaded
from mesh.node.sequences import SequenceBatcher
from mesh.telemetry.statistics import Statistics

T = TypeVar("T")


class Pins:
    """The copies that one stream has asked: its caller is likely to ask them again. `release` when the stream ends."""

    __slots__ = ("_pinned",)

    def __init__(self) -> None:
        self._pinned: set[Served] = set()

    def add(self, served: Served) -> None:
        """Pin a copy, if this stream does not yet."""
        if served not in self._pinned:
            self._pinned.add(served)
            served.streams += 1

    def release(self) -> None:
        """Let go of all of them."""
        while self._pinned:
            self._pinned.pop().streams -= 1

    def __repr__(self) -> str:
        """Show the count."""
        return f"<Pins {len(self._pinned)}>"


class Served:
    """One copy that answers. `in_flight` counts its requests; `idle` is set while there are none."""

    def __init__(
        self,
        model: ModelVersion,
        loaded: Loaded,
        executor: Executor,
        *,
        bytes_held: int,
        default_queue_size: int,
        load_s: float = 0.0,
        history: History | None = None,
        labels: tuple[str, ...] = (),
        in_process: bool = True,
    ) -> None:
        self.model = model
        self.loaded = loaded
        self.executor = executor
        self.bytes = bytes_held
        self.load_s = load_s
        """Seconds that its load took."""
        self.labels = labels
        self.in_process = in_process
        """Whether it runs in this process, and takes it along when it ends."""
        self.statistics = Statistics()
        queue = Batcher if loaded.steps is None else SequenceBatcher
        self.batcher: Batcher | SequenceBatcher = queue(
            model, loaded, executor, self.statistics, default_queue_size=default_queue_size
        )
        self.in_order = InOrder() if model.decoupled and model.preserve_ordering else None
        """Puts the responses of several requests in order, where the model wants that."""
        self.inputs: tuple[TensorSpec, ...] = loaded.inputs
        self.outputs: dict[str, TensorSpec] = {spec.name: spec for spec in loaded.outputs}
        self._steps: set[Future[Any]] = set()
        self.reading: asyncio.Future[None] | None = None
        """Done when the latest request for a sequence that is read in a thread has been read: those that come behind it
        wait for it. None while there is none, and for a copy whose requests have no order."""
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.last_used_s = 0.0
        self.gone = False
        """Whether it answers no new requests: unloaded, or another one took its place."""
        self.streams = 0
        """Open streams that asked it something."""
        self._history = History(last_s=steady_s()) if history is None else history
        self._uses = 0

    @property
    def history(self) -> History:
        """Return its requests, those before it was last evicted and those since. A copy just loaded was asked for."""
        if self._uses:
            self._history = self._history.asked(self._uses, self.last_used_s)
            self._uses = 0
        return self._history

    def enter(self) -> None:
        """Count a request in."""
        self.in_flight += 1
        self.idle.clear()

    def leave(self) -> None:
        """Count it out."""
        self.in_flight -= 1
        self.last_used_s = steady_s()
        self._uses += 1
        if not self.in_flight:
            self.idle.set()

    def used(self, count: int) -> None:
        """Count requests that came and went at once."""
        self.last_used_s = steady_s()
        self._uses += count

    def hold(self) -> None:
        """Keep it from being closed for a request that will ask it later."""
        self.in_flight += 1
        self.idle.clear()

    def release(self) -> None:
        """Let go of it after `hold`."""
        self.in_flight -= 1
        if not self.in_flight:
            self.idle.set()

    @property
    def sequences(self) -> SequenceBatcher | None:
        """Its queue, when its requests are steps of sequences or generations."""
        return self.batcher if isinstance(self.batcher, SequenceBatcher) else None

    @property
    def live(self) -> int:
        """Live sequences."""
        return self.batcher.live if isinstance(self.batcher, SequenceBatcher) else 0

    @property
    def is_idle(self) -> bool:
        """Tell whether nobody asks for it and the model is at nothing, not even for a caller who left."""
        return not self.in_flight and not self.batcher.running and not self._steps

    async def in_thread(self, call: Callable[..., T], *given: Any) -> T:
        """Return what `call` returns in a thread. Cancelled, the thread goes on, and `drained` waits for it."""
        # No name for the future here: one that fails keeps this frame, which would keep the future.
        return await asyncio.wrap_future(self._begun(call, *given))

    def _begun(self, call: Callable[..., T], *given: Any) -> Future[T]:
        step = self.executor.submit(call, *given)
        self._steps.add(step)
        step.add_done_callback(self._steps.discard)
        return step

    def line_up(self) -> Callable[[asyncio.Task[None]], None]:
        """Take a place behind the requests that are being read, and return what leaves it when a task is done."""
        before, mine = self.reading, asyncio.get_running_loop().create_future()
        self.reading = mine

        def leave(_: object) -> None:
            if before is not None and not before.done():
                before.add_done_callback(leave)
                return
            mine.set_result(None)
            if self.reading is mine:
                self.reading = None

        return leave

    async def drained(self) -> None:
        """Return when the model is at nothing: no request in flight, no run left by a caller who is gone."""
        await self.idle.wait()
        await self.batcher.drained()
        steps = [asyncio.wrap_future(step) for step in tuple(self._steps)]
        await asyncio.gather(*steps, return_exceptions=True)

    def __repr__(self) -> str:
        """Show what it is and how busy."""
        return f"<Served {self.model.name}/{self.model.version} in_flight={self.in_flight} {self.batcher!r}>"
