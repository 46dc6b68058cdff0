"""Which nodes can hold a version at all. One small function each; the tuple `FILTERS` is the order they are asked in.

A filter answers `Pass` or `Refuse` with a reason and the numbers it compared, so that an explanation only prints what
the decision recorded. (The shape of the kube-scheduler's filter plugins.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from mesh.core.placement.ledger import predicted_bytes
from mesh.core.types import CopyState, ModelVersion, Node, NodeId


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


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be placed, and since when it is asked for."""

    model: ModelVersion
    requested_s: float
    """Failures that a node reported for an earlier request do not count."""
    avoid: Collection[NodeId] = ()
    """Nodes whose connection failed a moment ago."""


def not_draining(asked: Asked, node: Node) -> Verdict:  # noqa: ARG001 - every filter has this signature
    """Refuse a node on its way out."""
    return Refuse("it is draining", passing=True) if node.draining else Pass()


def reachable(asked: Asked, node: Node) -> Verdict:
    """Refuse a node that did not answer a moment ago."""
    return Refuse("its connection failed a moment ago", passing=True) if node.id in asked.avoid else Pass()


def has_files(asked: Asked, node: Node) -> Verdict:
    """Refuse a node that does not read the repository the version is in."""
    if any(asked.model.source.startswith(root.rstrip("/") + "/") for root in node.repositories):
        return Pass()
    return Refuse(f"it reads {', '.join(node.repositories) or 'no repository'}, not {asked.model.source}")


def has_labels(asked: Asked, node: Node) -> Verdict:
    """Refuse a node without the labels the model asks for."""
    missing = {key: value for key, value in asked.model.node_labels.items() if node.labels.get(key) != value}
    return Refuse(f"it lacks the labels {missing}") if missing else Pass()


def has_device(asked: Asked, node: Node) -> Verdict:
    """Refuse a node without the kind of device the model asks for."""
    if asked.model.device == "auto" or any(device.kind.value == asked.model.device for device in node.devices):
        return Pass()
    return Refuse(f"it has no {asked.model.device}")


def fits_in_total(asked: Asked, node: Node) -> Verdict:
    """Refuse a node on which the version would not fit even if all else were evicted."""
    needs = predicted_bytes(asked.model.size_bytes)
    largest = max((device.total_bytes for device in node.devices), default=0)
    return Pass() if needs <= largest else Refuse(f"it needs {needs} bytes and its largest device has {largest}")


def did_not_fail(asked: Asked, node: Node) -> Verdict:
    """Refuse a node that failed to load this version for the request at hand."""
    for copy in node.copies:
        same = copy.model == asked.model.name and copy.version == asked.model.version
        if same and copy.state is CopyState.FAILED and copy.requested_s >= asked.requested_s:
            return Refuse(f"its load failed: {copy.error}")
    return Pass()


FILTERS: tuple[Callable[[Asked, Node], Verdict], ...] = (
    not_draining,
    reachable,
    has_files,
    has_labels,
    has_device,
    fits_in_total,
    did_not_fail,
)
