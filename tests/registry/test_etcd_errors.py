"""Each error of etcd becomes one of ours: what passes is UNAVAILABLE, what an operator has to change is refused."""

from __future__ import annotations

import pytest

from mesh.core.errors import Code, LeaseLost, MeshError, RegistryRefused, RegistryUnavailable
from mesh.registry.etcd_errors import TABLE, Verdict, error_of, kind_of, row_of, silence

EXPECTED: tuple[tuple[Code, str, Verdict, type[MeshError]], ...] = (
    (Code.INVALID_ARGUMENT, "etcdserver: key is not provided", Verdict.REFUSED, RegistryRefused),
    (Code.INVALID_ARGUMENT, "etcdserver: key not found", Verdict.REFUSED, RegistryRefused),
    (Code.INVALID_ARGUMENT, "etcdserver: value is provided", Verdict.REFUSED, RegistryRefused),
    (Code.INVALID_ARGUMENT, "etcdserver: lease is provided", Verdict.REFUSED, RegistryRefused),
    (Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request", Verdict.REFUSED, RegistryRefused),
    (Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request", Verdict.REFUSED, RegistryRefused),
    (Code.INVALID_ARGUMENT, "etcdserver: request is too large", Verdict.REFUSED, RegistryRefused),
    (
        *(Code.RESOURCE_EXHAUSTED, "grpc: received message larger than max (3145759 vs. 2097152)"),
        *(Verdict.REFUSED, RegistryRefused),
    ),
    (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", Verdict.REFUSED, RegistryRefused),
    (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision", Verdict.REFUSED, RegistryRefused),
    (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", Verdict.LATER, RegistryUnavailable),
    (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests", Verdict.ELSEWHERE, RegistryUnavailable),
    (Code.NOT_FOUND, "etcdserver: requested lease not found", Verdict.LEASE, LeaseLost),
    (Code.FAILED_PRECONDITION, "etcdserver: lease already exists", Verdict.REFUSED, RegistryRefused),
    (Code.OUT_OF_RANGE, "etcdserver: too large lease TTL", Verdict.REFUSED, RegistryRefused),
    (Code.INVALID_ARGUMENT, "etcdserver: user name is empty", Verdict.TOKEN, RegistryRefused),
    (
        *(Code.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password"),
        *(Verdict.REFUSED, RegistryRefused),
    ),
    (Code.FAILED_PRECONDITION, "etcdserver: user name not found", Verdict.REFUSED, RegistryRefused),
    (Code.INVALID_ARGUMENT, "etcdserver: permission not given", Verdict.REFUSED, RegistryRefused),
    (Code.PERMISSION_DENIED, "etcdserver: permission denied", Verdict.REFUSED, RegistryRefused),
    (Code.FAILED_PRECONDITION, "etcdserver: role is not granted to the user", Verdict.REFUSED, RegistryRefused),
    (Code.FAILED_PRECONDITION, "etcdserver: permission is not granted to the role", Verdict.REFUSED, RegistryRefused),
    (Code.FAILED_PRECONDITION, "etcdserver: authentication is not enabled", Verdict.OPEN, RegistryRefused),
    (Code.UNAUTHENTICATED, "etcdserver: invalid auth token", Verdict.TOKEN, RegistryRefused),
    (Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", Verdict.TOKEN, RegistryRefused),
    (Code.INVALID_ARGUMENT, "etcdserver: invalid auth management", Verdict.REFUSED, RegistryRefused),
    (Code.UNAVAILABLE, "etcdserver: no leader", Verdict.ELSEWHERE, RegistryUnavailable),
    (Code.FAILED_PRECONDITION, "etcdserver: not leader", Verdict.ELSEWHERE, RegistryUnavailable),
    (Code.UNAVAILABLE, "etcdserver: leader changed", Verdict.ELSEWHERE, RegistryUnavailable),
    (Code.FAILED_PRECONDITION, "etcdserver: not capable", Verdict.ELSEWHERE, RegistryUnavailable),
    (Code.UNAVAILABLE, "etcdserver: server stopped", Verdict.ELSEWHERE, RegistryUnavailable),
    (Code.UNAVAILABLE, "etcdserver: request timed out", Verdict.ELSEWHERE, RegistryUnavailable),
    (
        *(Code.UNAVAILABLE, "etcdserver: request timed out, possibly due to previous leader failure"),
        *(Verdict.ELSEWHERE, RegistryUnavailable),
    ),
    (
        *(Code.UNAVAILABLE, "etcdserver: request timed out, possibly due to connection lost"),
        *(Verdict.ELSEWHERE, RegistryUnavailable),
    ),
    (Code.UNAVAILABLE, "etcdserver: unhealthy cluster", Verdict.ELSEWHERE, RegistryUnavailable),
    (Code.UNAVAILABLE, "etcdserver: rpc not supported for learner", Verdict.ELSEWHERE, RegistryUnavailable),
    (Code.DATA_LOSS, "etcdserver: corrupt cluster", Verdict.LATER, RegistryUnavailable),
    (Code.CANCELLED, "etcdserver: request canceled", Verdict.ELSEWHERE, RegistryUnavailable),
    (Code.CANCELLED, "etcdserver: watch canceled", Verdict.ELSEWHERE, RegistryUnavailable),
    (Code.UNKNOWN, "context deadline exceeded", Verdict.ELSEWHERE, RegistryUnavailable),
    (Code.DEADLINE_EXCEEDED, "etcdserver: context deadline exceeded", Verdict.ELSEWHERE, RegistryUnavailable),
    (Code.UNKNOWN, "context canceled", Verdict.ELSEWHERE, RegistryUnavailable),
)


@pytest.mark.parametrize(("code", "text", "verdict", "kind"), EXPECTED, ids=[row[1] for row in EXPECTED])
def test_each_error_of_etcd_has_its_meaning(code: Code, text: str, verdict: Verdict, kind: type[MeshError]) -> None:
    assert row_of(code, text).verdict is verdict
    error = error_of(code, text)
    assert type(error) is kind
    assert (error.code is Code.UNAVAILABLE) is (kind is not RegistryRefused)
    # The end of a watch says the same in a text, and members of other versions with other codes.
    assert row_of(Code.UNKNOWN, f"rpc error: code = {code.name} desc = {text}").verdict is verdict


def test_the_table_has_no_row_that_is_not_expected() -> None:
    assert not [row.text for row in TABLE if not any(row.text in text for _, text, _, _ in EXPECTED)]


@pytest.mark.parametrize("code", [each for each in Code if each is not Code.OK])
def test_an_error_of_another_text_is_judged_by_its_code(code: Code) -> None:
    """Where the same question gets the same answer it is refused; whatever else is wrong may pass."""
    refused = {
        *(Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.PERMISSION_DENIED),
        *(Code.FAILED_PRECONDITION, Code.OUT_OF_RANGE, Code.UNIMPLEMENTED),
    }
    verdict = Verdict.TOKEN if code is Code.UNAUTHENTICATED else Verdict.ELSEWHERE
    assert row_of(code, "something new").verdict is (Verdict.REFUSED if code in refused else verdict)


def test_an_error_says_what_etcd_said_and_what_to_do() -> None:
    error = error_of(Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
    assert error.message.startswith("etcd cannot do this now: RESOURCE_EXHAUSTED etcdserver: mvcc: database space")
    assert "disarm its alarm" in error.message


def test_which_member_was_silent_last_is_no_other_kind_of_trouble() -> None:
    one = silence(("a:1", "b:1"), 5.0, "UNAVAILABLE failed to connect to all addresses; ipv4:10.0.0.1:2379")
    other = silence(("a:1", "b:1"), 5.0, "DEADLINE_EXCEEDED Deadline Exceeded")
    assert one.message != other.message
    assert kind_of(one) == kind_of(other) != kind_of(silence(("a:1",), 5.0, "UNAVAILABLE etcdserver: no leader"))
