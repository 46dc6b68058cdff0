"""What etcd's watch API does, on a real etcd and on the embedded registry alike."""

from __future__ import annotations

from typing import Any

from mesh.api.gen.etcd import rpc_pb2 as rpc
from tests.fixtures.etcd_raw import Raw, RawStream

Create = rpc.WatchCreateRequest
Seen = tuple[str, bytes, bytes, int]


def everything(**fields: Any) -> rpc.WatchCreateRequest:
    return Create(key=b"\0", range_end=b"\0", **fields)


def cancel(watch_id: int) -> rpc.WatchRequest:
    return rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=watch_id))


def events(stream: RawStream, count: int) -> list[Seen]:
    """Read until `count` events came: (kind, key, value, mod revision)."""
    found: list[Seen] = []
    while len(found) < count:
        response = stream.read()
        assert not response.canceled, response
        found.extend(
            (rpc.Event.EventType.Name(each.type), each.kv.key, each.kv.value, each.kv.mod_revision)
            for each in response.events
        )
    return found


def test_a_watch_shows_changes_in_order_from_its_creation(raw: Raw) -> None:
    raw.put(key=b"a", value=b"before")
    with raw.watch(everything()) as stream:
        created = stream.read()
        assert created.created
        assert created.watch_id == 0
        first = raw.put(key=b"a", value=b"1").header.revision
        raw.put(key=b"b", value=b"2")
        raw.delete(key=b"a")
        assert events(stream, 3) == [
            ("PUT", b"a", b"1", first),
            ("PUT", b"b", b"2", first + 1),
            ("DELETE", b"a", b"", first + 2),
        ]


def test_a_watch_from_a_past_revision_shows_history_first(raw: Raw) -> None:
    first = raw.put(key=b"a", value=b"1").header.revision
    raw.put(key=b"a", value=b"2")
    with raw.watch(Create(key=b"a", start_revision=first)) as stream:
        assert stream.read().created
        raw.put(key=b"a", value=b"3")
        assert [each[2] for each in events(stream, 3)] == [b"1", b"2", b"3"]


def test_a_watch_from_a_future_revision_shows_nothing_before_it(raw: Raw) -> None:
    now = raw.put(key=b"a").header.revision
    with raw.watch(Create(key=b"a", start_revision=now + 3)) as stream:
        assert stream.read().created
        for value in (b"1", b"2", b"3"):
            raw.put(key=b"a", value=value)
        assert events(stream, 1) == [("PUT", b"a", b"3", now + 3)]


def test_the_changes_of_one_transaction_come_in_one_response(raw: Raw) -> None:
    with raw.watch(everything()) as stream:
        assert stream.read().created
        operations = [rpc.RequestOp(request_put=rpc.PutRequest(key=key)) for key in (b"c", b"a", b"b")]
        raw.txn(success=operations)
        assert [each.kv.key for each in stream.read().events] == [b"c", b"a", b"b"]


def test_filters_leave_puts_or_deletes_out(raw: Raw) -> None:
    with raw.watch(everything(filters=[Create.NOPUT]), everything(filters=[Create.NODELETE])) as stream:
        assert stream.read().created
        assert stream.read().created
        raw.put(key=b"a")
        raw.delete(key=b"a")
        seen = {}
        for _ in range(2):
            response = stream.read()
            seen[response.watch_id] = [each.type for each in response.events]
        assert seen == {0: [rpc.Event.DELETE], 1: [rpc.Event.PUT]}


def test_previous_values_come_when_asked_for(raw: Raw) -> None:
    with raw.watch(everything(prev_kv=True)) as stream:
        assert stream.read().created
        raw.put(key=b"a", value=b"1")
        raw.put(key=b"a", value=b"2")
        raw.delete(key=b"a")
        found: list[bytes] = []
        while len(found) < 3:
            found.extend(each.prev_kv.value for each in stream.read().events)
        assert found == [b"", b"1", b"2"]


def test_a_watch_of_compacted_history_is_told_and_ended(raw: Raw) -> None:
    first = raw.put(key=b"a").header.revision
    raw.put(key=b"a")
    raw.compact(first + 1)
    with raw.watch(Create(key=b"a", start_revision=first)) as stream:
        assert stream.read().created
        response = stream.read()
        assert (response.canceled, response.compact_revision, response.header.revision) == (True, first + 1, 0)


def test_several_watches_share_a_stream_under_ids_of_the_clients_choice(raw: Raw) -> None:
    with raw.watch(Create(key=b"a", watch_id=7), Create(key=b"a", watch_id=7), Create(key=b"b")) as stream:
        assert [(each.watch_id, each.canceled, each.cancel_reason) for each in (stream.read() for _ in range(3))] == [
            (7, False, ""),
            (-1, True, "mvcc: duplicate watch ID provided on the WatchStream"),
            (0, False, ""),
        ]
        raw.put(key=b"b")
        raw.put(key=b"a")
        assert [stream.read().watch_id for _ in range(2)] == [0, 7]


def test_a_watch_of_an_empty_range_is_refused(raw: Raw) -> None:
    with raw.watch(Create(key=b"c", range_end=b"b")) as stream:
        response = stream.read()
        assert (response.created, response.canceled) == (True, True)
        assert response.cancel_reason == "mvcc: watcher range is empty"


def test_a_cancelled_watch_says_so_and_shows_nothing_more(raw: Raw) -> None:
    with raw.watch(Create(key=b"a", watch_id=3), Create(key=b"b", watch_id=4)) as stream:
        assert stream.read().created
        assert stream.read().created
        stream.send(cancel(99))
        stream.send(cancel(3))
        response = stream.read()
        assert (response.watch_id, response.canceled) == (3, True)
        raw.put(key=b"a")
        raw.put(key=b"b")
        assert stream.read().watch_id == 4


def test_progress_asked_for_is_the_present_revision(raw: Raw) -> None:
    with raw.watch(Create(key=b"a")) as stream:
        assert stream.read().created
        now = raw.put(key=b"elsewhere").header.revision
        stream.send(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
        response = stream.read()
        assert (response.watch_id, list(response.events), response.header.revision) == (-1, [], now)


def test_a_watch_goes_on_when_no_more_requests_follow(raw: Raw) -> None:
    with raw.watch(Create(key=b"a")) as stream:
        assert stream.read().created
        stream.end()
        revision = raw.put(key=b"a").header.revision
        assert events(stream, 1) == [("PUT", b"a", b"", revision)]


def test_keys_of_a_lease_that_ends_are_seen_to_go(raw: Raw) -> None:
    lease = raw.grant(TTL=60).ID
    raw.put(key=b"b", lease=lease)
    raw.put(key=b"a", lease=lease)
    with raw.watch(everything()) as stream:
        assert stream.read().created
        revision = raw.revoke(lease).header.revision
        assert events(stream, 2) == [("DELETE", b"a", b"", revision), ("DELETE", b"b", b"", revision)]
