"""How a node's part of a call ended: its trailers as the caller gets them, or what broke."""

from __future__ import annotations

from typing import Final

from mesh.core.errors import Code, DeadlineExceeded, MeshError, RemoteError
from mesh.core.traffic.retry import Fate, fate_of
from mesh.core.types import ModelVersion
from mesh.core.view import Located
from mesh.wire.connection import LOST, OVERSIZED
from mesh.wire.deadlines import TICK_S
from mesh.wire.fields import Block
from mesh.wire.frames import ErrorCode
from mesh.wire.grpc_framing import code_of_reset
from mesh.wire.heads import AnswerHead, answer_head, trailers
from mesh.wire.transport import ABSENT, COPY_AGE_TRAILER, DIED_TRAILER, LOAD_TRAILER, NOT_RUN_TRAILER

_MESH: Final = b"mesh-"
_LOAD: Final = LOAD_TRAILER.encode()
_NOT_RUN: Final = NOT_RUN_TRAILER.encode()
_ABSENT: Final = ABSENT.encode()
_DIED: Final = DIED_TRAILER.encode()


class End:
    """Trailers of a node as the caller gets them: without what the mesh says to itself. Kept on the block."""

    __slots__ = ("absent", "block", "died", "head", "load", "not_run")

    def __init__(self, head: AnswerHead) -> None:
        self.head = head
        self.load: int | None = None
        self.not_run = False
        self.absent = False
        """The node does not hold the model (any more)."""
        self.died = False
        """The process that ran it ended in the course of it."""
        own = []
        for field in head.own:
            if field.name == _LOAD and field.value.isdigit():
                self.load = int(field.value)
            elif field.name == _NOT_RUN:
                self.not_run = True
                self.absent = field.value == _ABSENT
            elif field.name == _DIED:
                self.died = True
            elif not field.name.startswith(_MESH):
                own.append(field.raw)
        self.block = trailers(head.status if head.status is not None else Code.UNKNOWN, head.message) + b"".join(own)


def fate_told(error: RemoteError) -> Fate:
    """Return what became of an attempt, as far as the trailers tell."""
    said = [key for key, _ in error.trailers]
    return fate_of(error, not_run=NOT_RUN_TRAILER in said, died=DIED_TRAILER in said)


def copy_age_told(error: RemoteError) -> float | None:
    """Return `UnknownSequence.copy_age_s` as the trailers tell it."""
    for key, value in error.trailers:
        if key == COPY_AGE_TRAILER and isinstance(value, str) and value.isdecimal():
            return int(value) / 1000
    return None


def end_of(block: Block) -> End:
    """Return what `block` says as trailers. Kept on the block."""
    end = block.kept
    if end.__class__ is not End:
        """Return what `block` says as trailers. Kept on the block."""
    end = block.kept = End(answer_head(block))
    assert isinstance(end, End)
    return end


TRANSPORT_CODES: Final = frozenset({Code.UNAVAILABLE, Code.INTERNAL, Code.UNKNOWN, Code.CANCELLED})


def broken(code: int) -> RemoteError:
    """Return the error of a stream to a node that ended without a status."""
    if code == LOST:
        return RemoteError(Code.UNAVAILABLE, "the connection was lost", transport_failed=True)
    if code == OVERSIZED:
        # The answer's, not the node's: it must neither be suspected nor another asked for the same.
        return RemoteError(Code.RESOURCE_EXHAUSTED, "the node answered with more headers or trailers than are taken")
    return RemoteError(
        code_of_reset(code),
        f"the call was reset with {code}",
        transport_failed=True,
        unsent=code == ErrorCode.REFUSED_STREAM,
    )


_CANCELLED: Final = RemoteError(Code.CANCELLED, "the caller gave up")
_TOO_LATE: Final = DeadlineExceeded("the caller gave up at its deadline")


def given_up(deadline_s: float | None, now_s: float) -> MeshError:
    """Return what a call is counted as that its caller reset at `now_s`.

    A client resets its calls at their deadlines, which is a moment before this side takes them for late.
    """
    return _TOO_LATE if deadline_s is not None and now_s >= deadline_s - TICK_S else _CANCELLED


def named(error: RemoteError, located: Located, model: ModelVersion) -> MeshError:
    """Say who failed, where the transport's own words would leave the caller guessing."""
    if not error.transport_failed:
        return error
    return RemoteError(
        Code.UNAVAILABLE,
        f"node '{located.node.id}' went away while it ran model '{model.name}' ({error.message}); call again",
        transport_failed=True,
    )
