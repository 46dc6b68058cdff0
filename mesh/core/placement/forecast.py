"""How soon a model will be asked for again, learned from how all models of this mesh were.

A model's history is two numbers: its heat (a count of its requests that halves every `HALF_LIFE_S`) and when it was
last asked for. Both fall into a cell of a small table, heat by powers of two and the time since by powers of two, and
the table holds for each cell what happened to every model that was ever in it: requests that came, and model-seconds in
which none did. Their ratio is the rate at which models like this one are asked for, in requests per second.

That makes one rule of what LRU and LFU are two halves of. Where popularity is steady, cells of more heat have higher
rates whatever the time since, and the mesh keeps what is asked for often; where models come and go in bursts, the rates
fall steeply with the time since, and it keeps what was used last (docs/placement.md has the numbers).

Pure bookkeeping: the caller says what was asked for and what time it is, in seconds of any clock of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import frexp, log
from typing import Final, Generic, TypeVar

HALF_LIFE_S: Final = 1800.0
"""A request counts half after this long."""

LN2: Final = log(2.0)

LEVELS: Final = 18
"""Rows: heat under 1, under 2, under 4 ... A model that was asked for once and long ago is in row 0."""

AGES: Final = 31
"""Columns: not asked for since under 1/64 s, under 1/32 s ... The last begins after half a year."""

_FIRST_AGE: Final = -6
"""Column 0 ends at 2 to this power, in seconds."""

_ENDS: Final = tuple(2.0 ** (age + _FIRST_AGE) for age in range(AGES))
_BEGINS: Final = (0.0, *_ENDS[:-1])
"""When the columns end and begin, in seconds."""

_TRUST: Final = 2.0
"""Requests that a cell must have seen to count as much as what is supposed of it beforehand."""

_FORGET_S: Final = 4 * HALF_LIFE_S
"""What the table saw counts half after this long: it follows a workload that changes its nature."""

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class History:
    """What is remembered of a model's requests: 0 <= heat; both 0 for one that was never asked for."""

    heat: float = 0.0
    """As of `last_s`."""
    last_s: float = 0.0

    def asked(self, count: int, now_s: float) -> History:
        """Return the history after `count` more requests, the last of them at `now_s`."""
        return History(self.at(now_s) + count, max(now_s, self.last_s))

    def average(self, now_s: float) -> float:
        """Return the requests per second over the last half-life or two, as the heat tells them."""
        return self.at(now_s) * LN2 / HALF_LIFE_S

    def at(self, now_s: float) -> float:
        """Return the heat at `now_s`."""
        return self.heat * float(2.0 ** (-max(0.0, now_s - self.last_s) / HALF_LIFE_S))


def level_of(heat: float) -> int:
    """Return the row of a heat."""
    level = frexp(heat)[1]
    return level if 0 <= level < LEVELS else (0 if level < 0 else LEVELS - 1)


def age_of(idle_s: float) -> int:
    """Return the column of a time since the last request."""
    age = frexp(idle_s)[1] - _FIRST_AGE
    return age if 0 <= age < AGES and idle_s > 0 else (0 if age < 0 or idle_s <= 0 else AGES - 1)


def _supposed(level: int, age: int) -> float:
    """Return the rate of a cell of which nothing is known.

    The next request then comes after as long as there was none, or as often as they used to, whichever is longer.
    """
    idle_s = 0.75 * 2.0 ** (age + _FIRST_AGE)
    used_to_s = HALF_LIFE_S / 2.0**level
    return 1.0 / (idle_s + used_to_s)


@dataclass(frozen=True, slots=True)
class Forecast:
    """The table as of one moment: `rates[level][age]` in requests per second. LEVELS x AGES."""

    rates: tuple[tuple[float, ...], ...]
    factors: Mapping[str, float] = field(default_factory=dict)
    """Bytes in memory per byte of files, by runtime (`mesh.core.placement.ledger.learned_factors`)."""

    def rate(self, history: History, now_s: float) -> float:
        """Return the requests per second to expect of a model with this history; 0 for one never asked for."""
        if not history.last_s:
            return 0.0
        return self.rates[level_of(history.heat)][age_of(now_s - history.last_s)]


SUPPOSED: Final = Forecast(tuple(tuple(_supposed(level, age) for age in range(AGES)) for level in range(LEVELS)))
"""The table before anything was learned."""


class Learner(Generic[K]):
    """Counts what happens in every cell. One call per model asked for; O(ages passed) amortised.

    A model is in one cell at a time. It enters the first column of its row when it is asked for and moves on as time
    passes; columns have the same width for all, so that each is a queue in the order of the requests.
    """

    def __init__(self) -> None:
        self.histories: dict[K, History] = {}
        self._passing: list[deque[tuple[float, K]]] = [deque() for _ in range(AGES)]
        self._requests = [[0.0] * AGES for _ in range(LEVELS)]
        self._seconds = [[0.0] * AGES for _ in range(LEVELS)]
        self._forgot_s: float | None = None

    def asked(self, model: K, count: int, now_s: float) -> History:
        """Note `count` requests for `model` up to `now_s`. Calls come in the order of time. Return its new history."""
        self.passed(now_s)
        before = self.histories.get(model)
        if before is not None:
            self._count(before, now_s)
        history = self.histories[model] = (before or History()).asked(count, now_s)
        if before is None or before.last_s != history.last_s:
            self._passing[0].append((history.last_s, model))
        return history

    def passed(self, now_s: float) -> None:
        """Note that it is `now_s`: models nobody asked for grow older."""
        for age, queue in enumerate(self._passing):
            if not queue or age == AGES - 1:
                continue
            until_s = now_s - _ENDS[age]
            while queue and queue[0][0] <= until_s:
                last_s, model = queue.popleft()
                history = self.histories.get(model)
                if history is not None and history.last_s == last_s:
                    self._seconds[level_of(history.heat)][age] += _ENDS[age] - _BEGINS[age]
                    self._passing[age + 1].append((last_s, model))
        if self._forgot_s is None:
            self._forgot_s = now_s
        elif now_s - self._forgot_s > _FORGET_S / 16:
            self._forget(2.0 ** (-(now_s - self._forgot_s) / _FORGET_S))
            self._forgot_s = now_s

    def forget(self, model: K) -> None:
        """Drop a model that is gone for good."""
        self.histories.pop(model, None)

    def forecast(self) -> Forecast:
        """Return the rates as learned so far. O(cells)."""
        return Forecast(
            tuple(
                tuple(
                    (requests + _TRUST) / (seconds + _TRUST / supposed)
                    for requests, seconds, supposed in zip(*row, strict=True)
                )
                for row in zip(self._requests, self._seconds, SUPPOSED.rates, strict=True)
            )
        )

    def _count(self, history: History, now_s: float) -> None:
        """Count a request that came `now_s - last_s` after the one before. Columns it went through are counted."""
        idle_s = now_s - history.last_s
        level, age = level_of(history.heat), age_of(idle_s)
        self._requests[level][age] += 1
        self._seconds[level][age] += idle_s - _BEGINS[age]

    def _forget(self, factor: float) -> None:
        for table in (self._requests, self._seconds):
            for row in table:
                row[:] = [each * factor for each in row]

    def __repr__(self) -> str:
        """Show how much it has seen."""
        return f"<Learner models={len(self.histories)} requests={sum(map(sum, self._requests)):.0f}>"


def merged(histories: Sequence[History], now_s: float) -> History:
    """Return the history of a model whose copies each have their own."""
    if not histories:
        return History()
    last_s = max(each.last_s for each in histories)
    return History(sum(each.at(min(now_s, last_s)) for each in histories), last_s)
