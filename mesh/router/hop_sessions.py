"""The sessions of one caller's stream, on streams of their own to the nodes: each step goes on in the caller's bytes.

What is sent when, `sessions` says; this file is its `Carrier` on the wire.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mesh.api.session import cut_state, tell_stream, with_parameters, with_state
from mesh.api.stream import ERROR_TAG, INFER_RESPONSE_TAG, read_error, varint
from mesh.core.errors import Code, MeshError, RemoteError, code_of
from mesh.core.sessions.session import Entry, Send
from mesh.core.traffic.retry import Fate, fate_of
from mesh.core.types import NodeId
from mesh.core.view import Located, VersionKey
from mesh.router.hop_up import Turn, Up, lost_turns
from mesh.router.live import Live, Said, Step
from mesh.router.sessions import Sessions
from mesh.router.target import Target, passed
from mesh.wire.grpc_framing import PREFIX_BYTES, framed, pack_prefix
from mesh.wire.header_cache import encode
from mesh.wire.peek import peek
from mesh.wire.transport import CALLER_HEADER, Call

if TYPE_CHECKING:
    from mesh.router.hop_stream import HopStream

_ERROR = bytes((ERROR_TAG,))


class StreamStep(Turn):
    """A `sessions.Step`: a message of the caller's stream, and its turn there."""

    __slots__ = ("_carrier", "changes", "entry", "live", "waits", "wants_state")

    def __init__(self, carrier: SessionCarrier, message: bytes, started_s: float, said: Said) -> None:
        super().__init__(message, started_s)
        self._carrier = carrier
        self.wants_state = said.wants_state
        self.changes = said.resumes is not None or bool(carrier.forwarded)
        """Whether what is sent may not be the caller's message: without a state of the client's, or with headers."""
        self.waits = True
        """Neither answered nor given up."""
        self.live: Live | None = None
        self.entry: Entry[Step] | None = None

    def answer(self, response: bytes, state: bytes) -> None:
        """Take the stream message, framed."""
        if self.wants_state and state:
            response = framed(tell_stream(response[PREFIX_BYTES:], state))
        self._carrier.stepped(self, response)

    def fail(self, error: MeshError) -> None:
        """Answer what went wrong."""
        self._carrier.step_failed(self, error)


Sent = tuple[Live, Send[Step]]
"""A step on its way to a node: what `Up` keeps until it is answered."""


