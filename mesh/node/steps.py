"""The steps of one request that run on this node: what to run next, run on the models' own queues, without waiting.

`graph` uses it for whole pipelines, `parts` for a node's share of one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from mesh.api.carried import Carried
from mesh.api.tensors import TensorError, decode_raw
from mesh.core.errors import InvalidRequest, MeshError, code_of
from mesh.core.pipeline.run import NEVER_BETTER, Action, Call, End, Fail, Finish, Graph, Run, Share, compare
from mesh.core.pipeline.spec import Condition, Literal
from mesh.node.asked import Asked
from mesh.node.attempt import Attempt, Held, carried
from mesh.node.observe import Observed
from mesh.node.served import Served
from mesh.telemetry.statistics import Statistics, StepStatistics

See = Callable[[Asked, Served, str], Observed]
"""Returns what counts and traces one request of a copy, a step of this name."""
Copies = Mapping[tuple[str, str], Served]
"""By name and version as steps give them."""


class Watch(Protocol):
    """What counts and traces steps."""

    @property
    def see(self) -> See:
        """For the requests of a copy."""

    @property
    def steps(self) -> StepStatistics:
        """For the steps."""


class Steps:
    """Runs the steps of one request. Those that still run when it is over are withdrawn.

    `finished`, `broke` and `tell` are for the class below to say what follows from them.
    """

    def __init__(
        self, watch: Watch, graph: Graph, copies: Copies, asked: Asked, parameters: Mapping[str, Literal]
    ) -> None:
        self.asked = asked
        self.see: See = watch.see
        self._steps = watch.steps
        self.graph = graph
        self.copies = tuple(dict.fromkeys(copies.values()))
        """The copies that it may ask. They are held until it is over."""
        timeout_us = parameters.get("timeout")
        self.queue_timeout_s = timeout_us / 1e6 if isinstance(timeout_us, int) and timeout_us > 0 else None
        self._asked_as = copies
        self._parameters = parameters
        self._run: Run[Held]
        self._attempts: dict[str, Attempt] = {}
        self._todo: deque[Action[Held]] = deque()
        self._busy = False
        self.over = False
        for each in self.copies:
            each.hold()

    def start(self, given: Mapping[str, Held], share: Share | None = None) -> None:
        """Start the steps that wait for nothing else."""
        self._run = Run(self.graph, given, _holds, share)
        self.take(self._run.begin())

    def heard(self, step: str, outputs: Mapping[str, Carried] | None) -> None:
        """Take how a step ended elsewhere. Raises `InvalidRequest` for what nobody here waits for."""
        self.take(self._run.heard(step, None if outputs is None else held(outputs)))

    def withdraw(self, error: BaseException) -> None:
        """Leave: nobody waits for it any more, and `error` is what is counted of what still runs."""
        if not self.over:
            self.over = True
            for each in self.copies:
                each.release()
        for attempt in list(self._attempts.values()):
            attempt.stop(error)
        self._attempts.clear()

    def statistics(self, step: str) -> Statistics:
        """Return the counters of a step."""
        return self._steps.of(self.graph.pipeline.name, step)

    def ended(self, step: str, outputs: dict[str, Held]) -> None:
        """Hear that a step answered."""
        if not self.over:
            del self._attempts[step]
            self.take(self._run.done(step, outputs))

    def failed(self, step: str, error: Exception) -> None:
        """Hear that a step failed."""
        if not self.over:
            del self._attempts[step]
            late = self.asked.deadline_s is not None and time.monotonic() >= self.asked.deadline_s
            # What ended a process is not run again in the next one: the router may ask another node, once.
            died = isinstance(error, MeshError) and error.died
            again = code_of(error) not in NEVER_BETTER and not died and not late
            self.take(self._run.failed(step, error, again=again))

    def take(self, actions: Iterable[Action[Held]]) -> None:
        """Do what is to be done; what that leads to at once is done here too, and not deeper in the stack."""
        self._todo.extend(actions)
        if self._busy:
            return
        self._busy = True
        try:
            while self._todo and not self.over:
                match self._todo.popleft():
                    case Call() as call:
                        model = self._asked_as[call.model, call.version]
                        attempt = self._attempts[call.step.name] = Attempt(self, call, model, self._parameters)
                        attempt.begin()
                    case End(step, outputs):
                        self.tell(step, outputs)
                    case Finish(outputs):
                        self.withdraw(asyncio.CancelledError())
                        self.finished(outputs)
                    case Fail(step, error):
                        self.withdraw(asyncio.CancelledError())
                        self.broke(step, error)
        finally:
            self._busy = False

    def tell(self, step: str, outputs: Mapping[str, Held] | None) -> None:
        """Tell other places how a step ended."""
        raise NotImplementedError

    def finished(self, outputs: Mapping[str, Held]) -> None:
        """Hear that all is done here."""
        raise NotImplementedError

    def broke(self, step: str, error: Exception) -> None:
        """Hear that the request failed with a step."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Show the steps that run."""
        return f"<{type(self).__name__} {self.graph!r} running={sorted(self._attempts)} over={self.over}>"


def held(tensors: Mapping[str, Carried]) -> dict[str, Held]:
    """Return tensors as steps take them. Raises `InvalidRequest` for data that cannot be read."""
    try:
        return {
            name: Held(tensor.dtype, decode_raw(tensor.raw, tensor.dtype, tensor.shape))
            for name, tensor in tensors.items()
        }
    except TensorError as error:
        raise InvalidRequest(error.message) from error


def _holds(when: Condition, tensor: Held) -> bool:
    return compare(when, carried(tensor).item())
