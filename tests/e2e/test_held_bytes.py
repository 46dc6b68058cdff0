"""What callers make a router and a node hold stays within its account, and is given back when they are gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from mesh.wire.transport import MODEL_INFER
from tests.fixtures import raw
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import Process, start_node, start_router, until
from tests.fixtures.repositories import add_echo, add_python
from tests.fixtures.scrape import value
from tests.fixtures.unread import asked, begun

MIB = 1024 * 1024
LIMIT = 128 * MIB
SLACK = 96 * MIB
"""What else a process may have taken meanwhile: buffers of sockets and of the allocator, most of all."""

LARGE_YAML = """\
    inputs: [{name: x, dtype: FP32, shape: [-1]}]
    outputs: [{name: y, dtype: FP32, shape: [-1]}]
"""
LARGE = """\
    import numpy as np

    class Model:
        def infer(self, inputs):
            return {"y": np.ones(262_144, np.float32)}
"""


@pytest.fixture
def places(etcd: EtcdServer, tmp_path: Path) -> Iterator[dict[str, Process]]:
    """Yield a router and a node that may hold 128 MiB each; the node has both models."""
    add_echo(tmp_path)
    add_python(tmp_path, "large", LARGE_YAML, LARGE)
    flags = ("--held-bytes", str(LIMIT), "--max-connections", "2000")
    router = start_router(etcd.address, *flags)
    with router, start_node(etcd.address, "only", "--http-port", "0", *flags, models=tmp_path) as node:
        node.wait_ready()
        router.wait_ready()
        with raw.channel_to(router.grpc) as channel:
            for model in ("echo", "large"):
                raw.wait_known(channel, model)
            assert echoed(channel, 4)
            raw.infer(channel, raw.request("large", raw.floats(1.0), shape=[1]))
        yield {"router": router, "node": node}


def echoed(channel: grpc.Channel, size: int) -> bool:
    """Send `size` bytes and look at what comes back."""
    sent = bytes(size)
    return raw.infer(channel, raw.request("echo", sent, shape=[1, size // 4])).raw_output_contents == [sent]


def grown(process: Process, before: int) -> int:
    return rss(process) - before


def rss(process: Process) -> int:
    found: int = psutil.Process(process.pid).memory_info().rss
    return found


def held(process: Process, place: str) -> float:
    return value(process, f"mesh_{place}_held_bytes")


@pytest.mark.parametrize("place", ["router", "node"])
async def test_unfinished_messages_take_no_more_than_the_account(places: dict[str, Process], place: str) -> None:
    process = places[place]
    before = rss(process)
    writers = [await begun(process.grpc, MODEL_INFER, 5 * MIB, 4 * MIB) for _ in range(240)]
    await asyncio.to_thread(settled, process, place)
    assert 0 < held(process, place) <= LIMIT
    assert grown(process, before) < LIMIT + SLACK
    with raw.channel_to(process.grpc) as channel:
        assert await asyncio.to_thread(echoed, channel, 4)
    for writer in writers:
        writer.transport.abort()
    await asyncio.to_thread(until, lambda: held(process, place) == 0, what="nothing is held")
    with raw.channel_to(process.grpc) as channel:
        assert await asyncio.to_thread(echoed, channel, 8 * MIB)


@pytest.mark.parametrize("place", ["router", "node"])
async def test_answers_that_nobody_reads_take_no_more_than_the_account(places: dict[str, Process], place: str) -> None:
    process = places[place]
    before = rss(process)
    message = raw.request("large", raw.floats(1.0), shape=[1]).SerializeToString()
    writer = await asked(process.grpc, MODEL_INFER, message, times=300)
    await asyncio.to_thread(settled, process, place)
    assert 0 < held(process, place) <= LIMIT
    assert grown(process, before) < LIMIT + SLACK
    with raw.channel_to(process.grpc) as channel:
        assert await asyncio.to_thread(echoed, channel, 8 * MIB)
    writer.transport.abort()
    await asyncio.to_thread(until, lambda: held(process, place) == 0, what="nothing is held")


def settled(process: Process, place: str) -> None:
    """Wait until a second has brought nothing new."""
    last = -1.0
    while (now := held(process, place)) != last:
        last = now
        time.sleep(1)
