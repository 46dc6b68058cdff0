"""ModelInfer of a pipeline in parts, on the wire and without a task: from frames to notes, and from notes to frames.

Only what is plain goes this way: nodes run every step, all of them agreed to the plan, and nobody traces. Whatever else
comes up, before or after, is begun anew by `pipelines`, which can wait, cut again and tell what went wrong.
"""

from __future__ import annotations

import time

from mesh.api.carried import Carried
from mesh.api.notes import begun
from mesh.api.question import Question, decode, is_long
from mesh.core.errors import Code, MeshError
from mesh.core.pipeline.cut import ROUTER
from mesh.core.pipeline.run import Finish, Run
from mesh.core.traffic.retry import Fate, Tries
from mesh.router.attempt import holds, trace_of
from mesh.router.dispatch import Dispatch
from mesh.router.pipelines import after, asked_of
from mesh.router.spread import Away, Ended, Event
from mesh.router.target import Target, passed
from mesh.wire.connection import Connection
from mesh.wire.server_call import Origin, TaskUnary
from mesh.wire.streams import Stream
from mesh.wire.transport import Call


class PartsUnary(TaskUnary):
    """One request. `TaskUnary` is the other way."""

    __slots__ = (
        "_asked", "_away", "_course", "_dispatch", "_ends", "_lost", "_parts_message", "_started_s", "_target",
        "_tries",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917 - one call of it
        self,
        connection: Connection,
        stream: Stream,
        origin: Origin,
        dispatch: Dispatch,
        target: Target,
        tries: Tries | None,
    ) -> None:
        super().__init__(connection, stream, origin, dispatch.infer)
        self._dispatch = dispatch
        self._target = target
        self._tries = tries
        self._parts_message: bytes = b""
        self._lost: MeshError | None = None
        self._ends = False
        """Whether it ends with `_lost`: too many processes ended while they ran it."""
        self._asked: Question | None = None
        self._away: Away | None = None
        self._course: Run[Carried] | None = None
        self._started_s = time.monotonic()

    def received(self, message: bytes) -> None:
        """Begin at the nodes, or the other way."""
        self._parts_message = message
        try:
            begun_at_nodes = self._begin(message)
        except MeshError:
            begun_at_nodes = False
        if not begun_at_nodes:
            self._otherwise()

    def cancelled(self) -> None:
        """Let the nodes forget it."""
        away, self._away = self._away, None
        if away is not None:
            away.close(answered=False)
        super().cancelled()

    def _begin(self, message: bytes) -> bool:
        """Begin at the nodes; False when that is not plain. Raises `MeshError` for a request that makes no sense."""
        dispatch, pipeline = self._dispatch, self._target.pipeline
        if dispatch.tracing.on or pipeline is None or self._target.candidates:
            return False
        graph = dispatch.pipelines.graph(pipeline)
        plan = dispatch.pipelines.spread.plain(graph)
        if plan is None:
            return False
        request = decode(message)
        if is_long(len(message), request):
            return False
        asked = self._asked = asked_of(request, self._target)
        if asked.parameters or passed(self.head, dispatch.forwards).forwarded:
            return False
        course = self._course = Run(graph, asked.given, holds, plan.shares[ROUTER])
        course.begin()
        away = self._away = dispatch.pipelines.spread.begin(
            plan, asked.given, begun(self.deadline_s, trace_of(self.head.metadata), {})
        )
        away.listen(self._heard)
        return True

    def _heard(self, event: Event) -> None:
        """Take how a step ended, and answer when it was the last that is waited for."""
        away, course, asked = self._away, self._course, self._asked
        if self.over or away is None or course is None or asked is None:
            return
        if not isinstance(event, Ended):
            lost = event.error if event.fate is Fate.DIED else None
            if lost is not None:
                tries = self._tries = self._tries or Tries()
                target = self._target
                again = self._dispatch.retries.may_follow(tries, event.node, event.fate, target.model, target.pipeline)
                self._ends = not again
            self._otherwise(lost)
            return
        try:
            actions = course.heard(event.step, event.outputs)
            if not actions:
                return
            (action,) = actions
            if not isinstance(action, Finish):
                self._otherwise()
                return
            reply = asked.answer(action.outputs).SerializeToString()
        except MeshError:
            self._otherwise()
            return
        self._away = None
        away.close(answered=True)
        model = self._target.model
        total_s = time.monotonic() - self._started_s
        self._dispatch.metrics.request_done(model.name, model.version, Code.OK, total_s, 1)
        self.done(reply, ())

    def _otherwise(self, lost: MeshError | None = None) -> None:
        """Begin the other way, from the start. `lost` is what became of it here, where a node went away."""
        away, self._away = self._away, None
        if away is not None:
            away.close(answered=False)
        self._lost = lost
        super().received(self._parts_message)

    async def answered(self, call: Call, message: bytes) -> bytes:
        """Answer the other way."""
        if self._ends and self._lost is not None:
            with self._dispatch.observe(call, tries=self._tries) as seen:
                seen.model = self._target.model
                raise self._lost
        try:
            return await self._dispatch.infer(call, message, self._tries)
        except MeshError as error:
            raise after(self._lost, error) from error
