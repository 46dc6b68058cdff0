"""One tree of errors. A class fixes who is at fault, the gRPC code a caller sees and whether a retry is safe.

`mesh.api.status` maps these to gRPC statuses and back. Texts follow Triton's where clients match on them (substrings).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import ClassVar

from mesh.core.texts import shortened


class Code(IntEnum):
    """gRPC status codes (the numbers of the gRPC specification; `core` does not import grpc)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class MeshError(Exception):
    """The root. `message` is what the caller reads: what was expected, what came, what to do."""

    code: ClassVar[Code] = Code.INTERNAL
    retry_safe: ClassVar[bool] = False
    """True when the request certainly did not run, so another copy may be asked."""

    absent: ClassVar[bool] = False
    """True when what was asked for is not where it was looked for, and may be elsewhere: a copy, or a sequence."""

    died: ClassVar[bool] = False
    """True when the process that ran the request ended in the course of it: asking another copy may end that too."""

    reruns: ClassVar[bool] = True
    """Whether requests of which a joined run failed with it may be run again, each alone, so that one's fault is not
    the others': false when the failure was no one's among them, or cost more than a run."""

    reason: ClassVar[str] = ""
    """The kind of failure for programs, in capitals (google.rpc.ErrorInfo); empty where the code says enough."""

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, facts: Mapping[str, str] | None = None
    ) -> None:
        """Keep `message` for the caller, cut where it is very long; for programs, when to call again, and facts."""
        message = shortened(message)
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.facts: Mapping[str, str] = facts or {}


class InvalidRequest(MeshError):
    """The caller's fault: the request can never succeed as it is."""

    code = Code.INVALID_ARGUMENT


class UnknownModel(MeshError):
    """No such model or version, or all its versions were unloaded."""

    code = Code.NOT_FOUND


class NamesPipeline(UnknownModel):
    """The name is a pipeline's: no model answers it, a graph of models does."""


class Unimplemented(MeshError):
    """A call or option that this server does not offer."""

    code = Code.UNIMPLEMENTED


class DeadlineExceeded(MeshError):
    """The caller's deadline passed before an answer."""

    code = Code.DEADLINE_EXCEEDED


class TooLarge(MeshError):
    """A message over the configured cap."""

    code = Code.RESOURCE_EXHAUSTED


class NoCapacity(MeshError):
    """No node can hold the model now."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "NO_CAPACITY"


class Churn(MeshError):
    """Every copy that could make room is in use: loading this model would push out one that others are waiting for."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "CHURN"


class NotReady(MeshError):
    """The model or server is not ready to take this call; it was not run."""

    code = Code.UNAVAILABLE
    retry_safe = True


class NotHere(NotReady):
    """This node holds no ready copy of the model: whoever asked it looked at a list that was true a moment ago."""

    absent = True


class UnknownSequence(InvalidRequest):
    """A step that does not start a sequence, for one that this copy does not know; it was not run."""

    retry_safe = True
    absent = True
    copy_age_s: float | None = None
    """Seconds for which the copy has held what sequences there were: whoever had an answer of the sequence from it
    within that time knows that it was ended, not lost. None where no copy says so."""


class SessionLost(MeshError):
    """The state of a sequence is not here any more, and what was kept is not enough to make it again."""

    code = Code.ABORTED
    reason = "SESSION_LOST"
    resumable: ClassVar[bool] = False
    """True when a caller that keeps states itself may go on from its own: nothing forbids that its steps run again."""


class StateLost(SessionLost):
    """The node that held the state is gone, and this router kept too little."""

    resumable = True


class Loading(NotReady):
    """The model is being loaded, and will not be ready before the caller's deadline."""

    reason = "LOADING"


class Overloaded(MeshError):
    """A queue is full or a request waited too long in it; it was not run."""

    code = Code.UNAVAILABLE
    reason = "OVERLOADED"
    retry_safe = True


class LoadFailed(MeshError):
    """The model's files cannot be loaded."""

    code = Code.INTERNAL
    reason = "LOAD_FAILED"


class ModelFailed(MeshError):
    """The model ran and raised."""

    code = Code.INTERNAL


class WorkerDied(MeshError):
    """The process that ran the request ended in the course of it, and its node goes on."""

    code = Code.UNAVAILABLE
    reason = "WORKER_DIED"
    died = True
    reruns = False


class Quarantined(MeshError):
    """The version ended too many processes: it is not run for a time, which is over by itself; it was not run.

    Not UNAVAILABLE: many clients repeat that at once, and balancers count it against the router, which is well.
    """

    code = Code.FAILED_PRECONDITION
    reason = "QUARANTINED"


class RegistryUnavailable(MeshError):
    """The registry does not answer, or cannot do it now: no leader, no space. Trying again later may help."""

    code = Code.UNAVAILABLE
    reason = "REGISTRY_UNAVAILABLE"


class RegistryRefused(MeshError):
    """The registry answered and said no: wrong credentials, a missing permission. An operator has to change something.

    Not PERMISSION_DENIED: it is this process that may not, and no caller of it.
    """

    code = Code.FAILED_PRECONDITION
    reason = "REGISTRY_REFUSED"


class RegistryMisconfigured(RegistryRefused):
    """How to reach the registry makes no sense, whatever the registry says: a file that cannot be read."""


class LeaseLost(MeshError):
    """A lease expired or was revoked; what was registered under it is gone."""

    code = Code.UNAVAILABLE


class Conflict(MeshError):
    """Somebody else changed it first."""

    code = Code.ABORTED


class RemoteError(MeshError):
    """A peer answered a call with a status, passed on as it came, or the connection to it broke.

    `transport_failed` is true when the status was made up by the local transport because the peer went away (no
    trailers came from it). `unsent` is true when it is certain that the peer never saw the request.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        transport_failed: bool = False,
        unsent: bool = False,
        trailers: tuple[tuple[str, str | bytes], ...] = (),
    ) -> None:
        """Keep the status as it came."""
        super().__init__(message)
        self.status = Code(status)
        self.transport_failed = transport_failed
        self.unsent = unsent
        self.trailers = trailers


def code_of(error: BaseException) -> Code:
    """Return the gRPC code a caller sees for `error`; INTERNAL for anything outside the tree."""
    if isinstance(error, RemoteError):
        return error.status
    return error.code if isinstance(error, MeshError) else Code.INTERNAL


def status_of(error: BaseException) -> tuple[Code, str]:
    """Return the code and text a caller sees. An error outside our tree is a fault of ours: INTERNAL, with its name."""
    if isinstance(error, MeshError):
        return code_of(error), error.message
    return Code.INTERNAL, f"internal error: {type(error).__name__}: {error}"


def let_go(error: BaseException) -> None:
    """Drop what `error` and those that led to it hold of the places they came through. Call it when it was told.

    Frames hold whatever was at hand there, a request's tensors among it, and often the error itself: without this they
    stay until a full collection.
    """
    left = [error]
    while left:
        each = left.pop()
        left += [other for other in (each.__cause__, each.__context__) if other is not None]
        if isinstance(each, BaseExceptionGroup):
            left += each.exceptions
        each.__traceback__ = each.__cause__ = each.__context__ = None
