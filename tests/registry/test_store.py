"""The client keeps the promises of `Store`, on a real etcd and on the embedded registry alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.errors import LeaseLost, RegistryRefused, RegistryUnavailable
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.etcd_watch import bytes_of, range_end, text_of
from mesh.registry.store import MAX_WRITE_BYTES, MAX_WRITES, Batch, Entry, Event, Guard, Listing, batches
from mesh.registry.trouble import pause_s
from tests.fixtures.etcd import Running, eventually
from tests.fixtures.faults import FaultyLink
from tests.fixtures.mesh import free_port


async def test_an_entry_carries_value_revisions_and_lease(store: EtcdClient) -> None:
    lease = await store.grant(60)
    first = await store.put("/t/a", b"1", lease=lease)
    second = await store.put("/t/a", b"2", lease=lease)
    assert await store.get("/t/a") == Entry("/t/a", b"2", first, second, 2, lease)
    assert await store.get("/t/b") is None


async def test_a_listing_holds_the_prefix_in_key_order_as_of_one_revision(store: EtcdClient) -> None:
    for key in ("/t/b", "/t/a", "/u", "/s"):
        revision = await store.put(key, key.encode())
    listing = await store.list("/t/")
    assert [entry.key for entry in listing.entries] == ["/t/a", "/t/b"]
    assert listing.revision == revision
    assert len((await store.list("")).entries) == 4


async def test_a_listing_longer_than_a_page_is_whole(store: EtcdClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.registry.etcd_client._PAGE", 3)
    keys = [f"/t/{number:02}" for number in range(10)]
    for key in keys:
        await store.put(key, b"")
    assert [entry.key for entry in (await store.list("/t/")).entries] == keys


async def test_a_listing_begins_anew_when_history_goes_between_two_pages(
    store: EtcdClient, registry: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.registry.etcd_client._PAGE", 1)
    for key in ("/t/a", "/t/b", "/t/c"):
        await store.put(key, b"")
    from mesh.api.gen.etcd import rpc_pb2 as rpc

    real = store._range
    compacted = False

    async def range_then_compact(request: rpc.RangeRequest) -> rpc.RangeResponse:
        nonlocal compacted
        page = await real(request)
        if not compacted:
            compacted = True
            revision = await store.put("/t/d", b"")
            await store._caller.unary(
                "/etcdserverpb.KV/Compact", rpc.CompactionRequest(revision=revision), rpc.CompactionResponse
            )
        return page

    monkeypatch.setattr(store, "_range", range_then_compact)
    assert [entry.key for entry in (await store.list("/t/")).entries] == ["/t/a", "/t/b", "/t/c", "/t/d"]


async def test_replace_writes_only_over_the_expected_revision(store: EtcdClient) -> None:
    created = await store.replace("/t/a", b"1", expected=0)
    assert created is not None
    assert await store.replace("/t/a", b"2", expected=0) is None
    assert await store.replace("/t/a", b"2", expected=created + 100) is None
    changed = await store.replace("/t/a", b"2", expected=created)
    assert changed == created + 1
    assert await store.replace("/t/a", None, expected=created) is None
    assert await store.replace("/t/a", None, expected=changed) == changed + 1
    assert await store.get("/t/a") is None


async def test_of_many_that_create_one_key_one_wins(store: EtcdClient) -> None:
    results = await asyncio.gather(*(store.replace("/t/a", b"%d" % each, expected=0) for each in range(20)))
    (winner,) = [each for each, revision in enumerate(results) if revision is not None]
    entry = await store.get("/t/a")
    assert entry is not None
    assert entry.value == b"%d" % winner


async def test_delete_tells_whether_the_key_was_there(store: EtcdClient) -> None:
    await store.put("/t/a", b"")
    assert await store.delete("/t/a")
    assert not await store.delete("/t/a")


async def test_a_lost_lease_is_lost_to_every_call(store: EtcdClient) -> None:
    lease = await store.grant(60)
    assert await store.keep_alive(lease) == 60.0
    await store.put("/t/a", b"", lease=lease)
    await store.revoke(lease)
    await store.revoke(lease)
    assert await store.get("/t/a") is None
    for call in (
        store.keep_alive(lease),
        store.put("/t/a", b"", lease=lease),
        store.replace("/t/a", b"", expected=0, lease=lease),
    ):
        with pytest.raises(LeaseLost):
            await call


async def test_a_request_that_etcd_refuses_says_why(store: EtcdClient) -> None:
    with pytest.raises(RegistryRefused, match="request is too large"):
        await store.put("/t/a", bytes(1700 * 1024))


async def test_keys_that_are_not_text_survive(store: EtcdClient) -> None:
    key = text_of(b"/t/\xff\xfe")
    await store.put(key, b"1")
    assert [entry.key for entry in (await store.list("/t/")).entries] == [key]
    assert bytes_of(key) == b"/t/\xff\xfe"


async def test_a_watch_yields_what_came_after_the_listing(store: EtcdClient) -> None:
    await store.put("/t/a", b"1")
    listing = await store.list("/t/")
    async with aclosing(store.watch("/t/", after=listing.revision)) as batches:
        revision = await store.put("/t/a", b"2")
        await store.put("/u", b"elsewhere")
        await store.delete("/t/a")
        found: list[Event] = []
        async for batch in batches:
            assert not batch.relisted
            found.extend(batch.events)
            if len(found) == 2:
                break
    assert found[0].entry is not None
    assert (found[0].entry.value, found[0].entry.mod_revision) == (b"2", revision)
    assert found[1] == Event("/t/a", None)
    assert batch.revision == revision + 2


async def test_a_watch_behind_a_compaction_lists_again(store: EtcdClient, registry: Running) -> None:
    from mesh.api.gen.etcd import rpc_pb2 as rpc

    behind = await store.put("/t/a", b"1")
    await store.put("/t/gone", b"1")
    await store.delete("/t/gone")
    revision = await store.put("/t/b", b"1")
    await store._caller.unary(
        "/etcdserverpb.KV/Compact", rpc.CompactionRequest(revision=revision), rpc.CompactionResponse
    )
    async with aclosing(store.watch("/t/", after=behind)) as batches:
        batch = await anext(batches)
        assert batch.relisted
        assert [event.key for event in batch.events] == ["/t/a", "/t/b"]
        assert batch.revision == revision
        await store.put("/t/c", b"1")
        batch = await anext(batches)
        assert (batch.relisted, [event.key for event in batch.events]) == (False, ["/t/c"])


async def test_a_whole_transaction_is_one_batch_even_when_it_is_large(store: EtcdClient) -> None:
    from mesh.api.gen.etcd import rpc_pb2 as rpc

    listing = await store.list("/t/")
    async with aclosing(store.watch("/t/", after=listing.revision)) as batches:
        next_batch = asyncio.ensure_future(anext(batches))
        operations = [
            rpc.RequestOp(request_put=rpc.PutRequest(key=b"/t/%03d" % each, value=bytes(11_000))) for each in range(128)
        ]
        await store._caller.unary("/etcdserverpb.KV/Txn", rpc.TxnRequest(success=operations), rpc.TxnResponse)
        assert len((await next_batch).events) == 128


async def test_history_too_large_for_one_response_comes_whole_and_in_order(
    store: EtcdClient, registry: Running
) -> None:
    """A real etcd cuts such a response into fragments, the embedded one sends several."""
    from mesh.api.gen.etcd import rpc_pb2 as rpc
    from tests.fixtures.etcd_raw import Raw

    before = (await store.list("/t/")).revision
    for each in range(30):
        await store.put(f"/t/{each:02}", bytes(100_000))
    if registry.kind == "etcd":
        raw = Raw(registry.address)
        create = rpc.WatchCreateRequest(key=b"/t/", range_end=b"/t0", start_revision=before + 1, fragment=True)
        with raw.watch(create) as stream:
            assert stream.read().created
            assert stream.read().fragment, "etcd was expected to cut this response"
        raw.close()
    found: list[str] = []
    async with aclosing(store.watch("/t/", after=before)) as batches:
        while len(found) < 30:
            found.extend(event.key for event in (await anext(batches)).events)
    assert found == [f"/t/{each:02}" for each in range(30)]


async def test_no_endpoint_that_answers_is_unavailable_within_the_timeout(
    connect: Callable[..., EtcdClient],
) -> None:
    dead = f"127.0.0.1:{free_port()}"
    client = connect(dead, timeout_s=0.5)
    with pytest.raises(RegistryUnavailable, match=dead):
        await client.get("/t/a")


async def test_an_endpoint_that_takes_connections_and_says_nothing_is_unavailable(
    registry: Running, connect: Callable[..., EtcdClient]
) -> None:
    silent = FaultyLink(registry.address)
    silent.stalled = True
    await silent.start()
    client = connect(silent.address, timeout_s=0.5)
    with pytest.raises(RegistryUnavailable):
        await client.keep_alive(1)
    await client.close()
    await silent.stop()


async def test_a_closed_client_says_so(registry: Running, connect: Callable[..., EtcdClient]) -> None:
    client = connect(registry.address)
    await client.get("/t/a")
    await client.close()
    with pytest.raises(RegistryUnavailable, match="closed"):
        await client.get("/t/a")


async def test_cancelled_while_waiting_for_a_call(connect: Callable[..., EtcdClient]) -> None:
    client = connect(f"127.0.0.1:{free_port()}")
    for call in (
        client.get("/t/a"),
        client.keep_alive(1),
        client.grant(5),
        client.wait_ready(lambda _: None),
    ):
        task = asyncio.ensure_future(call)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_cancelled_while_watching_ends_the_stream_at_the_server(
    store: EtcdClient, registry: Running, registry_kind: str
) -> None:
    started = asyncio.Event()

    async def follow() -> None:
        async with aclosing(store.watch("/t/", after=0)) as batches:
            async for _ in batches:
                started.set()

    task = asyncio.create_task(follow())
    await store.put("/t/a", b"")
    await asyncio.wait_for(started.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await store.get("/t/a") is not None


async def test_a_watch_that_nobody_closes_properly_can_be_left(store: EtcdClient) -> None:
    await store.put("/t/a", b"")
    batches = store.watch("/t/", after=0)
    assert (await anext(batches)).events
    await batches.aclose()
    assert await store.get("/t/a") is not None


async def test_wait_ready_returns_when_the_registry_answers(store: EtcdClient) -> None:
    said: list[str] = []
    await store.wait_ready(said.append)
    assert said == []


def test_the_end_of_a_prefix_is_the_next_key_that_does_not_start_with_it() -> None:
    assert range_end(b"/t/") == b"/t0"
    assert range_end(b"a\xff") == b"b"
    assert range_end(b"\xff\xff") == b"\0"
    assert range_end(b"") == b"\0"


def test_pauses_double_up_to_a_second_and_spread_over_their_upper_half() -> None:
    assert [pause_s(failures, 1.0) for failures in (1, 2, 3, 50)] == [0.05, 0.1, 0.2, 1.0]
    assert pause_s(3, 0.0) == 0.1


def test_batches_and_listings_compare_by_value() -> None:
    assert Batch((), 3) == Batch((), 3, relisted=False, live=True)
    assert Listing((), 1) != Listing((), 2)


async def test_a_slow_watch_of_the_embedded_registry_costs_no_memory_and_lists_again() -> None:
    """A reader that stops reading while far more is written than the history keeps."""
    from mesh.registry.config import RegistryConfig
    from mesh.registry.embedded import EmbeddedRegistry

    registry = EmbeddedRegistry(keep_revisions=100)
    await registry.start()
    client = EtcdClient(RegistryConfig(endpoints=(registry.address,), timeout_s=60))
    try:
        async with aclosing(client.watch("/t/", after=1)) as batches:
            await client.put("/t/0", b"")
            assert (await anext(batches)).events
            # 40 MB: far more than the sockets' and gRPC's buffers take.
            for each in range(400):
                await client.put(f"/t/{each % 10}", bytes(100_000))
            assert registry._servicer is not None
            assert len(registry._servicer._keys._log) <= 111

            async def relisted() -> bool:
                return (await anext(batches)).relisted

            await eventually(relisted, what="the slow watch lists again")
    finally:
        await client.close()
        await registry.stop()


async def test_a_write_of_many_keys_happens_whole_or_not_at_all(store: EtcdClient) -> None:
    lease = await store.grant(60)
    first = await store.write({"/t/a": b"1", "/t/b": b"2"}, guards=[Guard("/t/a", mod_revision=0)], lease=lease)
    assert first is not None
    assert [(each.key, each.mod_revision, each.lease) for each in (await store.list("/t/")).entries] == [
        ("/t/a", first, lease),
        ("/t/b", first, lease),
    ]
    assert await store.write({"/t/c": b"3"}, guards=[Guard("/t/a", mod_revision=0)]) is None
    assert await store.write({"/t/c": b"3"}, guards=[Guard("/t/a", mod_revision=first), Guard("/t/b", lease=7)]) is None
    assert await store.count("/t/") == 2
    second = await store.write({"/t/a": None, "/t/c": b"3"}, guards=[Guard("/t/b", lease=lease)])
    assert second is not None
    assert [(each.key, each.value) for each in (await store.list("/t/")).entries] == [("/t/b", b"2"), ("/t/c", b"3")]


async def test_a_write_under_a_lost_lease_is_refused(store: EtcdClient) -> None:
    lease = await store.grant(60)
    await store.revoke(lease)
    with pytest.raises(LeaseLost):
        await store.write({"/t/a": b"1"}, lease=lease)
    assert await store.count("/t/") == 0


async def test_the_largest_write_is_taken(store: EtcdClient) -> None:
    whole: dict[str, bytes | None] = {f"/t/{number}": b"x" * 4000 for number in range(MAX_WRITES)}
    assert await store.write(whole, guards=[Guard(key, mod_revision=0) for key in whole]) is not None
    assert await store.count("/t/") == MAX_WRITES
    with pytest.raises(ValueError, match=f"expected at most {MAX_WRITES} keys"):
        await store.write({**whole, "/t/more": b""})


@given(st.dictionaries(st.text(min_size=1), st.none() | st.binary(max_size=40).map(lambda some: some * 9000)))
def test_batches_hold_everything_in_order_and_fit(changes: dict[str, bytes | None]) -> None:
    found = list(batches(changes))
    assert [each for batch in found for each in batch.items()] == list(changes.items())
    for batch in found:
        assert 0 < len(batch) <= MAX_WRITES
        size = sum(len(key) + len(value or b"") for key, value in batch.items())
        assert len(batch) == 1 or size <= MAX_WRITE_BYTES


def test_batches_end_at_the_number_of_keys_that_etcd_takes() -> None:
    assert [len(each) for each in batches(dict.fromkeys(map(str, range(300))))] == [MAX_WRITES, MAX_WRITES, 44]


async def test_what_was_before_a_compaction_is_forgotten(store: EtcdClient) -> None:
    first = await store.put("/t/a", b"1")
    second = await store.put("/t/a", b"2")
    await store.compact(second)
    await store.compact(first)
    async with aclosing(store.watch("/t/", after=first - 1)) as batches_:
        assert (await anext(batches_)).relisted
    with pytest.raises(RegistryRefused, match="future revision"):
        await store.compact(second + 1000)
