"""One worker process with one instance of a model: started, loaded, asked, ended.

It answers one run at a time; responses of a several-response model come in between. What it ended of is one sentence,
which everybody who waits is told, and `over` says whose fault that was.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mesh.core.errors import LoadFailed, MeshError, ModelFailed, WorkerDied
from mesh.core.types import ModelVersion
from mesh.node.workers.inside.port import HeldText
from mesh.node.workers.inside.values import BadValue
from mesh.node.workers.line import NodeLine
from mesh.node.workers.printed import Printed
from mesh.node.workers.raised import Raised
from mesh.node.workers.template import LOST, Spawned, Template

GONE_S: Final = 2.0
"""How long a process may live whose socket is closed."""


@dataclass(frozen=True, slots=True)
class Over:
    """How a worker ended."""

    why: str
    """Such as "was ended by SIGSEGV"."""
    guilty: bool
    """Whether the model did it: not when it was closed, killed from outside while it did nothing, or with the node."""


@dataclass(slots=True, eq=False)
class Asked:
    """A run or a stream that a worker is at."""

    ended: Callable[[list[Any] | None, MeshError | None], None]
    """Hears, once, the answer or what went wrong. `stream`: the responses before that too."""
    waited: Callable[[], bool]
    """Tells whether somebody still waits for it."""
    began_s: float
    """When it began, or its last response came."""
    request_id: str
    left: int = 1
    """Responses of a stream that may be made before who takes them has to say more; at 0 the model is waited for by
    nobody, and its time stands."""
    kind: str = "run"
    """What it was asked: "run", "turns" or "stream"."""
    alone_s: float = 0.0
    """Since when nobody waits; 0: somebody did when it was looked at."""


class Worker:
    """A process. `over` is set once it is gone; nothing that was asked stays unanswered then."""

    def __init__(self, spawned: Spawned, model: ModelVersion, template: Template, raised: Raised) -> None:
        self._template = template
        self._model = model
        self._raised = raised
        self.pid = spawned.pid
        self.shared_bytes = spawned.shared_bytes
        self.over: Over | None = None
        self.on_over: Callable[[Worker], None] = lambda _: None
        self._gone = asyncio.Event()
        self._asked: dict[int, Asked] = {}
        self._serial = itertools.count(1)
        self._killed_for = ""
        self._close_raised = ""
        self._closing = False
        self._loading: asyncio.Future[dict[str, Any]] | None = None
        self._line = NodeLine(spawned.line, take=self._take, broken=self._broken)
        self._printed = [Printed(spawned.out, model, "stdout"), Printed(spawned.err, model, "stderr")]
        template.watch(self.pid, self._exited)

    # -- its life ------------------------------------------------------------------------------------------------

    async def load(self, plan: dict[str, Any], within_s: float) -> dict[str, Any]:
        """Load the model; return what the worker found out about it.

        Raises `LoadFailed` for what the model raised, and `WorkerDied` when the load ended the process, by itself or
        because it took longer than `within_s`. Ends the process when it raises, cancelled too.
        """
        self._loading = asyncio.get_running_loop().create_future()
        try:
            self._line.send(["load", plan])
            async with asyncio.timeout(within_s):
                return await self._loading
        except TimeoutError:
            text = f"failed to load '{self._model.name}', its load did not end within {within_s:g} s (max_load_s)"
            self.kill("its load did not end in time")
            raise WorkerDied(text) from None
        except BaseException:
            self.kill()
            raise
        finally:
            self._loading = None

    def kill(self, why: str = "") -> None:
        """End the process now. `why` is a sentence about what it did; without one it was not wanted any more."""
        if self.over is None:
            self._killed_for = self._killed_for or why
            self._closing = self._closing or not why
            self._template.kill(self.pid)

    async def close(self, within_s: float) -> str:
        """Let the model close, within that time, and end the process; return what its close raised, or empty."""
        if self.over is None:
            self._closing = True
            self._line.send(["close", 0])
            try:
                async with asyncio.timeout(within_s):
                    await self._gone.wait()
            except TimeoutError:
                self._close_raised = self._close_raised or f"it did not end within {within_s:g} s"
                self.kill()
                await self._gone.wait()
            finally:
                self.kill()
        return self._close_raised

    # -- what it is asked ----------------------------------------------------------------------------------------

    @property
    def runs(self) -> int:
        """Runs and streams that it is at."""
        return len(self._asked)

    def run(self, kind: str, *parts: Any, asked: Asked) -> int:
        """Ask; `asked` hears the answer, never from within this call. Raises `ModelFailed` for what cannot be sent."""
        number = next(self._serial)
        self._asked[number] = asked
        asked.kind = kind
        try:
            self._line.send([kind, number, *parts])
        except BadValue as error:
            del self._asked[number]
            raise ModelFailed(
                f"a request for model '{self._model.name}' cannot be given to its worker: {error}"
            ) from error
        return number

    def more(self, number: int) -> None:
        """Let one more response of a stream be made."""
        asked = self._asked.get(number)
        if asked is None:
            return
        if not asked.left:
            asked.began_s = time.monotonic()
        asked.left += 1
        self._line.send(["credit", number])

    def cancel(self, number: int) -> None:
        """Say that nobody waits for a stream any more."""
        if number in self._asked:
            self._line.send(["cancel", number])

    def look(self, now_s: float, *, max_run_s: float, alone_s: float) -> None:
        """End it when a run takes longer than `max_run_s` (0: none), or than `alone_s` while nobody waits for it."""
        for asked in self._asked.values():
            if max_run_s and asked.left and now_s - asked.began_s > max_run_s:
                self.kill(f"a run did not end within {max_run_s:g} s (max_run_s)")
            if asked.waited():
                asked.alone_s = 0.0
            elif not asked.alone_s:
                asked.alone_s = now_s
            elif now_s - asked.alone_s > alone_s:
                self.kill(f"a run went on for {alone_s:g} s after everybody who waited for it had left")

    # -- what it says --------------------------------------------------------------------------------------------

    def _take(self, message: list[Any]) -> None:
        if not _fits(message):
            self._end("it sent what is no message")
            return
        kind, number = message[0], message[1]
        if kind == "closed":
            self._close_raised = message[2]
        elif self._loading is not None:
            self._loaded(message)
        elif (asked := self._asked.get(number)) is not None:
            if kind not in _ANSWERS[asked.kind] or (kind == "response" and asked.left <= 0):
                self._end("it sent what is no answer")
            elif kind == "response":
                asked.left -= 1
                asked.began_s = time.monotonic()
                asked.ended(message, None)
            elif kind == "failed":
                del self._asked[number]
                self._raised.tell(self._model, message[2], message[3], asked.request_id)
                asked.ended(None, ModelFailed(f"model '{self._model.name}' raised {message[2]}"))
            else:
                del self._asked[number]
                asked.ended(message, None)

    def _end(self, why: str) -> None:
        """Read nothing more of it, and end it; who asked is told when it has ended."""
        self._line.close()
        self.kill(why)

    def _loaded(self, message: list[Any]) -> None:
        assert self._loading is not None
        if self._loading.done():
            return
        if message[0] == "ready":
            self._loading.set_result(message[2])
        else:
            text, traceback = message[2:] if message[0] == "refused" else ("its worker said something else", "")
            self._raised.tell(self._model, text, traceback, "")
            self._loading.set_exception(LoadFailed(f"failed to load '{self._model.name}', {text}"))

    def _broken(self, why: str) -> None:
        """Hear that nothing more comes: it is ending, or what it said was no message."""
        if why:
            self.kill(why)
        elif self.over is None:
            asyncio.get_running_loop().call_later(GONE_S, self._template.kill, self.pid)

    def _exited(self, code: int) -> None:
        self._line.drain()
        self._line.close()
        for printed in self._printed:
            printed.close()
        at_work = bool(self._asked) or self._loading is not None
        why = f"was ended: {self._killed_for}" if self._killed_for else _ending(code)
        blameless = self._closing or code == LOST or (not at_work and (code == 0 or -code in _OUTSIDE))
        self.over = Over(why, guilty=bool(self._killed_for) or not blameless)
        error = WorkerDied(f"the worker process of model '{self._model.name}' {why}")
        if self._loading is not None and not self._loading.done():
            self._loading.set_exception(WorkerDied(f"failed to load '{self._model.name}', its worker process {why}"))
        asked, self._asked = self._asked, {}
        self._gone.set()
        # Before who waited is told: that lets the next run begin, which must not be asked of this one.
        self.on_over(self)
        for each in asked.values():
            each.ended(None, error)

    def __repr__(self) -> str:
        """Show the process."""
        return f"<Worker {self._model.name} pid={self.pid} runs={len(self._asked)} over={self.over}>"


_FORMS: Final[dict[str, tuple[type, ...]]] = {
    "ready": (int, dict),
    "refused": (int, str, str),
    "done": (int, int, dict),
    "turned": (int, int, list),
    "response": (int, dict),
    "failed": (int, str, str),
    "closed": (int, str),
}


_ANSWERS: Final = {
    "run": frozenset({"done", "failed"}),
    "turns": frozenset({"turned", "failed"}),
    "stream": frozenset({"response", "done", "failed"}),
}


def _fits(message: list[Any]) -> bool:
    """Tell whether a worker may say this. What it says may come from its model's code."""
    form = _FORMS.get(message[0]) if isinstance(message[0], str) else None
    if form is None or [type(each) for each in message[1:]] != list(form):
        return False
    outputs = message[-1] if message[0] in {"done", "response"} else {}
    return all_tensors(outputs)


def all_tensors(outputs: Any) -> bool:
    """Tell whether these are tensors by name."""
    return type(outputs) is dict and all(
        type(name) is str and type(each) in {np.ndarray, HeldText} for name, each in outputs.items()
    )


_OUTSIDE: Final = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""What a process that does nothing is ended by from outside: by an operator, or the kernel for what others took."""


def _ending(code: int) -> str:
    if code == LOST:
        return "ended with the process that workers are started by"
    if code >= 0:
        return f"ended itself with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
