"""Who asks for what, when: lists of model numbers, one per request, seeded, so that a run can be repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

Trace = NDArray[np.int64]


def zipf(rng: np.random.Generator, models: int, requests: int, alpha: float) -> Trace:
    """Return requests of which the model of rank r gets a share of 1 / r ** alpha. Model 0 is the favourite."""
    weights = 1.0 / np.arange(1, models + 1) ** alpha
    return rng.choice(models, size=requests, p=weights / weights.sum())


def steady(rng: np.random.Generator, models: int, requests: int, alpha: float) -> Trace:
    """Popularity stays as it is."""
    return zipf(rng, models, requests, alpha)


def gone(rng: np.random.Generator, models: int, requests: int, alpha: float) -> Trace:
    """At half time yesterday's favourites are gone: another order of all models, from one request to the next."""
    half = requests // 2
    other = rng.permutation(models)
    return np.concatenate([zipf(rng, models, half, alpha), other[zipf(rng, models, requests - half, alpha)]])


def diurnal(rng: np.random.Generator, models: int, requests: int, alpha: float) -> Trace:
    """Day and night have favourites of their own, eight times in turn."""
    night = rng.permutation(models)
    parts = np.array_split(np.arange(requests), 8)
    asked = [zipf(rng, models, len(part), alpha) for part in parts]
    return np.concatenate([each if index % 2 == 0 else night[each] for index, each in enumerate(asked)])


def drift(rng: np.random.Generator, models: int, requests: int, alpha: float) -> Trace:
    """Let a twentieth of all models change places, a hundred times."""
    order, out = np.arange(models), []
    for part in np.array_split(np.arange(requests), 100):
        some = rng.permutation(models)[: models // 20]
        order = order.copy()
        order[np.sort(some)] = order[some]
        out.append(order[zipf(rng, models, len(part), alpha)])
    return np.concatenate(out)


def flash(rng: np.random.Generator, models: int, requests: int, alpha: float) -> Trace:
    """Send 70% of all requests to 200 models that nobody knew, for a fifth of the time."""
    asked = zipf(rng, models, requests, alpha)
    unknown = rng.integers(max(0, models - 200), models, requests)
    now = np.zeros(requests, bool)
    begin, end = requests * 2 // 5, requests * 3 // 5
    now[begin:end] = rng.random(end - begin) < 0.7
    return np.where(now, unknown, asked)


def sessions(rng: np.random.Generator, models: int, requests: int, alpha: float) -> Trace:  # noqa: ARG001 - one shape
    """Models in bursts: a changing few are asked for evenly, the others not at all."""
    few = max(1, models * 6 // 100)
    active, out = rng.permutation(models)[:few], []
    for part in np.array_split(np.arange(requests), max(1, requests // 1000)):
        active = active.copy()
        active[rng.integers(0, few, max(1, few // 10))] = rng.integers(0, models, max(1, few // 10))
        out.append(active[rng.integers(0, few, len(part))])
    return np.concatenate(out)


def scan(rng: np.random.Generator, models: int, requests: int, alpha: float) -> Trace:
    """Mix in a batch job that asks for every model in turn, which is 30% of all requests."""
    asked = zipf(rng, models, requests, alpha)
    return np.where(rng.random(requests) < 0.3, np.arange(requests) % models, asked)


WORKLOADS: Final[dict[str, Callable[[np.random.Generator, int, int, float], Trace]]] = {
    each.__name__: each for each in (steady, gone, diurnal, drift, flash, sessions, scan)
}


def read(lines: Iterator[str]) -> tuple[list[str], Trace]:
    """Return the names and the trace of a file with one model name a line; blank lines do not count."""
    numbers: dict[str, int] = {}
    asked = [numbers.setdefault(name, len(numbers)) for line in lines if (name := line.strip())]
    return list(numbers), np.array(asked, dtype=np.int64)
