"""Where the steps of a request run: on which nodes, so that as little as may be travels between them. Pure.

A cut gives every step a place: a node that holds all that the step may ask, or the router, which can run anything (it
asks whatever copy there is, waits for cold models, and runs pipelines in pipelines) at the price of two more journeys.
The steps of one place are a segment: they run there in one hop, and tensors between them never leave the process.

The best cut is a minimum cut over several terminals, which is hard in general. Graphs of models are small and mostly
chains, so this one begins with what each step's inputs suggest and then moves steps as long as that helps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from mesh.core.pipeline.run import Graph, Share
from mesh.core.pipeline.spec import Ref

ROUTER: Final = ""
"""The place of steps that no node can run."""

HOP_BYTES: Final = 50_000
"""What a message costs, as bytes that travel in the same time: about 50 us at 1 GB/s."""

MOST_CUTS: Final = 8
"""Cuts that are kept side by side, so that copies on several nodes share the load."""

Places = Mapping[str, str]
"""By step: a node's id or `ROUTER`."""
Weigh = Callable[[Ref], int]
"""Returns about how many bytes a tensor has."""


@dataclass(frozen=True, slots=True)
class Edge:
    """A tensor's way between two places."""

    ref: Ref
    origin: str
    to: str
    """Where it is wanted."""


def edges(graph: Graph, places: Places) -> list[Edge]:
    """Return what travels between places: each tensor once to each place. In a fixed order. O(tensors)."""
    found: dict[Edge, None] = {}
    for name, step in graph.steps.items():
        for ref in step.refs():
            origin = places[ref.step] if ref.step else ROUTER
            if origin != places[name]:
                found[Edge(ref, origin, places[name])] = None
    for source in graph.pipeline.outputs.values():
        for ref in source:
            if ref.step and places[ref.step] != ROUTER:
                found[Edge(ref, places[ref.step], ROUTER)] = None
    return list(found)


def cost(graph: Graph, places: Places, weigh: Weigh) -> int:
    """Return what the journeys of a request cost, in bytes. O(tensors)."""
    travelling = edges(graph, places)
    messages = {(edge.ref.step, edge.origin, edge.to) for edge in travelling}
    # The inputs of the pipeline leave the router in one message to each place.
    hops = {("", ROUTER, to) if origin == ROUTER and not step else (step, origin, to) for step, origin, to in messages}
    return HOP_BYTES * len(hops) + sum(weigh(edge.ref) for edge in travelling)


def cuts(graph: Graph, holders: Mapping[str, Collection[str]], weigh: Weigh) -> list[dict[str, str]]:
    """Return the cheapest cuts that were found, at least one. `holders` says which nodes can run a step.

    O(nodes x steps x holders of a step x tensors).
    """
    nodes = sorted({node for held in holders.values() for node in held})
    best: dict[tuple[str, ...], dict[str, str]] = {}
    least = -1
    for favoured in nodes or [ROUTER]:
        places = _improved(graph, _begun(graph, holders, favoured), holders, weigh)
        price = cost(graph, places, weigh)
        if least < 0 or price < least:
            best, least = {}, price
        if price == least and len(best) < MOST_CUTS:
            best[tuple(places[name] for name in graph.steps)] = places
    return list(best.values())


def _begun(graph: Graph, holders: Mapping[str, Collection[str]], favoured: str) -> dict[str, str]:
    """Return a cut in which every step is where most of its inputs are, and otherwise on the node `favoured`."""
    places: dict[str, str] = {}
    for name in graph.order:
        near = [places[ref.step] for ref in graph.steps[name].refs() if ref.step]
        held = holders.get(name) or (ROUTER,)
        places[name] = min(held, key=lambda node: (-near.count(node), node != favoured, node))
    return places


def _improved(
    graph: Graph, places: dict[str, str], holders: Mapping[str, Collection[str]], weigh: Weigh
) -> dict[str, str]:
    """Return `places` with steps moved, one at a time, as long as a move makes the request cheaper."""
    price = cost(graph, places, weigh)
    moved = True
    while moved:
        moved = False
        for name in graph.order:
            for node in sorted(holders.get(name, ())):
                other = {**places, name: node}
                cheaper = cost(graph, other, weigh)
                if cheaper < price:
                    places, price, moved = other, cheaper, True
    return places


def shares(graph: Graph, places: Places) -> dict[str, Share]:
    """Return what each place does, the router too. O(places x tensors)."""
    travelling = edges(graph, places)
    steps = graph.steps.values()
    waits: dict[str, dict[str, set[str]]] = {place: {} for place in {*places.values(), ROUTER}}
    inputs: dict[str, set[str]] = {place: set() for place in waits}
    for edge in travelling:
        if edge.ref.step:
            waits[edge.to].setdefault(edge.ref.step, set()).add(edge.ref.tensor)
    for step in steps:
        inputs[places[step.name]] |= {ref.tensor for ref in step.refs() if not ref.step}
    return {
        place: Share(
            mine=frozenset(name for name, at in places.items() if at == place),
            inputs=frozenset(inputs[place]),
            takes={name: frozenset(tensors) for name, tensors in taken.items()},
            gives=_gives(place, places, waits),
            answers=place == ROUTER,
        )
        for place, taken in waits.items()
    }


def _gives(
    place: str, places: Places, waits: Mapping[str, Mapping[str, Iterable[str]]]
) -> dict[str, dict[str, frozenset[str]]]:
    given: dict[str, dict[str, frozenset[str]]] = {}
    for other, taken in waits.items():
        for name, tensors in taken.items():
            if places[name] == place:
                given.setdefault(name, {})[other] = frozenset(tensors)
    return given


def may_leave(graph: Graph) -> bool:
    """Tell whether a request may be answered while some of its steps still run: those of branches nobody waits for."""
    pipeline = graph.pipeline
    sources = [source for step in pipeline.steps for source in step.inputs.values()] + list(pipeline.outputs.values())
    return any(len(source) > 1 for source in sources) or any(step.when is not None for step in pipeline.steps)
