"""What etcd's KV API does, on a real etcd and on the embedded registry alike."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from mesh.api.gen.etcd import rpc_pb2 as rpc
from tests.fixtures.etcd_raw import Raw, error_of

Op = rpc.RequestOp


def put_op(key: bytes, value: bytes = b"", **fields: Any) -> rpc.RequestOp:
    return Op(request_put=rpc.PutRequest(key=key, value=value, **fields))


def delete_op(key: bytes, range_end: bytes = b"") -> rpc.RequestOp:
    return Op(request_delete_range=rpc.DeleteRangeRequest(key=key, range_end=range_end))


def range_op(key: bytes, **fields: Any) -> rpc.RequestOp:
    return Op(request_range=rpc.RangeRequest(key=key, **fields))


def test_a_put_takes_the_next_revision_and_counts_versions(raw: Raw) -> None:
    first = raw.put(key=b"a", value=b"1").header.revision
    second = raw.put(key=b"a", value=b"2").header.revision
    (found,) = raw.range(key=b"a").kvs
    assert second == first + 1
    assert (found.create_revision, found.mod_revision, found.version, found.value) == (first, second, 2, b"2")


def test_a_key_put_again_after_a_delete_starts_at_version_one(raw: Raw) -> None:
    raw.put(key=b"a", value=b"1")
    assert raw.delete(key=b"a").deleted == 1
    revision = raw.put(key=b"a", value=b"2").header.revision
    (found,) = raw.range(key=b"a").kvs
    assert (found.create_revision, found.version) == (revision, 1)


def test_a_delete_of_nothing_takes_no_revision(raw: Raw) -> None:
    before = raw.range(key=b"a").header.revision
    assert raw.delete(key=b"a").deleted == 0
    assert raw.range(key=b"a").header.revision == before


def test_put_gives_the_previous_value_when_asked(raw: Raw) -> None:
    raw.put(key=b"a", value=b"1")
    assert raw.put(key=b"a", value=b"2", prev_kv=True).prev_kv.value == b"1"
    assert not raw.put(key=b"a", value=b"3").HasField("prev_kv")


def test_delete_gives_the_previous_values_in_key_order_when_asked(raw: Raw) -> None:
    for key in (b"b", b"a", b"c"):
        raw.put(key=key, value=key)
    response = raw.delete(key=b"a", range_end=b"c", prev_kv=True)
    assert (response.deleted, [each.key for each in response.prev_kvs]) == (2, [b"a", b"b"])


def test_put_may_keep_the_value_or_the_lease(raw: Raw) -> None:
    lease = raw.grant(TTL=60).ID
    raw.put(key=b"a", value=b"1", lease=lease)
    raw.put(key=b"a", value=b"2", ignore_lease=True)
    assert [(each.value, each.lease) for each in raw.range(key=b"a").kvs] == [(b"2", lease)]
    raw.put(key=b"a", ignore_value=True)
    assert [(each.value, each.lease) for each in raw.range(key=b"a").kvs] == [(b"2", 0)]
    assert raw.time_to_live(lease).keys == []


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"key": b""}, ("INVALID_ARGUMENT", "etcdserver: key is not provided")),
        ({"key": b"a", "value": b"x", "ignore_value": True}, ("INVALID_ARGUMENT", "etcdserver: value is provided")),
        ({"key": b"a", "lease": 9, "ignore_lease": True}, ("INVALID_ARGUMENT", "etcdserver: lease is provided")),
        ({"key": b"a", "ignore_value": True}, ("INVALID_ARGUMENT", "etcdserver: key not found")),
        ({"key": b"a", "ignore_lease": True}, ("INVALID_ARGUMENT", "etcdserver: key not found")),
        ({"key": b"a", "lease": 77}, ("NOT_FOUND", "etcdserver: requested lease not found")),
        ({"key": b"a", "value": bytes(1600 * 1024)}, ("INVALID_ARGUMENT", "etcdserver: request is too large")),
    ],
)
def test_a_put_that_cannot_be_done_is_refused_in_etcds_words(
    raw: Raw, fields: dict[str, Any], error: tuple[str, str]
) -> None:
    before = raw.range(key=b"a").header.revision
    assert error_of(raw.put, **fields) == error
    assert raw.range(key=b"a").header.revision == before


@pytest.mark.parametrize(
    ("fields", "keys", "more", "count"),
    [
        ({}, [b"a", b"b", b"c", b"d"], False, 4),
        ({"limit": 2}, [b"a", b"b"], True, 4),
        ({"limit": 4}, [b"a", b"b", b"c", b"d"], False, 4),
        ({"sort_order": rpc.RangeRequest.DESCEND}, [b"d", b"c", b"b", b"a"], False, 4),
        ({"sort_order": rpc.RangeRequest.DESCEND, "limit": 1}, [b"d"], True, 4),
        ({"sort_target": rpc.RangeRequest.MOD}, [b"b", b"d", b"a", b"c"], False, 4),
        ({"sort_target": rpc.RangeRequest.MOD, "limit": 1}, [b"b"], True, 4),
        (
            {"sort_target": rpc.RangeRequest.CREATE, "sort_order": rpc.RangeRequest.DESCEND},
            [b"d", b"c", b"b", b"a"],
            False,
            4,
        ),
        (
            {"sort_target": rpc.RangeRequest.VALUE, "sort_order": rpc.RangeRequest.ASCEND},
            [b"c", b"a", b"d", b"b"],
            False,
            4,
        ),
        ({"count_only": True}, [], False, 4),
        ({"count_only": True, "limit": 1}, [], False, 4),
    ],
)
def test_a_range_sorts_and_limits(raw: Raw, fields: dict[str, Any], keys: list[bytes], more: bool, count: int) -> None:
    for key in (b"a", b"b", b"c"):
        raw.put(key=key)
    raw.put(key=b"b", value=b"9")
    raw.put(key=b"d", value=b"4")
    raw.put(key=b"a", value=b"3")
    raw.put(key=b"c", value=b"1")
    response = raw.range(key=b"a", range_end=b"z", **fields)
    assert ([each.key for each in response.kvs], response.more, response.count) == (keys, more, count)


def test_a_range_is_bounded_by_revisions(raw: Raw) -> None:
    revisions = [raw.put(key=key).header.revision for key in (b"a", b"b", b"c")]
    raw.put(key=b"a", value=b"2")

    def keys(**fields: Any) -> tuple[list[bytes], int]:
        response = raw.range(key=b"a", range_end=b"z", **fields)
        return [each.key for each in response.kvs], response.count

    assert keys(min_mod_revision=revisions[2]) == ([b"a", b"c"], 3)
    assert keys(max_mod_revision=revisions[1]) == ([b"b"], 3)
    assert keys(min_create_revision=revisions[1]) == ([b"b", b"c"], 3)
    assert keys(max_create_revision=revisions[1], limit=1) == ([b"a"], 3)


def test_a_range_in_the_past_sees_the_past(raw: Raw) -> None:
    first = raw.put(key=b"a", value=b"1").header.revision
    raw.put(key=b"a", value=b"2")
    raw.delete(key=b"a")
    assert [each.value for each in raw.range(key=b"a", revision=first).kvs] == [b"1"]
    assert [each.value for each in raw.range(key=b"a", revision=first + 1).kvs] == [b"2"]
    assert raw.range(key=b"a", revision=first + 2).count == 0
    assert raw.range(key=b"a", revision=first - 1).count == 0


def test_keys_only_leaves_the_values_out(raw: Raw) -> None:
    raw.put(key=b"a", value=b"1")
    (found,) = raw.range(key=b"a", keys_only=True).kvs
    assert (found.key, found.value, found.version) == (b"a", b"", 1)


def test_ranges_end_before_their_end_and_from_key_has_none(raw: Raw) -> None:
    for key in (b"a", b"ab", b"b", b"\xff\xff"):
        raw.put(key=key)
    assert [each.key for each in raw.range(key=b"a", range_end=b"b").kvs] == [b"a", b"ab"]
    assert [each.key for each in raw.range(key=b"b", range_end=b"\0").kvs] == [b"b", b"\xff\xff"]
    assert raw.range(key=b"b", range_end=b"a").count == 0


def test_revisions_that_are_gone_or_not_there_yet_are_out_of_range(raw: Raw) -> None:
    revision = raw.put(key=b"a", value=b"1").header.revision
    raw.put(key=b"a", value=b"2")
    raw.compact(revision + 1)
    gone = ("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted")
    future = ("OUT_OF_RANGE", "etcdserver: mvcc: required revision is a future revision")
    assert error_of(raw.range, key=b"a", revision=revision) == gone
    assert error_of(raw.range, key=b"a", revision=revision + 2) == future
    assert error_of(raw.compact, revision=revision) == gone
    assert error_of(raw.compact, revision=revision + 1) == gone
    assert error_of(raw.compact, revision=revision + 2) == future
    assert [each.value for each in raw.range(key=b"a", revision=revision + 1).kvs] == [b"2"]


def test_a_transaction_is_one_revision_and_sees_its_own_writes(raw: Raw) -> None:
    before = raw.put(key=b"a", value=b"1").header.revision
    response = raw.txn(
        success=[
            put_op(b"a", b"2", prev_kv=True),
            range_op(b"a", range_end=b"z"),
            delete_op(b"b"),
            put_op(b"c", b"3"),
            range_op(b"c"),
        ]
    )
    assert response.header.revision == before + 1
    assert response.responses[0].response_put.prev_kv.value == b"1"
    assert [each.value for each in response.responses[1].response_range.kvs] == [b"2"]
    assert response.responses[2].response_delete_range.deleted == 0
    assert response.responses[4].response_range.kvs[0].mod_revision == before + 1
    assert [each.response_range.header.revision for each in response.responses[1:2]] == [before + 1]


def test_a_transaction_that_only_reads_takes_no_revision(raw: Raw) -> None:
    before = raw.put(key=b"a").header.revision
    assert raw.txn(success=[range_op(b"a")]).header.revision == before


@pytest.mark.parametrize(
    ("compare", "succeeded"),
    [
        ({"target": rpc.Compare.VERSION, "version": 2}, True),
        ({"target": rpc.Compare.VERSION, "result": rpc.Compare.GREATER, "version": 1}, True),
        ({"target": rpc.Compare.VERSION, "result": rpc.Compare.LESS, "version": 2}, False),
        ({"target": rpc.Compare.VALUE, "value": b"x"}, True),
        ({"target": rpc.Compare.VALUE, "result": rpc.Compare.NOT_EQUAL, "value": b"x"}, False),
        ({"target": rpc.Compare.VALUE, "result": rpc.Compare.GREATER, "value": b"a"}, True),
        ({"target": rpc.Compare.VALUE, "result": rpc.Compare.LESS, "value": b"a"}, False),
        ({"target": rpc.Compare.LEASE, "lease": 0}, True),
        ({"target": rpc.Compare.CREATE, "result": rpc.Compare.GREATER, "create_revision": 0}, True),
        ({"target": rpc.Compare.MOD, "mod_revision": 0}, False),
        ({"target": rpc.Compare.VERSION, "range_end": b"z", "result": rpc.Compare.GREATER, "version": 0}, True),
        ({"target": rpc.Compare.VALUE, "range_end": b"z", "value": b"x"}, False),
        ({"key": b"none", "target": rpc.Compare.VERSION, "version": 0}, True),
        ({"key": b"none", "target": rpc.Compare.MOD, "mod_revision": 0}, True),
        ({"key": b"none", "target": rpc.Compare.VALUE, "value": b""}, False),
        ({"key": b"none", "target": rpc.Compare.VALUE, "result": rpc.Compare.NOT_EQUAL, "value": b"y"}, False),
    ],
)
def test_comparisons_choose_the_branch(raw: Raw, compare: dict[str, Any], succeeded: bool) -> None:
    raw.put(key=b"a", value=b"0")
    raw.put(key=b"a", value=b"x")
    raw.put(key=b"b", value=b"y")
    response = raw.txn(
        compare=[rpc.Compare(**{"key": b"a", **compare})], success=[put_op(b"then")], failure=[put_op(b"else")]
    )
    assert response.succeeded == succeeded
    assert raw.range(key=b"then").count == int(succeeded)
    assert raw.range(key=b"else").count == int(not succeeded)


def test_nested_comparisons_are_decided_before_the_first_write(raw: Raw) -> None:
    raw.put(key=b"a", value=b"before")
    nested = rpc.TxnRequest(
        compare=[rpc.Compare(key=b"a", target=rpc.Compare.VALUE, value=b"before")],
        success=[put_op(b"b", b"nested")],
        failure=[put_op(b"b", b"wrong")],
    )
    response = raw.txn(success=[put_op(b"a", b"after"), Op(request_txn=nested)])
    assert response.responses[1].response_txn.succeeded
    assert raw.range(key=b"b").kvs[0].value == b"nested"


@pytest.mark.parametrize(
    ("operations", "error"),
    [
        ([put_op(b"a"), put_op(b"a")], "duplicate key given in txn request"),
        ([put_op(b"b"), delete_op(b"a", b"c")], "duplicate key given in txn request"),
        ([put_op(b"a"), Op(request_txn=rpc.TxnRequest(success=[put_op(b"a")]))], "duplicate key given in txn request"),
        ([put_op(b"")], "key is not provided"),
        ([range_op(b"")], "key is not provided"),
        ([delete_op(b"")], "key is not provided"),
        ([Op()], "key not found"),
        ([put_op(b"none", ignore_value=True)], "key not found"),
        ([range_op(b"a")] * 129, "too many operations in txn request"),
        ([Op(request_txn=rpc.TxnRequest(success=[range_op(b"a")] * 128))], "too many operations in txn request"),
    ],
)
def test_a_transaction_that_cannot_be_done_is_refused_whole(
    raw: Raw, operations: list[rpc.RequestOp], error: str
) -> None:
    before = raw.range(key=b"a").header.revision
    found = error_of(raw.txn, success=[put_op(b"first"), *operations][: max(len(operations), 1) + 1])
    assert found == ("INVALID_ARGUMENT", f"etcdserver: {error}")
    assert raw.range(key=b"first").count == 0
    assert raw.range(key=b"a").header.revision == before


def test_a_transaction_may_write_one_key_in_both_branches(raw: Raw) -> None:
    nested = rpc.TxnRequest(success=[put_op(b"a", b"1")], failure=[put_op(b"a", b"2")])
    assert raw.txn(success=[Op(request_txn=nested)]).succeeded
    assert raw.range(key=b"a").kvs[0].value == b"1"


def test_a_transaction_with_an_unknown_lease_or_a_future_read_changes_nothing(raw: Raw) -> None:
    assert error_of(raw.txn, success=[put_op(b"a"), put_op(b"b", lease=5)]) == (
        "NOT_FOUND",
        "etcdserver: requested lease not found",
    )
    assert error_of(raw.txn, success=[put_op(b"a"), range_op(b"b", revision=1 << 40)]) == (
        "OUT_OF_RANGE",
        "etcdserver: mvcc: required revision is a future revision",
    )
    assert raw.range(key=b"a").count == 0


def test_a_message_over_the_grpc_limit_is_resource_exhausted(raw: Raw) -> None:
    assert error_of(raw.put, key=b"a", value=bytes(3 * 1024 * 1024))[0] == "RESOURCE_EXHAUSTED"


def test_status_names_a_leader_and_the_headers_name_the_member(raw: Raw) -> None:
    status = raw.status()
    header = raw.range(key=b"a").header
    assert status.leader == header.member_id != 0
    assert (header.cluster_id, header.raft_term) == (status.header.cluster_id, status.header.raft_term)
    assert status.version.startswith("3.")


def test_authentication_that_is_not_enabled_is_said_so(raw: Raw) -> None:
    request = rpc.AuthenticateRequest(name="a", password="b")
    with pytest.raises(grpc.RpcError) as failed:
        raw.call("/etcdserverpb.Auth/Authenticate", request, rpc.AuthenticateResponse)
    assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
