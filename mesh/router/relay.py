"""One request of a several-response version: its responses from one copy, and from another when that one goes.

A copy that generates step by step tells the state behind its responses. Another copy goes on from the last one, and
what it makes again is not passed on: the caller sees every response once. Without a state (a generator) another copy is
asked only as long as no response came.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from mesh.api.session import split_request, split_stream, with_state
from mesh.api.stream import read_error
from mesh.core.errors import Code, RemoteError
from mesh.core.traffic.retry import Fate, fate_of
from mesh.core.view import Located
from mesh.router.dispatch import Dispatch, left_s
from mesh.router.ends import named
from mesh.router.live import RESUMES, WANTS_STATE
from mesh.router.observe import Observed
from mesh.wire.peek import Peeked
from mesh.wire.transport import ABSENT, DIED_TRAILER, MODEL_STREAM_INFER, NOT_RUN_TRAILER, Call, Leaves, Metadata


async def relay(
    dispatch: Dispatch, call: Call, message: bytes, request: Peeked, seen: Observed
) -> AsyncGenerator[bytes]:
    """Yield the responses. Raises a `MeshError`; closing it stops the model at its next step."""
    model = seen.model
    assert model is not None
    progress = _Progress(message, request)
    totals = dispatch.sessions.table.totals((model.name, model.version))
    totals.generations += 1
    try:
        async for response in _from_copies(dispatch, call, progress, seen):
            totals.responses += 1
            yield response
    finally:
        totals.generations -= 1


async def _from_copies(dispatch: Dispatch, call: Call, progress: _Progress, seen: Observed) -> AsyncGenerator[bytes]:
    """Yield the responses of one copy after another."""
    model = seen.model
    assert model is not None
    while True:
        located = await dispatch.pick(call, model, progress.sequence, seen.tries.tried)
        seen.asked(located.node.id)
        try:
            metadata = dispatch.metadata(call, model, seen)
            leaves = partial(_leaves, dispatch, located, seen, progress)
            async with aclosing(_responses(dispatch, call, progress.request(), located, metadata, leaves)) as answers:
                async for response in answers:
                    for each in progress.take(response):
                        yield each
        except RemoteError as error:
            _again_or_raise(dispatch, error, located, seen, progress)
        else:
            return


def _again_or_raise(
    dispatch: Dispatch, error: RemoteError, located: Located, seen: Observed, progress: _Progress
) -> None:
    """Raise what the caller gets for `error`, or return when another copy may be asked."""
    model = seen.model
    assert model is not None
    if not progress.responses:
        dispatch.refuse_or_retry(error, located, model, seen, in_sequence=bool(progress.sequence))
        return
    dispatch.metrics.attempt_failed(located.node.id, error.status.name)
    fate = fate_of(error, not_run=progress.not_run, died=progress.died)
    if fate is Fate.ANSWERED:
        raise error
    totals = dispatch.sessions.table.totals((model.name, model.version))
    totals.failovers += 1
    totals.lost += not progress.state
    if not progress.state:
        raise RemoteError(
            Code.UNAVAILABLE,
            f"node '{located.node.id}' went away after {progress.responses} responses ({error.message}); call again",
        )
    if progress.went_on:
        progress.went_on = False
        seen.tries.went_on()
    if not dispatch.retries.may_follow(seen.tries, located.node.id, fate, model):
        raise named(error, located, model)


class _Progress:
    """How far a request came, and what it takes to go on from there."""

    def __init__(self, message: bytes, request: Peeked) -> None:
        self._message, self.state = message, b""
        if request.parameters.get(RESUMES) is True:
            self._message, self.state = split_request(message)
        self.sequence = str(request.parameters.get("sequence_id") or "")
        self._tells = request.parameters.get(WANTS_STATE) is True
        self.responses = 0
        """That the caller has."""
        self.went_on = False
        """Whether a state was told since a copy failed."""
        self.not_run = False
        self.died = False
        self._since = 0
        """Of them, behind the state."""
        self._again = 0
        """How many of those are still to be made again."""

    def request(self) -> bytes:
        """Return what the next copy is asked."""
        self._again, self.not_run, self.died = self._since, False, False
        return with_state(self._message, self.state)

    def take(self, message: bytes) -> list[bytes]:
        """Take a node's message; return what the caller gets. Raises `RemoteError` when it tells of a failure."""
        failure = read_error(message)
        if failure is not None:
            self.not_run, self.died = failure.not_run, failure.died
            said = [(NOT_RUN_TRAILER, ABSENT if failure.absent else "1")] if failure.not_run else []
            said += [(DIED_TRAILER, "1")] if failure.died else []
            raise RemoteError(failure.error.status, failure.error.message, trailers=tuple(said))
        response, state = split_stream(message)
        shown: list[bytes] = []
        if self._again:
            self._again -= 1
        else:
            self._since += 1
            self.responses += 1
            shown = [message if self._tells else response]
        if state:
            self.state, self.went_on, self._since = state, True, self._again
        return shown


def _leaves(
    dispatch: Dispatch,
    located: Located,
    seen: Observed,
    progress: _Progress,
    long: bool,
) -> bool:
    assert seen.model is not None
    movable = bool(progress.state) or not (progress.responses or progress.sequence)
    return dispatch.stalled.leaves(located.node, seen.model, seen.tries, long=long, movable=movable)


async def _responses(  # noqa: PLR0917 - one call of it
    dispatch: Dispatch, call: Call, message: bytes, located: Located, metadata: Metadata, leaves: Leaves
) -> AsyncGenerator[bytes]:
    with dispatch.outstanding(located):
        channel = dispatch.channels.to(located.node.address)
        upstream = channel.stream(MODEL_STREAM_INFER, metadata=metadata, timeout_s=left_s(call), leaves=leaves)
        try:
            await upstream.send(message)
            await upstream.half_close()
            while (response := await upstream.receive()) is not None:
                yield response
        finally:
            upstream.cancel()
