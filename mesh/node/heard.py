"""From a run that is begun and heard of later (`runtimes.base.Apart`) to something that a coroutine awaits."""

from __future__ import annotations

import asyncio
from typing import Any

from mesh.core.errors import MeshError
from mesh.node.runtimes.base import Finished


def heard() -> tuple[asyncio.Future[tuple[Any, float]], Finished]:
    """Return a future of what a run answers and its seconds, and what is to hear its end.

    The future raises what went wrong. Cancelled, it hears nothing more.
    """
    ended: asyncio.Future[tuple[Any, float]] = asyncio.get_running_loop().create_future()

    def finished(answer: Any, run_s: float, error: MeshError | None) -> None:
        if ended.done():
            return
        if error is None:
            ended.set_result((answer, run_s))
        else:
            ended.set_exception(error)

    return ended, finished
