"""A registry's numbers as Prometheus' text format, written on the event loop in pieces that nobody notices.

With thousands of models there are 100,000 lines. A thread that writes them takes the interpreter from requests for
5 ms at a time; here the loop writes for `PIECE_S` and then lets whatever waits have its turn. Rows that counted nothing
since the last scrape are not written anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from mesh.telemetry.series import Family, Totals

PIECE_S: Final = 0.0005
"""For how long the loop writes at a time: a call that comes meanwhile waits as long at most."""

PAUSE_S: Final = 0.001
"""How long it then does other things: a scrape takes at most a third of a core while it lasts."""

CHUNK_BYTES: Final = 64 * 1024
"""Sent at once."""

LINES: Final = 32
"""Lines of an ordinary family between two looks at the clock."""


async def written(registry: CollectorRegistry) -> AsyncIterator[bytes]:
    """Yield the text in chunks. A scrape that is given up costs nothing more."""
    begun_s = time.perf_counter()
    pieces: list[str] = []
    size = 0
    for piece in _pieces(registry):
        if piece:
            pieces.append(piece)
            size += len(piece)
        if size >= CHUNK_BYTES:
            yield "".join(pieces).encode()
            pieces, size = [], 0
        if time.perf_counter() - begun_s >= PIECE_S:
            await asyncio.sleep(PAUSE_S)
            begun_s = time.perf_counter()
    yield "".join(pieces).encode()


def _pieces(registry: CollectorRegistry) -> Iterator[str]:
    """Yield the text in pieces of a few dozen lines at most; an empty one is a moment to pause at."""
    for metric in registry.collect():
        yield _head(metric)
        if isinstance(metric, Family | Totals):
            yield from metric.texts(lines)
            continue
        samples = iter(metric.samples)
        while some := list(islice(samples, LINES)):
            yield lines(some)


def _head(metric: Metric) -> str:
    name = f"{metric.name}_total" if metric.type == "counter" else metric.name
    kind = "untyped" if metric.type == "unknown" else metric.type
    text = metric.documentation.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def lines(samples: Iterable[Sample]) -> str:
    """Return the lines of some samples, each with its line end."""
    return "".join(map(_line, samples))


def _line(sample: Sample) -> str:
    labels, value = sample.labels, floatToGoString(sample.value)  # type: ignore[no-untyped-call]  # it has no types
    if not labels:
        return f"{sample.name} {value}\n"
    shown = ",".join([f'{name}="{_escaped(labels[name])}"' for name in sorted(labels)])
    return f"{sample.name}{{{shown}}} {value}\n"


def _escaped(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return value
