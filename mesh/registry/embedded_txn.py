"""The embedded registry's writes: Put, DeleteRange, Txn and the end of leases. No I/O, no clock.

Owns the checks before a write and the writing itself, as etcd 3.4 does them: every comparison of a transaction, nested
ones too, is decided before its first write, and a transaction that would fail changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from mesh.api.gen.etcd import rpc_pb2 as rpc
from mesh.core.errors import Code
from mesh.registry.embedded_lease import Leases
from mesh.registry.embedded_state import EtcdError, Keys

MAX_TXN_OPS: Final = 128
"""etcd's --max-txn-ops."""
_Range = tuple[bytes, bytes]
_Plan = list[tuple[rpc.RequestOp, "_Chosen | None"]]
"""The requests of a chosen branch; a nested transaction with what was chosen in it."""
_Chosen = tuple[bool, "_Plan"]


def _invalid(text: str) -> EtcdError:
    return EtcdError(Code.INVALID_ARGUMENT, f"etcdserver: {text}")


class Writer:
    """Applies writes to keys and leases; each public method is one transaction."""

    def __init__(self, keys: Keys, leases: Leases) -> None:
        self._keys = keys
        self._leases = leases

    def put(self, request: rpc.PutRequest) -> rpc.PutResponse:
        """Answer a Put. Raises `EtcdError`."""
        _check_put(request)
        self._leases.check(request.lease)
        self._check_ignored(request)
        response = self._put(request)
        self._keys.commit()
        return response

    def delete_range(self, request: rpc.DeleteRangeRequest) -> rpc.DeleteRangeResponse:
        """Answer a DeleteRange. Raises `EtcdError`."""
        _check_key(request.key)
        response = self._delete_range(request)
        self._keys.commit()
        return response

    def txn(self, request: rpc.TxnRequest) -> rpc.TxnResponse:
        """Answer a Txn. Raises `EtcdError`, with nothing changed."""
        check_txn(request, MAX_TXN_OPS)
        _check_overlap(request.success)
        _check_overlap(request.failure)
        chosen = self._choose(request)
        for each in _flat(chosen[1]):
            if each.HasField("request_put"):
                self._check_ignored(each.request_put)
                self._leases.check(each.request_put.lease)
        for each in _flat(chosen[1]):
            if each.HasField("request_range") and each.request_range.revision:
                self._keys.check_revision(each.request_range.revision)
        response = self._apply(chosen)
        response.header.revision = self._keys.read_revision
        self._keys.commit()
        return response

    def end_lease(self, lease: int) -> None:
        """Delete the keys of `lease` and end it. Raises `EtcdError` when it is not alive."""
        for key in self._leases.end(lease):
            self._keys.delete(key)
        self._keys.commit()

    def _choose(self, request: rpc.TxnRequest) -> _Chosen:
        succeeded = all(self._holds(each) for each in request.compare)
        plan: _Plan = [
            (each, self._choose(each.request_txn) if each.HasField("request_txn") else None)
            for each in (request.success if succeeded else request.failure)
        ]
        return succeeded, plan

    def _holds(self, compare: rpc.Compare) -> bool:
        found = list(self._keys.find(compare.key, compare.range_end, self._keys.revision))
        if found:
            return all(_compare(compare, kv) for kv in found)
        # A value that is not there equals nothing, not even the empty one.
        return compare.target != rpc.Compare.VALUE and _compare(compare, rpc.KeyValue())

    def _apply(self, chosen: _Chosen) -> rpc.TxnResponse:
        succeeded, plan = chosen
        response = rpc.TxnResponse(succeeded=succeeded, header=rpc.ResponseHeader())
        for request, nested in plan:
            one = response.responses.add()
            if nested is not None:
                one.response_txn.CopyFrom(self._apply(nested))
            elif request.HasField("request_put"):
                one.response_put.CopyFrom(self._put(request.request_put))
            elif request.HasField("request_delete_range"):
                one.response_delete_range.CopyFrom(self._delete_range(request.request_delete_range))
            else:
                one.response_range.CopyFrom(self._keys.range(request.request_range))
        return response

    def _put(self, request: rpc.PutRequest) -> rpc.PutResponse:
        before = self._keys.get(request.key)
        value, lease = request.value, request.lease
        if before is not None:
            value = before.value if request.ignore_value else value
            lease = before.lease if request.ignore_lease else lease
        self._keys.put(request.key, value, lease)
        self._leases.attach(request.key, lease)
        response = rpc.PutResponse(header=rpc.ResponseHeader(revision=self._keys.read_revision))
        if request.prev_kv and before is not None:
            response.prev_kv.CopyFrom(before)
        return response

    def _delete_range(self, request: rpc.DeleteRangeRequest) -> rpc.DeleteRangeResponse:
        found = list(self._keys.find(request.key, request.range_end, self._keys.read_revision))
        for kv in found:
            self._keys.delete(kv.key)
            self._leases.attach(kv.key, 0)
        return rpc.DeleteRangeResponse(
            header=rpc.ResponseHeader(revision=self._keys.read_revision),
            deleted=len(found),
            prev_kvs=found if request.prev_kv else (),
        )

    def _check_ignored(self, request: rpc.PutRequest) -> None:
        if (request.ignore_value or request.ignore_lease) and self._keys.get(request.key) is None:
            raise _invalid("key not found")


