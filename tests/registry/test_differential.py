"""Any sequence of operations gives the same answers, errors and watch events from a real etcd and the embedded one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from mesh.api.gen.etcd import rpc_pb2 as rpc
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.etcd_raw import Raw

KEYS = st.sampled_from([b"a", b"b", b"ba", b"\xff\xff"])
ENDS = st.sampled_from([b"", b"b", b"c", b"\0", b"\0"])
VALUES = st.sampled_from([b"", b"1", b"2", b"x"])
LEASES = st.sampled_from([0, 0, 0, 0, 1, 2, 3])
"""None mostly, two that are alive from the start, and one that is not until it is granted."""
BACK = st.integers(0, 12)
"""Revisions are named by how far they lie back, because the two servers need not stand at the same one."""

PUTS = st.builds(
    lambda key, value, lease, prev, keep: rpc.PutRequest(
        key=key,
        value=b"" if keep == "value" else value,
        lease=0 if keep == "lease" else lease,
        prev_kv=prev,
        ignore_value=keep == "value",
        ignore_lease=keep == "lease",
    ),
    KEYS,
    VALUES,
    LEASES,
    st.booleans(),
    st.sampled_from(["", "", "", "value", "lease"]),
)
DELETES = st.builds(rpc.DeleteRangeRequest, key=KEYS, range_end=ENDS, prev_kv=st.booleans())
RANGES = st.builds(
    rpc.RangeRequest,
    key=KEYS,
    range_end=ENDS,
    limit=st.integers(0, 3),
    sort_order=st.sampled_from([0, 1, 2]),
    keys_only=st.booleans(),
    count_only=st.booleans(),
)
COMPARES = st.one_of(
    st.builds(rpc.Compare, key=KEYS, range_end=ENDS, result=st.integers(0, 3), target=st.just(0), version=BACK),
    st.builds(rpc.Compare, key=KEYS, range_end=ENDS, result=st.integers(0, 3), target=st.just(3), value=VALUES),
    st.builds(rpc.Compare, key=KEYS, range_end=ENDS, result=st.integers(0, 3), target=st.just(4), lease=LEASES),
)


def _operations(inner: st.SearchStrategy[rpc.TxnRequest] | None) -> st.SearchStrategy[rpc.RequestOp]:
    simple = st.one_of(
        st.builds(rpc.RequestOp, request_put=PUTS),
        st.builds(rpc.RequestOp, request_delete_range=DELETES),
        st.builds(rpc.RequestOp, request_range=RANGES),
    )
    return simple if inner is None else st.one_of(simple, simple, st.builds(rpc.RequestOp, request_txn=inner))


def _txns(inner: st.SearchStrategy[rpc.TxnRequest] | None) -> st.SearchStrategy[rpc.TxnRequest]:
    branch = st.lists(_operations(inner), max_size=3)
    return st.builds(rpc.TxnRequest, compare=st.lists(COMPARES, max_size=2), success=branch, failure=branch)


TXNS = _txns(_txns(None))


class Side:
    """One of the two servers, with its revisions told relative to where the example began."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw
        raw.wipe()
        # A compaction that an earlier example left behind must not reach into this one.
        self.base = 0
        self.base = raw.put(key=b"begin").header.revision
        raw.delete(key=b"begin")
        raw.compact(self.base + 1)
        self.base += 1
        self.watch: Any = None

    @property
    def revision(self) -> int:
        return self.raw.range(key=b"a").header.revision

    def ask(self, call: Callable[..., Message], *args: Any, **fields: Any) -> str:
        try:
            return self.shown(call(*args, **fields))
        except grpc.RpcError as error:
            return f"{error.code().name} {error.details()}"

    def shown(self, message: Message) -> str:
        copy = type(message).FromString(message.SerializeToString())
        self._relative(copy)
        return str(copy)

    def _relative(self, message: Any) -> None:
        for field, value in message.ListFields():
            if field.name in ("cluster_id", "member_id", "raft_term"):
                message.ClearField(field.name)
            elif field.name in ("revision", "create_revision", "mod_revision", "compact_revision"):
                # Absolute numbers below 1 say "none" and stay.
                setattr(message, field.name, value - self.base + 1000)
            elif field.message_type is not None:
                for each in value if field.is_repeated else [value]:
                    self._relative(each)


