"""A request with a batcher: what it is, who hears of it, and how several of them are one run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mesh.core.batching import Waiting
from mesh.core.errors import MeshError, ModelFailed
from mesh.node.runtimes.base import Array, Request, Tensors
from mesh.node.workers.inside.hosted import said
from mesh.node.workers.inside.port import INLINE_BYTES, Rows


@dataclass(slots=True)
class Ran:
    """The outputs of one request and what they took."""

    outputs: Tensors
    queue_s: float
    run_s: float
    rows: int
    """Rows of the whole batch it ran in."""
    state: bytes = b""
    """The state of its sequence behind it (`mesh.api.snapshot`), where that is told."""


class Waiter(Protocol):
    """Hears, once, how a request ended. Called from the event loop; must not raise."""

    def ran(self, ran: Ran) -> None:
        """Take the outputs."""

    def failed(self, error: Exception) -> None:
        """Take what `Batcher.submit` says may go wrong."""


@dataclass(slots=True, eq=False)
class Item:
    """A request with a batcher. `over` once its waiter heard, or left."""

    waiting: Waiting
    inputs: Tensors
    request: Request
    waiter: Waiter
    size: int
    """Bytes of the inputs. 1 <= size."""
    deadline_s: float | None
    give_up_s: float | None
    impatient: asyncio.TimerHandle | None = None
    over: bool = False

    def end(self) -> bool:
        """Mark it as over; False when it was already."""
        if self.over:
            return False
        self.over = True
        if self.impatient is not None:
            self.impatient.cancel()
        return True


def model_failed(name: str, error: Exception) -> ModelFailed:
    """Return what the caller of a model that raised is told."""
    return ModelFailed(f"model '{name}' raised {said(error)}")


def any_waits(items: list[Item]) -> bool:
    """Tell whether somebody still wants the answer of one of them."""
    return not all(item.over for item in items)


def may_rerun(error: Exception) -> bool:
    """Tell whether requests of which a joined run failed with this may be run again, each alone."""
    return not isinstance(error, MeshError) or error.reruns


def is_late(item: Item, now_s: float) -> bool:
    """Tell whether nobody wants its answer any more."""
    return (
        item.over
        or (item.deadline_s is not None and item.deadline_s <= now_s)
        or (item.give_up_s is not None and item.give_up_s <= now_s)
    )


def joined(batch: list[Item]) -> Tensors:
    """Return the inputs of a batch as those of one run."""
    inputs = batch[0].inputs
    if len(batch) == 1:
        return inputs
    return {name: np.concatenate([item.inputs[name] for item in batch]) for name in inputs}


def joined_there(batch: list[Item]) -> dict[str, Array | Rows]:
    """Return the inputs of a batch for a run in another process: large ones are joined where they arrive."""
    inputs = batch[0].inputs
    if len(batch) == 1:
        return dict(inputs)
    found: dict[str, Array | Rows] = {}
    for name in inputs:
        parts = [item.inputs[name] for item in batch]
        large = len(batch) * parts[0].nbytes > INLINE_BYTES and Rows.can_join(parts)
        found[name] = Rows(parts) if large else np.concatenate(parts)
    return found


def bytes_of(batch: list[Item]) -> int:
    """Return the bytes of the inputs of a batch."""
    return sum([item.size for item in batch])


def kind_of(inputs: Tensors) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return what must be equal for requests to be joined: names and shapes but for the first axis."""
    return tuple(sorted((name, array.shape[1:]) for name, array in inputs.items()))
