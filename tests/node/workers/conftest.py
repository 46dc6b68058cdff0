"""Tests of workers run on both event loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.fixtures.workers import Bench, bench


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Any:
    """Run each test that has a loop on both."""
    del config, item
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[Bench]:
    """A runtime of workers that leaves nothing behind."""
    async with bench(tmp_path) as made:
        yield made