class SessionCarrier:
    """A `sessions.Carrier`, and the `Owner` of its streams to nodes."""

    pipelined = True

    def __init__(self, hop: HopStream, sessions: Sessions) -> None:
        self._hop = hop
        self._sessions = sessions
        self.forwarded = passed(hop.head, sessions.dispatch.forwards).forwarded
        """Headers that models read as parameters. Each step has them in itself: it may be run again later, in the
        course of a call with others."""
        self._ups: dict[tuple[NodeId, str, VersionKey], Up] = {}
        self._all_keep = True
        self._flushing = False
        self._loop = asyncio.get_running_loop()
        self._says = encode(CALLER_HEADER.encode(), hop.peer.encode())
        self.balancer = hop.balancer
        """What counts the steps at each node."""

    @property
    def call(self) -> Call:
        """The caller's stream."""
        return self._hop.as_call()

    def begin(self, step: StreamStep, version: str, said: Said, target: Target) -> None:
        """Take a step; `version` is what its request names."""
        if not step.wants_state:
            self._all_keep = False
        try:
            message = with_parameters(step.message[PREFIX_BYTES:], self.forwarded)
            begun = self._sessions.begin(target, said, version, message, step, self)
            if begun is not None:
                step.live, step.entry = begun
        except MeshError as error:
            step.fail(error)

    def stepped(self, step: StreamStep, response: bytes) -> None:
        """Take the answer to a step, framed; the caller has it at the end of this turn of the loop."""
        if step.waits:
            step.waits = False
            step.reply = response
            self._hop.count(step, Code.OK)
            if not self._flushing:
                self._flush_soon()

    def step_failed(self, step: StreamStep, error: MeshError) -> None:
        """Take what went wrong with a step."""
        if step.waits:
            step.waits = False
            self._hop.count(step, code_of(error))
            self._hop.failed(step, error, peek(step.message[PREFIX_BYTES:]).id)

    def carry(self, live: Live, located: Located, send: Send[Step]) -> bool:
        """Send a step on the stream to its node; False when there is no connection at once."""
        if self._hop.over:
            return False
        way = live.way
        if way is not None and way[0] is located and way[1].hop is self and not way[1].over:
            up = way[1]
        else:
            found = self._up(live, located)
            if found is None:
                return False
            up = found
            live.way = located, up
        up.waiting.append((live, send))
        entry = send.entry
        if send.restore is None and entry.step.__class__ is StreamStep and not entry.step.changes:
            up.outbox.append(entry.step.message)
        else:
            up.outbox.append(framed(with_state(entry.message, send.restore)))
        self.balancer.picked(located.node.id)
        if not self._flushing:
            self._flush_soon()
        return True

    def _up(self, live: Live, located: Located) -> Up | None:
        key = (located.node.id, located.node.incarnation, live.version)
        up = self._ups.get(key)
        if up is None:
            up = self._hop.open(self, located, live.target, time.monotonic(), self._says)
            if up is not None:
                self._ups[key] = up
        return up

    def _flush_soon(self) -> None:
        """Send what there is for nodes and caller, together at the end of this turn of the loop."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        for up in list(self._ups.values()):
            if up.outbox:
                up.flush()
        if not self._hop.over:
            self._hop.tell()

    @property
    def resumable(self) -> bool:
        """Whether every step was of a client that keeps the states, and goes on at another router by itself."""
        return self._all_keep

    def half_close(self) -> None:
        """Say that no more steps follow."""
        for up in self._ups.values():
            if up.outbox:
                up.flush()
            up.half_close()
        self._ups.clear()

    def stop(self, turns: Iterable[Turn]) -> None:
        """Give up the steps of these turns: the caller is gone."""
        for up in self._ups.values():
            up.stop()
        self._ups.clear()
        waiting = [turn for turn in turns if isinstance(turn, StreamStep) and turn.waits]
        for step in waiting:
            step.waits = False
            if step.live is not None and step.entry is not None:
                self._sessions.left(step.live, step.entry)

    def answered(self, turn: Sent, message: bytes) -> None:
        """Take a node's answer, with its prefix."""
        live, send = turn
        if message[PREFIX_BYTES : PREFIX_BYTES + 1] == _ERROR:
            failure = read_error(message[PREFIX_BYTES:])
            if failure is not None:
                fate = fate_of(failure.error, not_run=failure.not_run, died=failure.died)
                age_s = failure.copy_age_s
                self._sessions.failed(live, send, failure.error, absent=failure.absent, fate=fate, copy_age_s=age_s)
                return
        cut = cut_state(message, PREFIX_BYTES)
        if cut is None:
            self._sessions.answered(live, send, message, b"")
            return
        state, rest = cut
        length = varint(len(rest))
        prefix = pack_prefix(0, 1 + len(length) + len(rest))
        self._sessions.answered(live, send, b"".join((prefix, INFER_RESPONSE_TAG, length, rest)), state)

    def tell(self) -> None:
        """Let the caller have what is answered, soon."""
        self._flush_soon()

    def stalled(self, up: Up, *, long: bool) -> bool:
        """Let the sessions go on elsewhere that can, each by itself; what is answered late is for nobody."""
        del long
        gone = RemoteError(Code.UNAVAILABLE, "it does not answer", transport_failed=True)
        for live, send in list(up.waiting):
            if self._sessions.may_move(live, send):
                self._sessions.failed(live, send, gone, fate=Fate.DIED)
        return False

    def lost(self, up: Up, error: RemoteError) -> None:
        """Hear that the stream to a node ended: its sessions go on elsewhere."""
        self._ups = {key: each for key, each in self._ups.items() if each is not up}
        turns: list[Sent] = lost_turns(self._sessions.dispatch, up, error)
        gone = RemoteError(Code.UNAVAILABLE, error.message, transport_failed=True)
        for live, send in turns:
            self._sessions.failed(live, send, gone, fate=fate_of(error))
