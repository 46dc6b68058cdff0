"""The hot path of the router: peek, route, admit, pick, forward.

Tensors are never decoded here: the message leaves as the bytes it came in. Waiting for a cold model is `cold`'s,
deciding is `mesh.core.traffic`'s, and carrying is the channel's.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from functools import partial
from typing import Self

from mesh.api.session import with_parameters
from mesh.core.errors import DeadlineExceeded, RemoteError, Unimplemented
from mesh.core.forwarding import NOTHING, Pattern, forwarded
from mesh.core.traffic.balance import Balancer
from mesh.core.traffic.retry import Tries
from mesh.core.types import ModelVersion, NodeId
from mesh.core.view import Host, Located
from mesh.registry.mirror import Mirror
from mesh.router import passing
from mesh.router.channels import Channels
from mesh.router.cold import Cold, patience_s
from mesh.router.ends import fate_told, named
from mesh.router.live import said_of
from mesh.router.observe import Observed
from mesh.router.passing import named_in
from mesh.router.pipelines import Pipelines
from mesh.router.retries import Retries
from mesh.router.sessions import Sessions
from mesh.router.stalled import Stalled
from mesh.router.target import Target, Targets
from mesh.telemetry.metrics import RouterMetrics
from mesh.telemetry.tracing import Tracing
from mesh.wire.peek import Peeked, peek
from mesh.wire.transport import (
    ABSENT,
    LOAD_TRAILER,
    MODEL_INFER,
    NOT_RUN_TRAILER,
    Call,
    Leaves,
    Metadata,
    Reply,
)

MARGIN_S = 0.002
"""Taken off the caller's deadline for the node, so that the node's own answer about it still gets through."""

STALE_VIEW_S = 0.1
"""How long a request waits for a newer view after every copy in this one said that it does not hold the model."""


class Dispatch:
    """Carries requests to copies. One per router process."""

    def __init__(
        self,
        *,
        mirror: Mirror,
        balancer: Balancer,
        channels: Channels,
        cold: Cold,
        metrics: RouterMetrics,
        tracing: Tracing,
        cold_wait_s: float,
        max_attempts: int,
        session_bytes: int,
        forwards: Pattern | None = None,
    ) -> None:
        self._mirror = mirror
        self.balancer = balancer
        self.channels = channels
        self._cold = cold
        self.metrics = metrics
        self.tracing = tracing
        self.cold_wait_s = cold_wait_s
        self.forwards = forwards
        """The headers of gRPC calls that models read as parameters."""
        self.targets = Targets(mirror)
        self.pipelines = Pipelines(mirror, self)
        self.sessions = Sessions(mirror, self, max_bytes=session_bytes)
        self.retries = Retries(mirror, max_attempts)
        self.stalled = Stalled(mirror, balancer, self.retries)

    async def infer(self, call: Call, message: bytes, tries: Tries | None = None) -> bytes:
        """Answer one ModelInfer. Raises a `MeshError`; cancelling it cancels the call at the node.

        `tries` is what was tried for it already.
        """
        with self.observe(call, tries=tries) as seen:
            return await self.answer(call, message, peek(message), seen)

    def observe(self, call: Call, *, traced: bool | None = None, tries: Tries | None = None) -> Observed:
        """Return the context that counts and traces one request of `call`; `traced` None: decided here."""
        return Observed(self.metrics, self.tracing, call, traced=traced, tries=tries)

    async def answer(self, call: Call, message: bytes, request: Peeked, seen: Observed) -> bytes:
        """Answer one request whose fields were read already, on as many copies as it safely takes."""
        target = self.target(call, request)
        model = seen.model = target.model
        if model.decoupled:
            raise Unimplemented("ModelInfer RPC doesn't support models with decoupled transaction policy")
        if target.pipeline is not None:
            return await self.pipelines.answer(call, message, target, seen)
        said = said_of(request)
        if model.sequence is not None and said.id:
            # In itself, as it may be run again in the course of another call.
            step = with_parameters(message, self.forwarded(call))
            return await self.sessions.answer(call, step, request, target)
        metadata = self.metadata(call, model, seen)
        while True:
            located = await self.pick(call, model, said.name, seen.tries.tried)
            seen.asked(located.node.id)
            leaves = None if said.name else partial(self._leaves, located.node, model, seen.tries)
            try:
                reply = await self.send(call, located, message, metadata, leaves=leaves)
            except RemoteError as error:
                self.refuse_or_retry(error, located, model, seen, in_sequence=bool(said.name))
            else:
                return reply.message

    def refuse_or_retry(
        self, error: RemoteError, located: Located, model: ModelVersion, seen: Observed, *, in_sequence: bool
    ) -> None:
        """Raise what the caller gets for `error`, or return when another copy may be asked."""
        self.metrics.attempt_failed(located.node.id, error.status.name)
        # A copy that went while the request was on its way is nobody's failure: it does not count as an attempt.
        free = (NOT_RUN_TRAILER, ABSENT) in error.trailers and seen.lasted_s() < self.cold_wait_s
        seen.attempts -= free
        node, fate = located.node.id, fate_told(error)
        if not self.retries.may_follow(seen.tries, node, fate, model, in_sequence=in_sequence, free=free):
            raise named(error, located, model)  # Not `from error`: it may be the same, and a circle.

    def target(self, call: Call, request: Peeked) -> Target:
        """Return what answers. Raises as `resolve` does, and `InvalidRequest` for headers that it may not have."""
        self.forwarded(call)
        return self.targets.find(named_in(call, request), request.model_version)

    def forwarded(self, call: Call) -> Mapping[str, str]:
        """Return the headers of a call that models read as parameters. Raises `InvalidRequest` for a reserved one."""
        if call.forwarded is None:
            call.forwarded = forwarded(self.forwards, call.metadata)
        return call.forwarded

    async def pick(self, call: Call, model: ModelVersion, sequence: str, tried: list[NodeId]) -> Located:
        """Return the copy to ask, waiting for one within the caller's deadline when none serves."""
        key = (model.name, model.version)
        while True:
            now_s = time.monotonic()
            candidates = self._mirror.view.serving.get(key, ())
            located = (
                self.balancer.pin(candidates, sequence, tried=tried, now_s=now_s)
                if sequence
                else self.balancer.pick(candidates, tried=tried, now_s=now_s, u=random.random())  # noqa: S311
            )
            if located is not None:
                return located
            if tried:
                # All were asked once. What they answered may be news that the view does not have yet.
                await self._newer_view()
                tried.clear()
                continue
            deadline_s, waited_s = patience_s(call.deadline_s, now_s, self.cold_wait_s), time.monotonic()
            outcome = "failed"
            try:
                await self._cold.wait(model, deadline_s)
                outcome = "ready"
            finally:
                self.metrics.cold_wait(model.name, time.monotonic() - waited_s, outcome)

    def metadata(self, call: Call, model: ModelVersion, seen: Observed | None, *, forwards: bool = True) -> Metadata:
        """Return what goes to the node: the caller's own metadata, what was resolved, and the trace.

        Without `forwards` the request itself says what models read of its headers.
        """
        return passing.metadata(call, model, seen, self.forwarded(call) if forwards else NOTHING)

    def _leaves(self, node: Host, model: ModelVersion, tries: Tries, long: bool) -> bool:
        return self.stalled.leaves(node, model, tries, long=long)

    async def send(
        self, call: Call, located: Located, message: bytes, metadata: Metadata, *, leaves: Leaves | None = None
    ) -> Reply:
        """Send one request to a copy. Raises `RemoteError`."""
        with self.outstanding(located) as asked:
            channel = self.channels.to(located.node.address)
            reply = await channel.unary(MODEL_INFER, message, metadata=metadata, timeout_s=left_s(call), leaves=leaves)
            asked.trailers = reply.trailers
            return reply

    def outstanding(self, located: Located) -> _Asked:
        """Return the context that counts a request at its node and learns from how it ends."""
        return _Asked(self.balancer, located.node)

    async def _newer_view(self) -> None:
        try:
            async with asyncio.timeout(STALE_VIEW_S):
                await self._mirror.next(self._mirror.view)
        except TimeoutError:
            return

    def __repr__(self) -> str:
        """Show the balancer."""
        return f"<Dispatch {self.balancer!r}>"


class _Asked:
    """A context around one request at one node."""

    __slots__ = ("_balancer", "_node", "trailers")

    def __init__(self, balancer: Balancer, node: Host) -> None:
        self._balancer = balancer
        self._node = node
        self.trailers: Metadata | None = None

    def __enter__(self) -> Self:
        self._balancer.picked(self._node.id)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._balancer.answered(self._node)
        elif isinstance(error, RemoteError):
            self.trailers = error.trailers
            if error.transport_failed:
                self._balancer.failed(self._node, time.monotonic())
        self._balancer.done(self._node.id, _reported(self.trailers or ()))


def left_s(call: Call) -> float | None:
    """Return the seconds that the node may take; None without a deadline. Raises `DeadlineExceeded`."""
    if call.deadline_s is None:
        return None
    left = call.deadline_s - time.monotonic() - MARGIN_S
    if left <= 0:
        raise DeadlineExceeded("the deadline passed before a node could be asked")
    return left


def _reported(trailers: Metadata) -> int | None:
    for key, value in trailers:
        if key == LOAD_TRAILER and isinstance(value, str) and value.isdecimal():
            return int(value)
    return None
