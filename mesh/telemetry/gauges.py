"""Gauges that are read at a scrape from what a process holds: a node's copies and sequences, a router's sessions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from mesh.core.types import Copy, CopyState, Node


def sequences(served: Sequence[Any]) -> Iterator[Metric]:
    """Yield what the copies `served` tell of their sequences."""
    labels = ["model", "version"]
    live = GaugeMetricFamily("mesh_node_sequences_live", "Sequences or generations that are live.", labels=labels)
    held = GaugeMetricFamily("mesh_node_sequences_state_bytes", "About what their states take.", labels=labels)
    steps = CounterMetricFamily("mesh_node_sequences_steps", "Steps that ran.", labels=labels)
    for each in served:
        if each.sequences is not None:
            named = [each.model.name, each.model.version]
            live.add_metric(named, each.sequences.live)
            held.add_metric(named, each.sequences.state_bytes)
            steps.add_metric(named, each.sequences.steps_done)
    yield from (live, held, steps)


_SESSIONS: Final = (
    (GaugeMetricFamily, "live", "Sequences that go through this router."),
    (GaugeMetricFamily, "kept_bytes", "What is kept so that they outlive their nodes."),
    (GaugeMetricFamily, "kept_elsewhere", "Those whose last state another node keeps."),
    (GaugeMetricFamily, "unprotected", "Those that would not outlive their node now."),
    (GaugeMetricFamily, "generations", "Generations that go on."),
    (CounterMetricFamily, "steps", "Steps of sequences."),
    (CounterMetricFamily, "responses", "Responses of generations."),
    (CounterMetricFamily, "failovers", "Sessions whose node went away."),
    (CounterMetricFamily, "lost", "Those of them whose state could not be brought to another node."),
)


def sessions(groups: Sequence[Any]) -> Iterator[Metric]:
    """Yield what mesh.v1 SessionGroup messages tell."""
    for kind, field, text in _SESSIONS:
        family = kind(f"mesh_router_sessions_{field}", text, labels=["model", "version"])
        for each in groups:
            family.add_metric([each.model, each.version], getattr(each, field))
        yield family


def node_gauges(node: Node, held: Iterable[Copy]) -> Iterable[Metric]:
    """Return what a node holds, and its memory."""
    states = Counter(copy.state for copy in held)
    copies = GaugeMetricFamily("mesh_node_copies", "Copies held, by state.", labels=["state"])
    for state in CopyState:
        copies.add_metric([state.value], states[state])
    total = GaugeMetricFamily("mesh_node_device_total_bytes", "Memory for models.", labels=["device", "name"])
    free = GaugeMetricFamily("mesh_node_device_free_bytes", "Memory not held by models.", labels=["device", "name"])
    for device in node.devices:
        labels = [f"{device.kind}:{device.index}", device.name]
        total.add_metric(labels, device.total_bytes)
        free.add_metric(labels, device.free_bytes)
    draining = GaugeMetricFamily("mesh_node_draining", "1 while the node takes no new work.", int(node.draining))
    return copies, total, free, draining
