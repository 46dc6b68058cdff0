"""What the demo asks: real rows with known labels, one by one, over a stream, and while a node dies.

Every call is counted; one that fails is lost, with its sentence.
"""

from __future__ import annotations

import asyncio
import csv
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import numpy as np
import numpy.typing as npt

from mesh.cli.demo_crash import Crashed, crash
from mesh.cli.demo_story import Story
from mesh.cli.drawing import drawn, lively
from mesh.cli.explain import cut_told, told
from mesh.cli.manifest import read as read_manifest
from mesh.core.errors import InvalidRequest, NotReady
from mesh_client import AsyncClient, MeshClientError

CALLERS: Final = 8
"""Calls in flight at once."""
CALL_S: Final = 30.0
"""A call that takes longer is lost."""
TALK: Final = 40
"""Pairs of titles in the streamed conversation."""
TALK_S: Final = 60.0
"""The whole conversation; what is not answered by then is lost."""
PIPELINE: Final = "product-matching"
LOAD_AFTER: Final = 200
"""Calls that must be answered after the killed node is back."""

T = TypeVar("T")
Inputs = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Data:
    """Rows and labels: iris FP32 [n,4], digits FP32 [n,8,8], titles as pairs, labels as whole numbers."""

    iris: npt.NDArray[np.float32]
    iris_labels: Sequence[int]
    digits: npt.NDArray[np.float32]
    digits_labels: Sequence[int]
    titles: Sequence[tuple[str, str]]
    titles_labels: Sequence[int]


def read_data(folder: Path) -> Data:
    """Read the demo's rows. Raises `InvalidRequest` when a file is not there."""
    tables = {}
    for name in ("iris", "digits", "titles"):
        path = folder / f"{name}.csv"
        if not path.is_file():
            raise InvalidRequest(f"expected the demo's rows at {path}, found none: run it from a whole checkout")
        with path.open(encoding="utf-8", newline="") as file:
            tables[name] = list(csv.reader(file))[1:]
    iris, digits, titles = tables["iris"], tables["digits"], tables["titles"]
    return Data(
        iris=np.array([row[:4] for row in iris], dtype=np.float32),
        iris_labels=[int(row[4]) for row in iris],
        digits=np.array([row[:64] for row in digits], dtype=np.float32).reshape(-1, 8, 8),
        digits_labels=[int(row[64]) for row in digits],
        titles=[(row[0], row[1]) for row in titles],
        titles_labels=[int(row[2]) for row in titles],
    )


