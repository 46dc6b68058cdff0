"""One session as the router sees it, who its steps come from, and what carries them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from mesh.api.messages import node_control
from mesh.api.session import with_state
from mesh.core.errors import MeshError, SessionLost, StateLost
from mesh.core.sessions.session import Place, Send, Session
from mesh.core.types import ModelVersion, NodeId
from mesh.core.view import Located, VersionKey
from mesh.router.retries import Retries
from mesh.router.target import Target
from mesh.wire.peek import Peeked
from mesh.wire.transport import Call

if TYPE_CHECKING:
    from mesh.router.hop_up import Up
    from mesh.router.session_trace import SessionTrace

WANTS_STATE: Final = "mesh_tokens"
"""Request parameter: answer with the state too, so that the client can go on elsewhere (`session_state`)."""
FORGETS: Final = "mesh_forget"
"""Request parameter: end the sequence without running a step."""
RESUMES: Final = "mesh_resume"
"""Request parameter: begin this step from the request's `session_state`."""


class Step(Protocol):
    """Who hears how a step ended, once."""

    def answer(self, response: bytes, state: bytes) -> None:
        """Take the answer without the state, and the state, if it was told.

        A single call takes a serialized ModelInferResponse, a step of a stream the stream message with its prefix.
        """

    def fail(self, error: MeshError) -> None:
        """Take what went wrong."""


class Carrier(Protocol):
    """A caller's stream, or single call, that steps come on and are sent on."""

    pipelined: bool
    """Whether it is a stream, which keeps several steps in order; its steps are answered with stream messages."""

    @property
    def call(self) -> Call:
        """Whose deadline and metadata count."""

    def carry(self, live: Live, located: Located, send: Send[Step]) -> bool:
        """Send a step at once and give what comes back to `Sessions`; False when it cannot."""


class Said:
    """What a request's parameters say of its sequence."""

    __slots__ = ("end", "forgets", "id", "name", "resumes", "start", "wants_state")

    def __init__(self, request: Peeked) -> None:
        parameters = request.parameters
        id_ = parameters.get("sequence_id", 0)
        self.name = str(id_ or "")
        """Of whatever type it is; empty for a request of no sequence."""
        self.id: int | str = id_ if isinstance(id_, int | str) and not isinstance(id_, bool) else 0
        """0 or empty when it is of none, or none that makes sense."""
        self.start = parameters.get("sequence_start") is True
        self.end = parameters.get("sequence_end") is True
        self.wants_state = parameters.get(WANTS_STATE) is True
        self.resumes: bool | None = parameters.get(RESUMES) is True if RESUMES in parameters else None
        """None: not a word of it, and no state in the message."""
        self.forgets = parameters.get(FORGETS) is True


_NOTHING: Final = Said(Peeked("", "", "", {}))


def said_of(request: Peeked) -> Said:
    """Return what a request says of its sequence, which is read once."""
    if "sequence_id" not in request.parameters:
        return _NOTHING
    said = request.notes
    if not isinstance(said, Said):
        said = request.notes = Said(request)
    return said


Key = tuple[str, str, int | str]


def take_request(key: Key) -> bytes:
    """Return what asks a node to give a sequence away."""
    name, version, id_ = key
    request = node_control.TakeSequenceRequest(model=name, version=version)
    if isinstance(id_, str):
        request.text_id = id_
    else:
        request.number_id = id_
    return request.SerializeToString()


@dataclass(slots=True)
class Totals:
    """What was counted of a version's sessions, those that are over included."""

    steps: int = 0
    failovers: int = 0
    lost: int = 0
    """Whose state could not be brought to another node."""
    generations: int = 0
    """Requests of generations that go on now."""
    responses: int = 0
    """That generations gave."""


@dataclass(slots=True, eq=False)
class Keeping:
    """Where a snapshot is kept that the router has, or had, no room for."""

    place: Place
    key: int
    snapshot: bytes | None = None
    """What is kept there, while the router has it too."""


