"""What etcd's lease API does, on a real etcd and on the embedded registry alike."""

from __future__ import annotations

import time

from mesh.api.gen.etcd import rpc_pb2 as rpc
from tests.fixtures.etcd_raw import Raw, error_of
from tests.fixtures.mesh import until

NOT_FOUND = ("NOT_FOUND", "etcdserver: requested lease not found")


def test_a_revoked_lease_takes_its_keys_along_in_one_revision(raw: Raw) -> None:
    lease = raw.grant(TTL=60).ID
    raw.put(key=b"a", lease=lease)
    before = raw.put(key=b"b", lease=lease).header.revision
    assert raw.revoke(lease).header.revision == before + 1
    assert raw.range(key=b"a", range_end=b"z").count == 0
    assert error_of(raw.revoke, lease=lease) == NOT_FOUND


def test_a_lease_without_keys_ends_without_a_revision(raw: Raw) -> None:
    before = raw.put(key=b"a").header.revision
    assert raw.revoke(raw.grant(TTL=60).ID).header.revision == before


def test_a_key_put_again_without_the_lease_stays(raw: Raw) -> None:
    lease = raw.grant(TTL=60).ID
    raw.put(key=b"a", lease=lease)
    raw.put(key=b"a")
    raw.revoke(lease)
    assert raw.range(key=b"a").count == 1


def test_a_key_moves_from_one_lease_to_another(raw: Raw) -> None:
    first, second = raw.grant(TTL=60).ID, raw.grant(TTL=60).ID
    raw.put(key=b"a", lease=first)
    raw.put(key=b"a", lease=second)
    assert list(raw.time_to_live(first).keys) == []
    assert list(raw.time_to_live(second).keys) == [b"a"]
    raw.revoke(first)
    assert raw.range(key=b"a").count == 1


def test_a_deleted_key_leaves_its_lease(raw: Raw) -> None:
    lease = raw.grant(TTL=60).ID
    raw.put(key=b"a", lease=lease)
    raw.delete(key=b"a")
    assert list(raw.time_to_live(lease).keys) == []


def test_ids_and_times_to_live_have_bounds(raw: Raw) -> None:
    granted = raw.grant(TTL=0, ID=5)
    assert (granted.ID, granted.TTL) == (5, 2)
    assert error_of(raw.grant, TTL=10, ID=5) == ("FAILED_PRECONDITION", "etcdserver: lease already exists")
    assert error_of(raw.grant, TTL=9_000_000_001) == ("OUT_OF_RANGE", "etcdserver: too large lease TTL")
    assert raw.grant(TTL=10).ID != 0


def test_a_lease_that_nobody_renews_expires_with_its_keys(raw: Raw) -> None:
    lease = raw.grant(TTL=2).ID
    raw.put(key=b"a", lease=lease)
    until(lambda: raw.range(key=b"a").count == 0, what="the key is gone")
    assert raw.time_to_live(lease).TTL == -1
    assert lease not in raw.leases()


def test_a_renewed_lease_lives_past_its_time(raw: Raw) -> None:
    lease = raw.grant(TTL=5).ID
    raw.put(key=b"a", lease=lease)
    end_s = time.monotonic() + 7.0
    renewed = 0
    with raw.keep_alive() as stream:

        def renew() -> bool:
            nonlocal renewed
            stream.send(rpc.LeaseKeepAliveRequest(ID=lease))
            response = stream.read()
            renewed += 1
            assert (lease, 5) == (response.ID, response.TTL)
            return time.monotonic() > end_s

        until(renew, what="past the lease's first time")
    assert renewed > 1
    assert raw.range(key=b"a").count == 1


def test_renewing_an_unknown_lease_is_answered_with_no_time_and_the_stream_goes_on(raw: Raw) -> None:
    lease = raw.grant(TTL=60).ID
    with raw.keep_alive() as stream:
        stream.send(rpc.LeaseKeepAliveRequest(ID=44))
        assert stream.read().TTL == 0
        stream.send(rpc.LeaseKeepAliveRequest(ID=lease))
        assert stream.read().TTL == 60


def test_time_to_live_of_a_lease_tells_what_was_granted_and_what_is_left(raw: Raw) -> None:
    lease = raw.grant(TTL=60).ID
    response = raw.time_to_live(lease)
    assert response.grantedTTL == 60
    assert 0 < response.TTL <= 60
    assert raw.time_to_live(99).TTL == -1
    assert lease in raw.leases()
