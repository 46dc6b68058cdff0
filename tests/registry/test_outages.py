"""The registry goes away and comes back, loses its history or all it held, or has members that do not answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from mesh.registry.embedded import EmbeddedRegistry
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.store import Batch
from tests.fixtures.etcd import EtcdServer, Registry, Running, eventually
from tests.fixtures.mesh import free_port

Connect = Callable[..., EtcdClient]


async def until_live(batches: AsyncGenerator[Batch, None]) -> list[Batch]:
    """Read up to the first batch that says the registry is back."""
    seen = [await anext(batches)]
    while not seen[-1].live:
        seen.append(await anext(batches))
    return seen


async def test_etcd_that_is_down_at_the_start_is_waited_for(
    new_etcd: Callable[..., EtcdServer], connect: Connect
) -> None:
    server = new_etcd()
    client = connect(server.address, timeout_s=0.5)
    said: list[str] = []
    ready = asyncio.create_task(client.wait_ready(said.append))
    await eventually(lambda: len(said) >= 2, what="told twice that it waits")
    assert said[0].startswith("waiting for the registry: ")
    assert server.address in said[0]
    assert not ready.done()
    await server.start()
    await asyncio.wait_for(ready, 60)


async def test_a_watch_resumes_after_a_restart_without_losing_a_change(
    new_etcd: Callable[..., EtcdServer], connect: Connect
) -> None:
    server = new_etcd()
    await server.start()
    watcher, writer = connect(server.address), connect(server.address, timeout_s=60)
    before = await writer.put("/t/a", b"1")
    async with aclosing(watcher.watch("/t/", after=before)) as batches:
        await writer.put("/t/a", b"2")
        assert (await anext(batches)).events[0].key == "/t/a"
        await server.stop()
        lost = await anext(batches)
        assert (lost.live, lost.events) == (False, ())
        await server.start()
        revision = await writer.put("/t/b", b"3")
        found = [event.key for batch in await until_live(batches) for event in batch.events]
        while "/t/b" not in found:
            batch = await anext(batches)
            assert not batch.relisted
            found.extend(event.key for event in batch.events)
        assert found == ["/t/b"]
        assert revision == before + 2


async def test_a_watch_lists_again_when_history_went_while_it_was_away(
    new_etcd: Callable[..., EtcdServer], connect: Connect
) -> None:
    from mesh.api.gen.etcd import rpc_pb2 as rpc

    server = new_etcd()
    await server.start()
    writer = connect(server.address, timeout_s=60)
    before = await writer.put("/t/a", b"1")
    await writer.put("/t/gone", b"1")
    # The watch stands at `before` while it cannot see what is written and compacted.
    blind = free_port()
    watcher = connect(f"127.0.0.1:{blind}", server.address, timeout_s=60)
    await writer.delete("/t/gone")
    revision = await writer.put("/t/b", b"1")
    await writer._caller.unary(
        "/etcdserverpb.KV/Compact", rpc.CompactionRequest(revision=revision), rpc.CompactionResponse
    )
    async with aclosing(watcher.watch("/t/", after=before)) as batches:
        lost = await anext(batches)
        assert not lost.live
        seen = await until_live(batches)
        while not seen[-1].relisted:
            seen.append(await anext(batches))
        assert [event.key for event in seen[-1].events] == ["/t/a", "/t/b"]


async def test_calls_go_to_the_endpoint_that_answers(registry: Running, connect: Connect) -> None:
    dead = f"127.0.0.1:{free_port()}"
    client = connect(dead, registry.address)
    revision = await client.put("/t/a", b"1")
    assert client._caller.endpoint == registry.address
    entry = await client.get("/t/a")
    assert entry is not None
    assert entry.mod_revision == revision


async def test_a_watch_goes_to_the_endpoint_that_answers(registry: Running, connect: Connect) -> None:
    writer = connect(registry.address)
    before = await writer.put("/t/a", b"1")
    watcher = connect(f"127.0.0.1:{free_port()}", registry.address)
    async with aclosing(watcher.watch("/t/", after=before)) as batches:
        await writer.put("/t/a", b"2")
        seen = await until_live(batches)
        while not seen[-1].events:
            seen.append(await anext(batches))
        assert [event.key for event in seen[-1].events] == ["/t/a"]


async def test_an_endpoint_that_is_silent_costs_its_share_of_the_timeout(registry: Running, connect: Connect) -> None:
    silent = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    address = f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    client = connect(address, registry.address, timeout_s=20.0)
    assert await client.put("/t/a", b"1") > 0
    assert client._caller.endpoint == registry.address
    await client.close()
    silent.close()


async def test_a_registry_that_lost_everything_is_listed_again(connect: Connect) -> None:
    registry = EmbeddedRegistry()
    await registry.start()
    client = connect(registry.address, timeout_s=60)
    for each in range(5):
        await client.put(f"/t/{each}", b"")
    listing = await client.list("/t/")
    try:
        async with aclosing(client.watch("/t/", after=listing.revision)) as batches:
            await client.put("/t/9", b"")
            await anext(batches)
            await registry.stop()
            assert not (await anext(batches)).live
            await registry.start()
            # More revisions than before: only the cluster's id shows that this is another history.
            for each in range(20):
                await client.put("/t/new", b"%d" % each)
            seen = await until_live(batches)
            assert seen[-1].relisted
            assert [event.key for event in seen[-1].events] == ["/t/new"]
    finally:
        await registry.stop()


async def test_a_compare_and_swap_that_was_cut_off_and_done_counts_as_won(
    restartable: Registry, connect: Connect
) -> None:
    """The answer is lost after etcd did the write: the second attempt finds just what it wanted to write."""
    cut = CutAnswers(restartable.address)
    await cut.start()
    client = connect(cut.address, timeout_s=60)
    await client.get("/t/a")
    cut.cut_next = True
    revision = await client.replace("/t/a", b"mine", expected=0)
    entry = await client.get("/t/a")
    assert cut.cuts == 1
    assert entry is not None
    assert (entry.value, entry.mod_revision) == (b"mine", revision)
    await client.close()
    await cut.stop()


class CutAnswers:
    """A TCP proxy that, when told, drops a connection instead of passing the next answer on."""

    def __init__(self, upstream: str) -> None:
        self._host, port = upstream.split(":")
        self._port = int(port)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = ""
        self.cut_next = False
        self.cuts = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        upstream_reader, upstream_writer = await asyncio.open_connection(self._host, self._port)
        armed = asyncio.Event()

        async def ask() -> None:
            while data := await reader.read(65536):
                # The request carries the value; what comes back after it is the answer to cut.
                if self.cut_next and b"mine" in data:
                    armed.set()
                upstream_writer.write(data)
                await upstream_writer.drain()

        async def answer() -> None:
            while data := await upstream_reader.read(65536):
                # A DATA frame (type 0) is the answer; pings and window updates come before it.
                if armed.is_set() and _has_data(data):
                    self.cut_next = False
                    self.cuts += 1
                    return
                writer.write(data)
                await writer.drain()

        halves = [asyncio.create_task(ask()), asyncio.create_task(answer())]
        try:
            await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for half in halves:
                half.cancel()
            await asyncio.gather(*halves, return_exceptions=True)
            writer.transport.abort()
            upstream_writer.transport.abort()
            self._tasks.discard(task)


def _has_data(data: bytes) -> bool:
    """Whether HTTP/2 frames hold a non-empty DATA frame; reads start at a frame's start on a loopback of idle peers."""
    while len(data) >= 9:
        length, kind = int.from_bytes(data[:3], "big"), data[3]
        if kind == 0 and length:
            return True
        data = data[9 + length :]
    return False
