"""What is too long for the event loop: texts and typed contents of long requests and answers, element by element.

Numbers that travel raw are not copied, let alone looked at, however many there are. Texts become objects one by one,
and so do typed contents: a million take a fifth of a second. Beyond a bound that is done in a thread, in pieces.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np

from mesh.api.bytes_elements import TEXT_KINDS
from mesh.core.types import TensorSpec
from mesh.node.runtimes.base import Tensors
from mesh.node.served import Served

LONG_ELEMENTS: Final = 8192
"""Of an answer with texts."""

REST_S: Final = 50e-6
"""A thread that only offers the interpreter has it back before the event loop has woken up to take it."""

T = TypeVar("T")


def is_long_answer(outputs: Tensors, wanted: Iterable[tuple[TensorSpec, int]], *, typed: bool) -> bool:
    """Tell whether writing an answer is too much for the event loop. `wanted` has classes beside each output."""
    for spec, classes in wanted:
        array: Any = outputs.get(spec.name)
        size = array.size if isinstance(array, np.ndarray) else 0
        if size > LONG_ELEMENTS and (typed or classes or array.dtype.kind in TEXT_KINDS):
            return True
    return False


def is_long_text(array: object) -> bool:
    """Tell whether an output has too many texts for the event loop."""
    return isinstance(array, np.ndarray) and array.size > LONG_ELEMENTS and array.dtype.kind in TEXT_KINDS


def pause() -> None:
    """Let the event loop have its turn: between two pieces, in a thread."""
    time.sleep(REST_S)


class Begun(Protocol):
    """A request that has begun."""

    def withdraw(self, error: BaseException) -> None:
        """Leave: the caller is gone."""


class Later(Generic[T]):
    """A request that is read in a thread before it begins. Its copies are held until then, and its errors are told."""

    def __init__(
        self,
        copies: tuple[Served, ...],
        read: Callable[[], T],
        begin: Callable[[T], Begun],
        fail: Callable[[Exception], None],
    ) -> None:
        self.copies = copies
        self._begun: Begun | None = None
        for each in copies:
            each.hold()
        self._task = asyncio.get_running_loop().create_task(self._go(read, begin, fail))

    async def _go(self, read: Callable[[], T], begin: Callable[[T], Begun], fail: Callable[[Exception], None]) -> None:
        try:
            self._begun = begin(await self.copies[0].in_thread(read))
        except Exception as error:  # noqa: BLE001 - the edge: every failure becomes a status
            fail(error)
        finally:
            for each in self.copies:
                each.release()

    def withdraw(self, error: BaseException) -> None:
        """Leave: what is read already is not begun."""
        if self._begun is not None:
            self._begun.withdraw(error)
        else:
            self._task.cancel()

    def __repr__(self) -> str:
        """Show whether it has begun."""
        return f"<Later begun={self._begun!r}>"
