"""What etcd's errors mean to the mesh: one table from its texts, then its gRPC codes, to what is done about each.

Texts and codes are those of etcd's package rpctypes (v3.4 to v3.6) for the calls that the mesh makes. A text decides
before the code: the end of a watch brings a text alone, and older members give some errors as UNKNOWN. Nothing here
waits or connects: `etcd_calls` and `etcd_watch` act upon it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from mesh.core.errors import Code, LeaseLost, MeshError, RegistryRefused, RegistryUnavailable


class Verdict(Enum):
    """What to do about an error of etcd."""

    ELSEWHERE = "a member or a connection in trouble: ask another one, or the same one a moment later"
    LATER = "the whole cluster cannot do it now: no other member helps, the callers try again"
    TOKEN = "the token is too old or unknown: authenticate and ask again"  # noqa: S105 - no password
    OPEN = "authentication is off: ask without a token"
    LEASE = "the lease is gone"
    REFUSED = "it is refused, now and by every member, until an operator changes something"


@dataclass(frozen=True, slots=True)
class Row:
    """One error of etcd: its code and text, what to do about it, and what an operator can do."""

    code: Code
    text: str
    verdict: Verdict
    advice: str = ""


_CREDENTIALS: Final = "check the registry's user and password"
_RIGHTS: Final = "grant the registry's user readwrite on the keys under /mesh/v1/"

TABLE: Final = (
    Row(Code.INVALID_ARGUMENT, "etcdserver: key is not provided", Verdict.REFUSED),
    Row(Code.INVALID_ARGUMENT, "etcdserver: key not found", Verdict.REFUSED),
    Row(Code.INVALID_ARGUMENT, "etcdserver: value is provided", Verdict.REFUSED),
    Row(Code.INVALID_ARGUMENT, "etcdserver: lease is provided", Verdict.REFUSED),
    Row(Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request", Verdict.REFUSED),
    Row(Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request", Verdict.REFUSED),
    Row(Code.INVALID_ARGUMENT, "etcdserver: request is too large", Verdict.REFUSED),
    # gRPC's own limit in front of etcd's: the text is grpc-go's.
    Row(Code.RESOURCE_EXHAUSTED, "grpc: received message larger than max", Verdict.REFUSED),
    Row(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", Verdict.REFUSED),
    Row(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision", Verdict.REFUSED),
    Row(
        Code.RESOURCE_EXHAUSTED,
        "etcdserver: mvcc: database space exceeded",
        Verdict.LATER,
        "compact and defragment etcd, raise its --quota-backend-bytes if need be, then disarm its alarm",
    ),
    Row(Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests", Verdict.ELSEWHERE),
    Row(Code.NOT_FOUND, "etcdserver: requested lease not found", Verdict.LEASE),
    Row(Code.FAILED_PRECONDITION, "etcdserver: lease already exists", Verdict.REFUSED),
    Row(Code.OUT_OF_RANGE, "etcdserver: too large lease TTL", Verdict.REFUSED),
    Row(
        Code.INVALID_ARGUMENT, "etcdserver: user name is empty", Verdict.TOKEN, "give the registry's user and password"
    ),
    Row(Code.INVALID_ARGUMENT, "etcdserver: authentication failed", Verdict.REFUSED, _CREDENTIALS),
    Row(Code.FAILED_PRECONDITION, "etcdserver: user name not found", Verdict.REFUSED, _CREDENTIALS),
    Row(Code.INVALID_ARGUMENT, "etcdserver: permission not given", Verdict.REFUSED, _RIGHTS),
    Row(Code.PERMISSION_DENIED, "etcdserver: permission denied", Verdict.REFUSED, _RIGHTS),
    Row(Code.FAILED_PRECONDITION, "etcdserver: role is not granted to the user", Verdict.REFUSED, _RIGHTS),
    Row(Code.FAILED_PRECONDITION, "etcdserver: permission is not granted to the role", Verdict.REFUSED, _RIGHTS),
    Row(Code.FAILED_PRECONDITION, "etcdserver: authentication is not enabled", Verdict.OPEN),
    Row(Code.UNAUTHENTICATED, "etcdserver: invalid auth token", Verdict.TOKEN),
    Row(Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", Verdict.TOKEN),
    Row(Code.INVALID_ARGUMENT, "etcdserver: invalid auth management", Verdict.REFUSED),
    Row(Code.UNAVAILABLE, "etcdserver: no leader", Verdict.ELSEWHERE),
    Row(Code.FAILED_PRECONDITION, "etcdserver: not leader", Verdict.ELSEWHERE),
    Row(Code.UNAVAILABLE, "etcdserver: leader changed", Verdict.ELSEWHERE),
    Row(Code.UNAVAILABLE, "etcdserver: not capable", Verdict.ELSEWHERE),
    Row(Code.UNAVAILABLE, "etcdserver: server stopped", Verdict.ELSEWHERE),
    # "possibly due to previous leader failure", "possibly due to connection lost" and more begin like this.
    Row(Code.UNAVAILABLE, "etcdserver: request timed out", Verdict.ELSEWHERE),
    Row(Code.UNAVAILABLE, "etcdserver: unhealthy cluster", Verdict.ELSEWHERE),
    Row(Code.UNAVAILABLE, "etcdserver: rpc not supported for learner", Verdict.ELSEWHERE),
    Row(
        Code.DATA_LOSS, "etcdserver: corrupt cluster", Verdict.LATER, "see etcd's alarms: a member differs from others"
    ),
    Row(Code.CANCELLED, "etcdserver: request canceled", Verdict.ELSEWHERE),
    Row(Code.CANCELLED, "etcdserver: watch canceled", Verdict.ELSEWHERE),
    # Go's own texts: etcd lets them pass with whatever code gRPC finds for them, UNKNOWN among others.
    Row(Code.UNKNOWN, "context deadline exceeded", Verdict.ELSEWHERE),
    Row(Code.UNKNOWN, "context canceled", Verdict.ELSEWHERE),
)

_REFUSALS: Final = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.PERMISSION_DENIED,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.UNIMPLEMENTED,
    }
)
"""Codes of which the text does not matter: the same question gets the same answer."""


def row_of(code: Code, text: str) -> Row:
    """Return the row of an error, made from its code when its text is not in the table. O(rows): errors are rare."""
    found = next((row for row in TABLE if row.text in text), None)
    if found is not None:
        return found
    if code is Code.UNAUTHENTICATED:
        return Row(code, text, Verdict.TOKEN)
    return Row(code, text, Verdict.REFUSED if code in _REFUSALS else Verdict.ELSEWHERE)


def error_of(code: Code, text: str) -> MeshError:
    """Return our error for one of etcd's, as a caller of the registry sees it when nothing more is tried."""
    row = row_of(code, text)
    told = f"{code.name} {text}" + (f"; {row.advice}" if row.advice else "")
    if row.verdict is Verdict.LEASE:
        return LeaseLost("the lease expired or was revoked; grant a new one")
    if row.verdict in {Verdict.ELSEWHERE, Verdict.LATER}:
        return RegistryUnavailable(f"etcd cannot do this now: {told}", facts=facts_of(text))
    return RegistryRefused(f"etcd refused: {told}", facts=facts_of(text))


def silence(endpoints: tuple[str, ...], timeout_s: float, said: str) -> RegistryUnavailable:
    """Return the error of a call that no member answered in time; `said` is the last thing that came, if any."""
    return RegistryUnavailable(
        f"expected an answer of etcd at {', '.join(endpoints)} within {timeout_s:g} s, the last one said: {said}; "
        "check that etcd runs and can be reached",
        # Which member was the last one changes from call to call: it is no news.
        facts=facts_of(said if "etcdserver:" in said else "no answer"),
    )


def kind_of(error: MeshError) -> str:
    """Return what is wrong without what differs from time to time, so that a log line need not be repeated."""
    return error.facts.get(_WHY, error.message)


def facts_of(text: str) -> dict[str, str]:
    """Return the facts of an error whose kind is `text`."""
    return {_WHY: text[:200]}


_WHY: Final = "registry"