class Differential(RuleBasedStateMachine):
    """Does everything to both and compares."""

    sides: tuple[Side, Side]
    raws: tuple[Raw, Raw]

    @initialize()
    def begin(self) -> None:
        self.sides = (Side(self.raws[0]), Side(self.raws[1]))
        self.grant(1)
        self.grant(2)

    def both(self, do: Callable[[Side], str]) -> str:
        real, embedded = (do(each) for each in self.sides)
        assert real == embedded
        return real

    @rule(request=PUTS)
    def put(self, request: rpc.PutRequest) -> None:
        self.both(lambda side: side.ask(side.raw.call, "/etcdserverpb.KV/Put", request, rpc.PutResponse))

    @rule(request=DELETES)
    def delete(self, request: rpc.DeleteRangeRequest) -> None:
        path = "/etcdserverpb.KV/DeleteRange"
        self.both(lambda side: side.ask(side.raw.call, path, request, rpc.DeleteRangeResponse))

    @rule(request=TXNS)
    def txn(self, request: rpc.TxnRequest) -> None:
        self.both(lambda side: side.ask(side.raw.call, "/etcdserverpb.KV/Txn", request, rpc.TxnResponse))

    @rule(request=RANGES, back=BACK)
    def range_(self, request: rpc.RangeRequest, back: int) -> None:
        def ask(side: Side) -> str:
            asked = rpc.RangeRequest.FromString(request.SerializeToString())
            asked.revision = side.revision + 1 - back
            return side.ask(side.raw.call, "/etcdserverpb.KV/Range", asked, rpc.RangeResponse)

        self.both(ask)

    @rule(key=KEYS, end=ENDS, back=BACK, which=st.sampled_from(["min", "max"]), what=st.sampled_from(["mod", "create"]))
    def bounded_range(self, key: bytes, end: bytes, back: int, which: str, what: str) -> None:
        name = f"{which}_{what}_revision"
        self.both(lambda side: side.ask(side.raw.range, key=key, range_end=end, **{name: max(1, side.revision - back)}))

    @rule(key=KEYS, end=ENDS, mod=st.booleans(), back=BACK, result=st.integers(0, 3))
    def compare_revisions(self, key: bytes, end: bytes, mod: bool, back: int, result: Any) -> None:
        def ask(side: Side) -> str:
            compare = rpc.Compare(key=key, range_end=end, result=result)
            if mod:
                compare.target, compare.mod_revision = rpc.Compare.MOD, side.revision - back
            else:
                compare.target, compare.create_revision = rpc.Compare.CREATE, side.revision - back
            write = rpc.RequestOp(request_put=rpc.PutRequest(key=b"a", value=b"won"))
            return side.ask(side.raw.txn, compare=[compare], success=[write])

        self.both(ask)

    @rule(lease=st.integers(1, 3))
    def grant(self, lease: int) -> None:
        # Long enough that none expires while an example runs.
        self.both(lambda side: side.ask(side.raw.grant, ID=lease, TTL=3600))

    @rule(lease=st.integers(1, 3))
    def revoke(self, lease: int) -> None:
        self.both(lambda side: side.ask(side.raw.revoke, lease))

    @rule(lease=st.integers(1, 3))
    def lease_keys(self, lease: int) -> None:
        def ask(side: Side) -> str:
            response = side.raw.time_to_live(lease)
            return f"{response.grantedTTL} {response.TTL > 0} {sorted(response.keys)} {side.raw.leases()}"

        self.both(ask)

    @rule(back=st.sampled_from([-1, 3, 8, 12, 12, 12]))
    def compact(self, back: int) -> None:
        self.both(lambda side: side.ask(side.raw.compact, side.revision - back))

    @rule(start=BACK, key=KEYS, end=ENDS, prev=st.booleans(), filters=st.sampled_from([[], [0], [1]]))
    def watch_history(self, start: int, key: bytes, end: bytes, prev: bool, filters: list[Any]) -> None:
        """A watch from the past up to now; what is behind a compaction is told alike.

        A start at exactly the compacted revision is left out: etcd 3.4 forgets deletions there, the embedded does not.
        """

        def ask(side: Side) -> str:
            revision = side.revision
            create = rpc.WatchCreateRequest(
                key=key,
                range_end=end,
                start_revision=max(1, revision - start),
                prev_kv=prev,
                filters=filters,
                watch_id=1,
            )
            # A second watch of everything shows when the first one has been given all there is.
            marker = rpc.WatchCreateRequest(key=b"marker", start_revision=revision, watch_id=2)
            shown: list[str] = []
            with side.raw.watch(create, marker) as stream:
                side.raw.put(key=b"marker")
                ended = marked = False
                while not marked:
                    response = stream.read()
                    marked = response.watch_id == 2 and len(response.events) > 0
                    ended = ended or (response.watch_id == 1 and response.canceled)
                    if response.watch_id == 1 and response.canceled:
                        shown.append(side.shown(response))
                    if response.watch_id == 1:
                        shown.extend(side.shown(each) for each in response.events)
                if not ended:
                    shown.extend(_until_caught_up(side, stream, key, end, filters))
            return "\n".join(shown)

        real, embedded = (side.revision - start for side in self.sides)
        if any(self._at_compaction(side, at) for side, at in zip(self.sides, (real, embedded), strict=True)):
            return
        self.both(ask)

    @staticmethod
    def _at_compaction(side: Side, revision: int) -> bool:
        """Whether `revision` is the oldest that can be read."""
        revision = max(1, revision)
        readable = side.ask(side.raw.range, key=b"a", revision=revision)
        older = side.ask(side.raw.range, key=b"a", revision=revision - 1) if revision > 1 else "OUT_OF_RANGE"
        return not readable.startswith("OUT_OF_RANGE") and older.startswith("OUT_OF_RANGE")


def _until_caught_up(side: Side, stream: Any, key: bytes, end: bytes, filters: list[int]) -> Iterator[str]:
    """Write something the watch wants, and read until it comes."""
    if filters == [1]:
        last = side.raw.put(key=key, value=b"end").header.revision
    elif filters == [0]:
        side.raw.put(key=key, value=b"end")
        last = side.raw.delete(key=key).header.revision
    else:
        last = side.raw.put(key=key, value=b"end").header.revision
    if end and end != b"\0" and key >= end:
        return
    while True:
        response = stream.read()
        if response.watch_id != 1:
            continue
        for each in response.events:
            yield side.shown(each)
            if each.kv.mod_revision == last:
                return


def test_the_embedded_registry_answers_like_etcd(
    shared_etcd: EtcdServer, shared_embedded: str, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--registry") == "embedded":
        pytest.skip("the comparison needs a real etcd, and --registry=embedded was asked for")
    Differential.raws = (Raw(shared_etcd.address), Raw(shared_embedded))
    try:
        run_state_machine_as_test(
            Differential,
            settings=settings(
                max_examples=60,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=(Phase.explicit, Phase.generate, Phase.shrink),
            ),
        )
    finally:
        for each in Differential.raws:
            each.close()
