"""Which nodes can hold a version at all. One small function each; `FILTERS` names them in the order they are asked in.

A filter answers `Pass` or `Refuse` with a reason and the numbers it compared, so that an explanation only prints what
the decision recorded. (The shape of the kube-scheduler's filter plugins.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mesh.core.placement.asked import Asked
from mesh.core.suspects import pause_s, quarantined_s, told
from mesh.core.types import CopyState, Node

MAX_LOADING: Final = 64
"""Loads that go on or wait on one node; more would only wait longer there than elsewhere."""

RETRY_FAILED_S: Final = 10.0
"""How long a node is not asked again to load what it failed to load; twice that after the second failure, and so on."""

RETRY_FAILED_MAX_S: Final = 600.0

SHORT_PAUSE_S: Final = 5.0
"""A pause after a version ended a process that callers are made to wait for."""


@dataclass(frozen=True, slots=True)
class Pass:
    """The node can hold it."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """It cannot, and why."""

    reason: str
    passing: bool = False
    """True when it is likely to change within seconds, so that waiting makes sense."""


Verdict = Pass | Refuse
_PASS: Final = Pass()


def not_draining(_: Asked, on: Node) -> Verdict:
    """Refuse a node on its way out."""
    return Refuse("it is draining", passing=True) if on.draining or on.leaving else _PASS


def reachable(asked: Asked, on: Node) -> Verdict:
    """Refuse a node that did not answer a moment ago."""
    return Refuse("its connection failed a moment ago", passing=True) if on.id in asked.avoid else _PASS


def works(_: Asked, on: Node) -> Verdict:
    """Refuse a node that fails to load what others can."""
    return Refuse(f"it takes no more models: {on.failing}") if on.failing else _PASS


def has_files(asked: Asked, on: Node) -> Verdict:
    """Refuse a node that does not read the repository the version is in."""
    source = asked.model.source
    for root in on.repositories:
        if source.startswith(root) and (root.endswith("/") or source[len(root) :].startswith("/")):
            return _PASS
    return Refuse(f"it reads {', '.join(on.repositories) or 'no repository'}, not {source}")


def has_labels(asked: Asked, on: Node) -> Verdict:
    """Refuse a node without the labels the model asks for."""
    wanted = asked.model.node_labels
    if not wanted:
        return _PASS
    missing = {key: value for key, value in wanted.items() if on.labels.get(key) != value}
    return Refuse(f"it lacks the labels {missing}") if missing else _PASS


def has_device(asked: Asked, on: Node) -> Verdict:
    """Refuse a node without the kind of device the model asks for."""
    kind = asked.model.device
    if kind == "auto" or any(device.kind.value == kind for device in on.devices):
        return _PASS
    return Refuse(f"it has no {kind}")


def fits_in_total(asked: Asked, on: Node) -> Verdict:
    """Refuse a node on which the version would not fit even if all else were evicted."""
    largest = 0
    kind = asked.model.device
    for device in on.devices:
        if device.total_bytes > largest and kind in ("auto", device.kind.value):
            largest = device.total_bytes
    if asked.needs <= largest:
        return _PASS
    return Refuse(f"it needs {asked.needs} bytes and its largest device has {largest}")


def has_no_copy(asked: Asked, on: Node) -> Verdict:
    """Refuse a node that holds or loads this version: a second copy goes elsewhere."""
    copy = asked.copies.get(on.id)
    if copy is None or copy.state is CopyState.FAILED:
        return _PASS
    return Refuse(f"it has a copy, {copy.state.value}", passing=copy.state is CopyState.DRAINING)


def did_not_fail(asked: Asked, on: Node) -> Verdict:
    """Refuse a node that failed to load this version, for a time that grows with each failure."""
    copy = asked.copies.get(on.id)
    if copy is None or copy.state is not CopyState.FAILED or copy.digest not in ("", asked.model.digest):
        return _PASS
    if copy.pause_s and not asked.forced:
        return Refuse(f"its load failed and is not tried again within {copy.pause_s:.0f} s: {copy.error}")
    return _PASS


def did_not_end_processes(asked: Asked, _: Node) -> Verdict:
    """Refuse every node while a version that ended processes is not to be loaded."""
    suspect = asked.suspect
    left_s = pause_s(suspect, asked.model.digest, asked.now_s) if suspect is not None else 0.0
    if suspect is None or not left_s:
        return _PASS
    if quarantined := quarantined_s(suspect, asked.model.digest, asked.now_s):
        return Refuse(f"it is {told(suspect, quarantined)}")
    return Refuse(
        f"it ended a process, the last on node '{suspect.node}' ({suspect.text}), and is not loaded for {left_s:.0f} s",
        passing=left_s <= SHORT_PAUSE_S,
    )


def few_loads(_: Asked, on: Node) -> Verdict:
    """Refuse a node with a long queue of loads."""
    if on.loading < MAX_LOADING:
        return _PASS
    return Refuse(f"{on.loading} loads wait on it", passing=True)


def no_room(asked: Asked, on: Node) -> Refuse:
    """Return why a node on which what is free and what is idle together are not enough says no."""
    free = max((device.free_bytes for device in on.devices), default=0)
    idle = max((device.curve[-1][0] for device in on.devices if device.curve), default=0)
    return Refuse(f"it needs {asked.needs} bytes; {free} are free and {idle} idle, the rest is in use", passing=True)


def retry_after_s(failures: int) -> float:
    """Return how long after a load failed it is not tried again: 10 s, 20 s, 40 s ... 600 s."""
    return float(min(RETRY_FAILED_MAX_S, RETRY_FAILED_S * 2.0 ** max(0, min(failures, 30) - 1)))


FILTERS: Final[tuple[tuple[str, Callable[[Asked, Node], Verdict]], ...]] = (
    ("draining", not_draining),
    ("reachable", reachable),
    ("works", works),
    ("files", has_files),
    ("labels", has_labels),
    ("device", has_device),
    ("total memory", fits_in_total),
    ("copy", has_no_copy),
    ("failed load", did_not_fail),
    ("suspect", did_not_end_processes),
    ("load queue", few_loads),
)
"""(name, function). The room that is needed comes after them, as it is a number as well: `Asked.room_on`."""

ROOM: Final = "room"