@dataclass(slots=True)
class Tally:
    """What came of one kind of request. `least` is the share of right answers that counts as right."""

    name: str
    models: tuple[str, ...]
    least: float
    sent: int = 0
    right: int = 0
    judged: int = 0
    lost: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """The share of right answers, 0 to 1."""
        return self.right / self.judged if self.judged else 0.0

    def judge(self, *, right: bool) -> None:
        """Count one answer against its label."""
        self.judged += 1
        self.right += right

    def percentile(self, share: float) -> float:
        """Return the latency in seconds that `share` of the calls stayed under; 0 without calls."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


@dataclass(frozen=True, slots=True)
class Killed:
    """Calls answered before the kill, until the node was back, and after; and how long it was away, seconds."""

    before: int
    during: int
    after: int
    back_s: float


class Trial:
    """Asks a mesh through its router at `address`. Use as an async context."""

    def __init__(self, address: str, data: Data) -> None:
        self._client = AsyncClient(address)
        self._data = data
        self._moved = asyncio.Event()
        """Set at every answer under load."""
        self.iris = Tally("iris", ("iris",), least=0.9)
        self.digits = Tally("digits", ("digits",), least=0.9)
        self.titles = Tally("titles: product-matching", ("text_features", "text_score"), least=0.85)
        self.talk = Tally("the same over one stream", ("text_features", "text_score"), least=0.85)
        self.told = Tally("a story while its node dies", ("prose",), least=1.0)
        self.story = Story(self._client)
        self.beside = Tally("iris while a model crashes", ("iris",), least=0.9)
        self.load = Tally("iris and digits while a node dies", ("iris", "digits"), least=0.9)

    @property
    def tallies(self) -> tuple[Tally, ...]:
        """Everything that was asked."""
        return (self.iris, self.digits, self.titles, self.talk, self.told, self.beside, self.load)

    async def __aenter__(self) -> Self:
        """Connect."""
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        await self._client.__aexit__(kind, error, trace)

    async def explained(self, model: str) -> str:
        """Return where `model` would be loaded now, as `mesh explain` prints it."""
        (found,) = await self._client.explain(model)
        return told(found)

    async def warm(self) -> None:
        """Ask each model once, so that all are loaded; cold models load on demand. Counted like every other call."""
        await asyncio.gather(self._ask_iris(self.iris, 0), self._ask_digits(self.digits, 0), self._ask_titles(0))

    async def rows(self) -> None:
        """Ask every row once, `CALLERS` at a time."""
        data = self._data
        kinds = (
            [partial(self._ask_iris, self.iris, at) for at in range(1, len(data.iris))],
            [partial(self._ask_digits, self.digits, at) for at in range(1, len(data.digits))],
            [partial(self._ask_titles, at) for at in range(1, len(data.titles))],
        )
        mixed = itertools.chain.from_iterable(itertools.zip_longest(*kinds))
        await _at_once(ask for ask in mixed if ask is not None)

    async def apply(self, file: Path, text: str) -> None:
        """Store the pipelines of a file. Raises `InvalidRequest` when they make no sense to the mesh."""
        for manifest in read_manifest(file.name, text):
            answer = await _told(self._client.apply_pipeline(manifest.pipeline))
            if answer.problems:
                problem = answer.problems[0]
                raise InvalidRequest(f"{file}:{manifest.line_of(problem.path)}: {problem.path}: {problem.message}")

    async def crash(self) -> Crashed:
        """Crash a model, and ask another one meanwhile."""
        return await _told(crash(self._client, partial(self._ask_iris, self.beside), len(self._data.iris)))

    async def cut(self) -> str:
        """Return where the pipeline's steps run, as `mesh explain` prints it."""
        return cut_told(await _told(self._client.explain_pipeline(PIPELINE)))

    async def watched(self, work: Awaitable[None]) -> str:
        """Do `work` and return the pipeline with its rates meanwhile, as `mesh pipelines show` draws it."""
        client = self._client
        before, begun_s = await _told(client.model_statistics(PIPELINE)), time.monotonic()
        await work
        now, lasted_s = await _told(client.model_statistics(PIPELINE)), time.monotonic() - begun_s
        (found,) = await _told(client.pipelines(PIPELINE))
        metadata, cut = await _told(client.model_metadata(PIPELINE)), await _told(client.explain_pipeline(PIPELINE))
        return drawn(found, metadata, cut, lively(before, now, lasted_s))

    async def conversation(self) -> None:
        """Match `TALK` pairs of titles over one stream: all are on their way at once, and answers keep their order."""
        tally, count = self.talk, min(TALK, len(self._data.titles))
        async with self._client.stream(timeout_s=TALK_S) as stream:
            for at in range(count):
                await stream.send(PIPELINE, self._pair(at), id=str(at))
            await stream.half_close()
            for at in range(count):
                answer = await self._call(tally, stream.receive)
                if answer is not None:
                    tally.judge(right=answer.id == str(at) and _matches(answer) == self._data.titles_labels[at])

    async def under_load(self, kill: Callable[[], None], node: str, back_s: float) -> Killed:
        """Keep `CALLERS` calls in flight, kill `node` amid them, and go on until it is back and a while after."""
        ended = asyncio.Event()
        turns = itertools.count()

        async def caller() -> None:
            while not ended.is_set():
                at = next(turns)
                if at % 2:
                    await self._ask_iris(self.load, at // 2 % len(self._data.iris))
                else:
                    await self._ask_digits(self.load, at // 2 % len(self._data.digits))
                self._moved.set()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(CALLERS):
                tasks.create_task(caller())
            try:
                async with asyncio.timeout(back_s):
                    await self._answered(LOAD_AFTER)
                    was = await self._started(node)
                    before = self.load.judged
                    kill()
                    killed_s = time.monotonic()
                    while await self._started(node) in {was, None}:  # noqa: ASYNC110 - the router is asked
                        await asyncio.sleep(0.1)
                    away_s = time.monotonic() - killed_s
                    during = self.load.judged - before
                    await self._answered(before + during + LOAD_AFTER)
            except TimeoutError:
                raise InvalidRequest(f"node {node} was killed and is not back after {back_s:g} s") from None
            finally:
                ended.set()
        return Killed(before, during, self.load.judged - before - during, away_s)

    async def begin_story(self) -> asyncio.Task[str]:
        """Begin the story, and return when it is under way."""
        telling = asyncio.create_task(self.story.tell(), name="story")
        begun = asyncio.create_task(self.story.begun.wait())
        await asyncio.wait((telling, begun), return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        return telling

    async def end_story(self, telling: asyncio.Task[str]) -> bool:
        """Wait for its end; return whether it is what an undisturbed run tells. One that is lost counts as a call."""
        tally = self.told
        told = await self._call(tally, lambda: telling)
        tally.seconds = [self.story.took_s]
        if told is None:
            return False
        same: bool = told == await _told(self.story.undisturbed())
        tally.judge(right=same)
        return same

    async def where(self) -> dict[str, set[str]]:
        """Return the models with a ready copy per node id. Raises `NotReady` when the router does not answer."""
        found: dict[str, set[str]] = {}
        for model in await _told(self._client.models()):
            for copy in model.copies:
                if copy.state == "ready":
                    found.setdefault(copy.node, set()).add(model.name)
        return found

    async def _started(self, node: str) -> float | None:
        nodes = await _told(self._client.nodes())
        return next((each.started_s for each in nodes if each.id == node), None)

    async def _answered(self, count: int) -> None:
        while self.load.judged + len(self.load.lost) < count:
            self._moved.clear()
            await self._moved.wait()

    async def _ask_iris(self, tally: Tally, at: int) -> None:
        rows = self._data.iris[at : at + 1]
        answer = await self._call(tally, lambda: self._client.infer("iris", {"x": rows}, timeout_s=CALL_S))
        if answer is not None:
            tally.judge(right=int(answer["label"][0]) == self._data.iris_labels[at])

    async def _ask_digits(self, tally: Tally, at: int) -> None:
        rows = self._data.digits[at : at + 1]
        answer = await self._call(tally, lambda: self._client.infer("digits", {"image": rows}, timeout_s=CALL_S))
        if answer is not None:
            tally.judge(right=int(answer["label"][0]) == self._data.digits_labels[at])

    async def _ask_titles(self, at: int) -> None:
        client, tally = self._client, self.titles
        answer = await self._call(tally, lambda: client.infer(PIPELINE, self._pair(at), timeout_s=CALL_S))
        if answer is not None:
            tally.judge(right=_matches(answer) == self._data.titles_labels[at])

    def _pair(self, at: int) -> Inputs:
        left, right = self._data.titles[at]
        return {
            "title1": np.array([[left.encode()]], dtype=object),
            "title2": np.array([[right.encode()]], dtype=object),
        }

    async def _call(self, tally: Tally, ask: Callable[[], Awaitable[Any]]) -> Any:
        """Return the answer, None when it was lost."""
        tally.sent += 1
        begun_s = time.monotonic()
        try:
            answer = await ask()
        except MeshClientError as error:
            tally.lost.append(str(error))
            return None
        tally.seconds.append(time.monotonic() - begun_s)
        return answer


async def _told(question: Awaitable[T]) -> T:
    """Return the router's answer to a question about the mesh itself."""
    try:
        return await question
    except MeshClientError as error:
        raise NotReady(f"the router does not tell about the mesh: {error}") from error


def _matches(answer: Mapping[str, npt.NDArray[Any]]) -> int:
    return int(answer["match"][0, 0] >= 0.5)


async def _at_once(asks: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Run every one of `asks`, `CALLERS` at a time."""
    left = iter(asks)

    async def caller() -> None:
        for ask in left:
            await ask()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(CALLERS):
            tasks.create_task(caller())