@dataclass(slots=True, eq=False)
class Live:
    """One session of this router."""

    key: Key
    target: Target
    core: Session[Step]
    last_s: float
    idle_s: float = 0.0
    """Of its model: a copy forgets it when nobody has asked it for so long."""
    answered_s: float | None = None
    """When its present place answered last; None: it has not yet."""
    located: Located | None = None
    serving: tuple[Located, ...] | None = None
    """The copies among which its own was found, when that was looked at last."""
    tried: list[NodeId] = field(default_factory=list)
    """Nodes that did not know it, when it was begun elsewhere."""
    alone: bool = False
    """Whether a step is on its way as a single call: no other goes before it is answered."""
    busy: bool = False
    """Whether a place or its state is being waited for."""
    totals: Totals = field(default_factory=Totals)
    """Those of its version."""
    trace: SessionTrace | None = None
    untraced: bool = False
    """Whether it was decided that it has no trace."""
    way: tuple[Located, Up] | None = None
    """The stream that its last step went on; see `hop_sessions`."""
    counted: int = 0
    """Bytes of it that are in the table's sum."""
    spilling: bool = False
    """Whether its snapshot is on its way to another node."""
    kept: Keeping | None = None
    """Where its snapshot is, while `core.away`; or was, and still is, when it came back."""

    @property
    def model(self) -> ModelVersion:
        """The version that the session is of."""
        return self.target.model

    @property
    def version(self) -> VersionKey:
        """Its key."""
        return self.model.name, self.model.version

    def failed_over(self) -> None:
        """Count that its node went away."""
        self.totals.failovers += 1
        if self.trace is not None and self.located is not None:
            self.trace.failed_over(self.located.node.id)

    def is_idle(self, now_s: float) -> bool:
        """Tell whether nobody has asked it for longer than a copy keeps it, so that it is no more."""
        if now_s - max(self.last_s, self.answered_s or 0.0) <= self.idle_s:
            return False
        return all(each.step is None for each in self.core.entries)

    def ended_there(self, copy_age_s: float | None) -> bool:
        """Hear that its place does not know it; return whether it was ended there, and drop what is kept of it then.

        So it was if the copy is the one that answered last: another router's END, or `idle_s`. `copy_age_s` is how
        long that copy has been there, a duration, as clocks of two machines cannot be compared.
        """
        answered_s = self.answered_s
        if copy_age_s is None or answered_s is None or time.monotonic() - answered_s > copy_age_s:
            return False
        self.core.ended_there()
        return True

    def ended(self, retries: Retries) -> bool:
        """Hear that the process that it was with ended; tell whether a step of it must not be run again.

        One death is enough when the model is suspect. The callers of such steps hear so. A client that keeps states
        itself must not go on with them either.
        """
        fatal = self.core.ended(retries.most_deaths(self.model))
        for each in fatal:
            if each.step is not None:
                told = f"a step of sequence {self.key[2]} of model '{self.model.name}' is not run again"
                each.step.fail(SessionLost(f"{told}: {each.deaths} processes ended in the course of it; begin it anew"))
        if fatal:
            retries.beware(self.model)
        return bool(fatal)

    def lost(self, why: str = "") -> SessionLost:
        """Return what its caller hears when its state is gone; one that keeps states itself may go on."""
        kind: type[SessionLost] = StateLost
        said = f": {why}" if why else ""
        if not self.core.replayable:
            kind, said = SessionLost, f"{said}, and the model's steps must not run twice"
        return kind(f"the state of sequence {self.key[2]} of model '{self.model.name}' is lost{said}; begin it anew")


class Single:
    """A `Carrier` and `Step` of one single call."""

    pipelined = False

    def __init__(self, call: Call, *, wants_state: bool) -> None:
        self._call = call
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._wants_state = wants_state

    @property
    def call(self) -> Call:
        """Itself."""
        return self._call

    def carry(self, live: Live, located: Located, send: Send[Step]) -> bool:
        """Leave it to a call."""
        del live, located, send
        return False

    def answer(self, response: bytes, state: bytes) -> None:
        """Answer."""
        if not self.future.done():
            self.future.set_result(with_state(response, state) if self._wants_state else response)

    def fail(self, error: MeshError) -> None:
        """Answer what went wrong."""
        if not self.future.done():
            self.future.set_exception(error)
