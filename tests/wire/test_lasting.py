from __future__ import annotations

import asyncio
import logging

import pytest

from mesh.wire import lasting as module
from mesh.wire.lasting import lasting


class Work:
    """Fails as often as it is told to, then returns."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.rounds = 0
        self.began = asyncio.Event()

    async def __call__(self) -> None:
        self.rounds += 1
        self.began.set()
        if self.failures:
            raise self.failures.pop(0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.0)


async def test_work_is_begun_again_after_whatever_it_raises_and_logged_once_in_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    work = Work(OSError("no more files"), ValueError("odd"), ExceptionGroup("both", [KeyError("x")]))
    with caplog.at_level(logging.ERROR):
        await lasting("measuring", work)
    assert work.rounds == 4
    assert [record.getMessage() for record in caplog.records] == [
        "measuring failed (1 times since the last such line) and begins again in 0.0 s"
    ]


async def test_what_is_to_end_it_ends_it() -> None:
    work = Work(ValueError("odd"), LookupError("taken"))
    with pytest.raises(LookupError, match="taken"):
        await lasting("measuring", work, ends=(LookupError,))
    assert work.rounds == 2


async def test_cancelled_while_it_pauses_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 600.0)
    monkeypatch.setattr(module, "LAST_PAUSE_S", 600.0)
    work = Work(ValueError("odd"))
    task = asyncio.create_task(lasting("measuring", work))
    await work.began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
