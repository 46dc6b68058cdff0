"""The plans of pipelines: which of their good cuts there are now, made anew when copies come and go."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from mesh.core.errors import MeshError
from mesh.core.pipeline.cut import ROUTER, Places, cuts, may_leave, shares
from mesh.core.pipeline.run import Graph, Share
from mesh.core.pipeline.signatures import signature
from mesh.core.pipeline.spec import Ref, Step
from mesh.core.traffic.balance import Balancer
from mesh.core.traffic.route import resolve
from mesh.core.types import ITEM_BYTES, NodeId
from mesh.core.view import ClusterView, Host
from mesh.registry.mirror import Mirror
from mesh.router.target import quarantined

MAX_PLANS: Final = 1024
"""Plans known at a time; beyond it all are forgotten and made again."""
TEXT_BYTES: Final = 64
"""What a text is taken for when the size of a tensor is guessed."""
UNKNOWN_BYTES: Final = 1000
"""What a tensor is taken for whose type nobody knows."""


@dataclass(eq=False, slots=True)
class Plan:
    """One cut of one revision of a pipeline. Its id is what nodes know it by."""

    id: int
    graph: Graph
    places: Places
    shares: Mapping[str, Share]
    may_leave: bool
    """Whether a request may be answered before all its steps ended."""
    nodes: tuple[NodeId, ...]
    refused: str = ""
    """Why a node would not take part; the view that it is made of is out of date, or the node's is."""
    refused_at_s: float = 0.0


@dataclass(slots=True)
class _Cut:
    """The plans of a pipeline, and what they were made of."""

    graph: Graph
    held: Mapping[str, frozenset[NodeId]]
    plans: list[Plan]
    view: ClusterView | None
    """The latest one in which nothing else was held, with no node suspect; None: look again."""


class Plans:
    """The plans of the pipelines that were asked for. One per router process."""

    def __init__(self, mirror: Mirror, balancer: Balancer) -> None:
        self._mirror = mirror
        self._balancer = balancer
        self._ids = itertools.count(1)
        self._cuts: dict[tuple[str, str], _Cut] = {}
        self._plans: dict[tuple[str, int, str, tuple[tuple[str, str], ...]], Plan] = {}

    def best(self, graph: Graph, without: Sequence[NodeId] = ()) -> list[Plan]:
        """Return the best plans for a pipeline now, at least one. O(steps x copies) when nothing changed."""
        view = self._mirror.view
        calm = not without and not self._balancer.suspects
        known = self._cuts.get((graph.pipeline.name, graph.path)) if not without else None
        if known is not None and known.graph is graph and calm and known.view is view:
            return known.plans
        held = holders(view, graph, self._usable(without))
        if known is not None and known.graph is graph and known.held == held:
            known.view = view if calm else None
            return known.plans
        found = [self._plan(graph, places) for places in cuts(graph, held, lambda ref: guessed_bytes(view, graph, ref))]
        if not without:
            self._cuts[graph.pipeline.name, graph.path] = _Cut(graph, held, found, view if calm else None)
        return found

    def holders(self, graph: Graph) -> dict[str, frozenset[NodeId]]:
        """Return the nodes that can run each step now."""
        return holders(self._mirror.view, graph, self._usable(()))

    def guessed(self, graph: Graph, ref: Ref) -> int:
        """Return about how many bytes a tensor has."""
        return guessed_bytes(self._mirror.view, graph, ref)

    def _usable(self, without: Sequence[NodeId]) -> Callable[[Host], bool]:
        now_s = time.monotonic()
        return lambda node: node.id not in without and not self._balancer.is_suspect(node, now_s)

    def _plan(self, graph: Graph, places: Places) -> Plan:
        pipeline = graph.pipeline
        key = (pipeline.name, pipeline.revision, graph.path, tuple(sorted(places.items())))
        plan = self._plans.get(key)
        if plan is None or plan.graph is not graph:
            nodes = tuple(sorted({NodeId(place) for place in places.values() if place != ROUTER}))
            plan = Plan(next(self._ids), graph, places, shares(graph, places), may_leave(graph), nodes)
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def router_alone(self, graph: Graph) -> Plan:
        """Return the plan in which the router runs every step."""
        return self._plan(graph, dict.fromkeys(graph.steps, ROUTER))

    def __repr__(self) -> str:
        """Show the count."""
        return f"<Plans {len(self._plans)}>"


def holders(view: ClusterView, graph: Graph, usable: Callable[[Host], bool]) -> dict[str, frozenset[NodeId]]:
    """Return the nodes that can run each step: those that serve its model, and the one that stands in. O(copies)."""
    return {name: _holders(view, step, usable) for name, step in graph.steps.items()}


def _holders(view: ClusterView, step: Step, usable: Callable[[Host], bool]) -> frozenset[NodeId]:
    found: frozenset[NodeId] | None = None
    for name, version in step.models():
        try:
            model = resolve(view, name, version)
        except MeshError:
            return frozenset()
        if model.decoupled or quarantined(view, model):
            return frozenset()
        serving = view.serving.get((model.name, model.version), ())
        nodes = frozenset(each.node.id for each in serving if usable(each.node))
        found = nodes if found is None else found & nodes
    return found or frozenset()


def guessed_bytes(view: ClusterView, graph: Graph, ref: Ref) -> int:
    """Return about how many bytes a tensor has, as far as its signature tells: an axis of any length counts as 1."""
    if not ref.step:
        return 0  # The inputs of the pipeline come from outside anyhow.
    step = graph.steps[ref.step]
    found = signature(view, step.model, step.version)
    spec = found.outputs.get(ref.tensor) if found is not None else None
    if spec is None:
        return UNKNOWN_BYTES
    return prod(max(1, size) for size in spec.shape) * (ITEM_BYTES.get(spec.dtype) or TEXT_BYTES)
