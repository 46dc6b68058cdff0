"""The responses of requests of one several-response copy, each request's behind those of the request before it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


class InOrder:
    """The requests of one copy in the order they came (`preserve_ordering`).

    The model may work on several: each makes a response, and gives it out once the requests before it are over, however
    they ended. So one whose caller does not read holds up those behind it.
    """

    def __init__(self) -> None:
        self._last: asyncio.Future[None] | None = None
        """Done when the latest request, and all before it, are over; None: there is none."""

    async def of(self, made: AsyncGenerator[T]) -> AsyncGenerator[T]:
        """Yield what is made, or raise its error, in the turn that it has from now on. Closing it leaves the turn."""
        before, mine = self._last, asyncio.get_running_loop().create_future()
        self._last = mine

        def over(_: object = None) -> None:
            mine.set_result(None)
            if self._last is mine:
                self._last = None

        try:
            async with aclosing(made):
                async for each in made:
                    if before is not None:
                        await asyncio.wait((before,))
                    yield each
        except Exception:
            # An error is an answer too.
            if before is not None:
                await asyncio.wait((before,))
            raise
        finally:
            if before is None or before.done():
                over()
            else:
                before.add_done_callback(over)
