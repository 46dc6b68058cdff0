"""Threads for calls that may never return: one each, which keeps no other call waiting and no process from ending."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def in_own_thread(call: Callable[[], T], *, unwanted: Callable[[T], object] = lambda _: None) -> T:
    """Return what `call` returns in a thread of its own, or raise what it raises, SystemExit too.

    Cancelled, the thread goes on; what it returns then is given to `unwanted`, in that thread.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if ended.done():
            if error is None:
                threading.Thread(target=unwanted, args=(result,), daemon=True).start()
        elif error is None:
            ended.set_result(result)  # type: ignore[arg-type] # there is one where there is no error
        else:
            ended.set_exception(
                error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
            )

    def run() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001 - whatever ends the call must reach who waits for it
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(tell, result, failure)

    threading.Thread(target=run, name="call", daemon=True).start()
    return await ended