def _flat(plan: _Plan) -> Iterator[rpc.RequestOp]:
    for request, nested in plan:
        if nested is None:
            yield request
        else:
            yield from _flat(nested[1])


def check_key(key: bytes) -> None:
    """Raise `EtcdError` for the empty key."""
    _check_key(key)


def _check_key(key: bytes) -> None:
    if not key:
        raise _invalid("key is not provided")


def _check_put(request: rpc.PutRequest) -> None:
    _check_key(request.key)
    if request.ignore_value and request.value:
        raise _invalid("value is provided")
    if request.ignore_lease and request.lease:
        raise _invalid("lease is provided")


def check_txn(request: rpc.TxnRequest, most: int) -> None:
    """Raise `EtcdError` for a transaction of more than `most` operations or with a malformed one, at any depth."""
    operations = max(len(request.compare), len(request.success), len(request.failure))
    if operations > most:
        raise _invalid("too many operations in txn request")
    for compare in request.compare:
        _check_key(compare.key)
    for each in (*request.success, *request.failure):
        match each.WhichOneof("request"):
            case "request_range":
                _check_key(each.request_range.key)
            case "request_put":
                _check_put(each.request_put)
            case "request_delete_range":
                _check_key(each.request_delete_range.key)
            case "request_txn":
                check_txn(each.request_txn, most - operations)
            case None:
                raise _invalid("key not found")


def _check_overlap(requests: Iterable[rpc.RequestOp]) -> tuple[set[bytes], list[_Range]]:
    """Raise `EtcdError` when two writes of one branch may touch one key; return the branch's puts and deletes."""
    requests = list(requests)
    deletes: list[_Range] = [
        (each.request_delete_range.key, each.request_delete_range.range_end)
        for each in requests
        if each.HasField("request_delete_range")
    ]
    puts: set[bytes] = set()
    for each in requests:
        if not each.HasField("request_txn"):
            continue
        then_puts, then_deletes = _check_overlap(each.request_txn.success)
        else_puts, else_deletes = _check_overlap(each.request_txn.failure)
        # Only one of the two branches runs, so they may touch the same keys.
        _add_puts(puts, then_puts | else_puts, deletes)
        deletes += then_deletes + else_deletes
    for each in requests:
        if each.HasField("request_put"):
            _add_puts(puts, {each.request_put.key}, deletes)
    return puts, deletes


def _add_puts(puts: set[bytes], more: set[bytes], deletes: list[_Range]) -> None:
    for key in more:
        if key in puts or any(_covers(each, key) for each in deletes):
            raise _invalid("duplicate key given in txn request")
    puts |= more


def _covers(deleted: _Range, key: bytes) -> bool:
    start, end = deleted
    # etcd takes "no end" (one zero byte) for an end like any other here, so such a range overlaps nothing.
    return key == start if not end else start <= key < end


def _compare(compare: rpc.Compare, kv: rpc.KeyValue) -> bool:
    mine, theirs = _sides(compare, kv)
    match compare.result:
        case rpc.Compare.EQUAL:
            return mine == theirs
        case rpc.Compare.NOT_EQUAL:
            return mine != theirs
        case rpc.Compare.GREATER:
            return mine > theirs
        case rpc.Compare.LESS:
            return mine < theirs
    return True


def _sides(compare: rpc.Compare, kv: rpc.KeyValue) -> tuple[int, int]:
    """Return what is compared, as numbers: bytes become their order."""
    match compare.target:
        case rpc.Compare.VERSION:
            return kv.version, compare.version
        case rpc.Compare.CREATE:
            return kv.create_revision, compare.create_revision
        case rpc.Compare.MOD:
            return kv.mod_revision, compare.mod_revision
        case rpc.Compare.LEASE:
            return kv.lease, compare.lease
    return (kv.value > compare.value) - (kv.value < compare.value), 0
