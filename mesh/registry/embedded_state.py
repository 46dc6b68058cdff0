"""The embedded registry's keys: revisions, history, ranges, compaction, leases' keys. No I/O, no clock.

Owns the multi-version key space that etcd's KV calls are answered from, with the answers and error texts of etcd 3.4.
Transactions are `embedded_txn`'s affair, leases `embedded_lease`'s, watches `embedded_watch`'s, gRPC `embedded`'s.

Rules. The first revision is 1 and every transaction that changes something takes the next one. A key's history holds
its versions in order, a deletion being a version with version number 0. `log[i]` holds the changes of one revision, of
which there are no gaps. What is at or above `compacted` can be read and watched.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import Final

from mesh.api.gen.etcd import rpc_pb2 as rpc
from mesh.core.errors import Code


class EtcdError(Exception):
    """A call ends with this gRPC code and text, both etcd's."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def compacted_error() -> EtcdError:
    """Return the error of a revision whose history is gone."""
    return EtcdError(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")


def future_error() -> EtcdError:
    """Return the error of a revision that has not come yet."""
    return EtcdError(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")


def is_put(version: rpc.KeyValue) -> bool:
    """Tell a value from a deletion."""
    return version.version > 0


_TARGETS: Final = {
    rpc.RangeRequest.KEY: lambda kv: kv.key,
    rpc.RangeRequest.VERSION: lambda kv: kv.version,
    rpc.RangeRequest.CREATE: lambda kv: kv.create_revision,
    rpc.RangeRequest.MOD: lambda kv: kv.mod_revision,
    rpc.RangeRequest.VALUE: lambda kv: kv.value,
}


class Keys:
    """All keys with their history since `compacted`. Versions are never changed once they are in."""

    def __init__(self, keep_revisions: int) -> None:
        self.revision = 1
        self.compacted = -1
        self._keep = keep_revisions
        self._sorted: list[bytes] = []
        self._history: dict[bytes, list[rpc.KeyValue]] = {}
        self._log: list[tuple[rpc.KeyValue, ...]] = []
        self._log_first = 2
        self._pending: list[rpc.KeyValue] = []

    def __repr__(self) -> str:
        """Show the counts."""
        return (
            f"<Keys revision={self.revision} compacted={self.compacted} keys={len(self._sorted)} log={len(self._log)}>"
        )

    @property
    def read_revision(self) -> int:
        """The revision that a read within the present transaction sees: its own changes count."""
        return self.revision + (1 if self._pending else 0)

    def get(self, key: bytes) -> rpc.KeyValue | None:
        """Return the present value of `key`. O(1)."""
        history = self._history.get(key)
        return history[-1] if history and is_put(history[-1]) else None

    def at(self, key: bytes, revision: int) -> rpc.KeyValue | None:
        """Return the value of `key` as of `revision`. O(log versions)."""
        history = self._history.get(key, [])
        index = bisect_right(history, revision, key=_mod)
        return history[index - 1] if index and is_put(history[index - 1]) else None

    def find(self, key: bytes, range_end: bytes, revision: int) -> Iterator[rpc.KeyValue]:
        """Yield the values of a range in key order as of `revision`. An empty `range_end` is the key alone."""
        if not range_end:
            names = [key]
        else:
            start = bisect_left(self._sorted, key)
            end = len(self._sorted) if range_end == b"\0" else bisect_left(self._sorted, range_end)
            names = self._sorted[start:end]
        for name in names:
            value = self.at(name, revision)
            if value is not None:
                yield value

    def range(self, request: rpc.RangeRequest) -> rpc.RangeResponse:
        """Answer a Range. Raises `EtcdError` for a revision that is compacted or not there yet. O(keys in range)."""
        current = self.read_revision
        revision = request.revision if request.revision > 0 else current
        self.check_revision(revision)
        found = list(self.find(request.key, request.range_end, revision))
        response = rpc.RangeResponse(header=rpc.ResponseHeader(revision=current), count=len(found))
        if request.count_only:
            return response
        bounds = (
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        )
        if any(bounds):
            found = [kv for kv in found if _within(kv, *bounds)]
        order = request.sort_order
        if request.limit > 0 and order == rpc.RangeRequest.NONE and not any(bounds):
            # etcd cuts by key before it sorts by another target when no order is given, with one more to know `more`.
            found = found[: request.limit + 1]
        if order == rpc.RangeRequest.NONE and request.sort_target != rpc.RangeRequest.KEY:
            order = rpc.RangeRequest.ASCEND
        if order != rpc.RangeRequest.NONE:
            found.sort(key=_TARGETS[request.sort_target], reverse=order == rpc.RangeRequest.DESCEND)
        if 0 < request.limit < len(found):
            found = found[: request.limit]
            response.more = True
        response.kvs.extend(found)
        if request.keys_only:
            for kv in response.kvs:
                kv.value = b""
        return response

    def check_revision(self, revision: int) -> None:
        """Raise `EtcdError` when `revision` cannot be read."""
        if revision > self.read_revision:
            raise future_error()
        if revision < self.compacted:
            raise compacted_error()

    def put(self, key: bytes, value: bytes, lease: int) -> rpc.KeyValue:
        """Write one key within the present transaction."""
        before = self.get(key)
        version = rpc.KeyValue(
            key=key,
            create_revision=before.create_revision if before is not None else self.revision + 1,
            mod_revision=self.revision + 1,
            version=before.version + 1 if before is not None else 1,
            value=value,
            lease=lease,
        )
        self._append(version)
        return version

    def delete(self, key: bytes) -> None:
        """Delete one key that is there, within the present transaction."""
        self._append(rpc.KeyValue(key=key, mod_revision=self.revision + 1))

    def commit(self) -> None:
        """End the present transaction: its changes, if any, are the next revision."""
        if not self._pending:
            return
        self._log.append(tuple(self._pending))
        self._pending.clear()
        self.revision += 1
        # A tenth beyond, so that trimming is paid for once in many revisions.
        if len(self._log) > self._keep + self._keep // 10:
            self._compact(self.revision - self._keep)

    def compact(self, revision: int) -> None:
        """Forget what came before `revision`. Raises `EtcdError`."""
        if revision <= self.compacted:
            raise compacted_error()
        if revision > self.revision:
            raise future_error()
        self._compact(revision)

    def changes(self, revision: int) -> tuple[rpc.KeyValue, ...]:
        """Return the changes of `revision`, in order: compacted <= revision <= the present one. O(1)."""
        index = revision - self._log_first
        return self._log[index] if index >= 0 else ()

    def _append(self, version: rpc.KeyValue) -> None:
        history = self._history.get(version.key)
        if history is None:
            history = self._history[version.key] = []
            insort(self._sorted, version.key)
        history.append(version)
        self._pending.append(version)

    def _compact(self, revision: int) -> None:
        self.compacted = revision
        last = revision - self._log_first
        touched = {change.key for changes in self._log[: last + 1] for change in changes}
        for key in touched:
            history = self._history.get(key)
            if history is None:
                continue
            index = bisect_right(history, revision, key=_mod)
            # The last version at or before `revision` is what reads at it see, unless it is a deletion.
            del history[: index - 1 if is_put(history[index - 1]) else index]
            if not history:
                del self._history[key]
                del self._sorted[bisect_left(self._sorted, key)]
        if last > 0:
            # The changes of `revision` itself can still be watched.
            del self._log[:last]
            self._log_first = revision


def _mod(version: rpc.KeyValue) -> int:
    return version.mod_revision


def _within(kv: rpc.KeyValue, min_mod: int, max_mod: int, min_create: int, max_create: int) -> bool:
    return (
        (not min_mod or kv.mod_revision >= min_mod)
        and (not max_mod or kv.mod_revision <= max_mod)
        and (not min_create or kv.create_revision >= min_create)
        and (not max_create or kv.create_revision <= max_create)
    )
