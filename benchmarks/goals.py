"""What the mesh shall reach, each goal beside what was measured. Pure: figures in, rows out.

A goal is a ratio of two readings, or one reading, and a bound. What could not be measured is neither met nor missed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.figures import Figures, Results

DIRECT = "node"
"""The peer that latency is added to."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """Something that is compared: how it is read from figures and how it is written."""

    of: Callable[[Figures], float]
    unit: str
    added: bool = False
    """Whether what the direct way to the node takes in the same shape is taken off."""


CPU = Quantity(Figures.cpu, "µs")
RATE = Quantity(Figures.rate, "/s")
MEMORY = Quantity(Figures.memory, "KB")
ADDED = Quantity(Figures.latency, "µs", added=True)


@dataclass(frozen=True, slots=True)
class Goal:
    """`what` is at most or at least `bound`: the ratio of ours to theirs, or ours where there are no others."""

    what: str
    quantity: Quantity
    ours: tuple[str, str]
    """Keys of shape and peer."""
    theirs: tuple[str, str] | None
    at_most_more: float | None = None
    """Bound of ours less theirs."""
    at_most: float | None = None
    """Bound of ours to theirs."""
    times_less: float | None = None
    """Least ratio of theirs to ours."""
    times_more: float | None = None
    """Least ratio of ours to theirs."""


GOALS = (
    Goal("router, small unary: CPU to Envoy's", CPU, ("proxy-small", "router"), ("proxy-small", "envoy"), at_most=1.0),
    Goal("router, own headers: CPU to Envoy's", CPU, ("proxy-fair", "router"), ("proxy-fair", "envoy"), at_most=1.2),
    Goal(
        "router, small unary: CPU to a grpc.aio proxy's",
        CPU,
        ("proxy-small", "router"),
        ("proxy-small", "aio-proxy"),
        times_less=12,
    ),
    Goal(
        "router, one at a time: added latency to Envoy's",
        ADDED,
        ("proxy-latency", "router"),
        ("proxy-latency", "envoy"),
        at_most=1.0,
    ),
    Goal("router, 600 KB: CPU to Envoy's", CPU, ("proxy-large", "router"), ("proxy-large", "envoy"), at_most=1.5),
    Goal("router, 600 KB: memory per request in flight", MEMORY, ("proxy-memory", "router"), None, at_most=256),
    Goal("router, streams: CPU to Envoy's", CPU, ("proxy-stream", "router"), ("proxy-stream", "envoy"), at_most=2.0),
    Goal(
        "router, streams: CPU to a grpc.aio proxy's",
        CPU,
        ("proxy-stream", "router"),
        ("proxy-stream", "aio-proxy"),
        times_less=8,
    ),
    Goal(
        "router: CPU of a message to a small unary's",
        CPU,
        ("proxy-stream", "router"),
        ("proxy-small", "router"),
        at_most=0.5,
    ),
    Goal("node, small MLP: CPU", CPU, ("server-small", "node"), None, at_most=40),
    Goal(
        "node, small MLP: CPU to a grpc.aio echo's",
        CPU,
        ("server-small", "node"),
        ("server-small", "echo"),
        at_most=0.15,
    ),
    Goal(
        "node, small MLP: rate to MLServer's",
        RATE,
        ("server-small", "node"),
        ("server-small", "mlserver"),
        times_more=8,
    ),
    Goal("node, small MLP: rate to Triton's", RATE, ("server-small", "node"), ("server-small", "triton"), times_more=4),
    Goal(
        "worker, small MLP: rate to Triton's",
        RATE,
        ("server-small", "worker"),
        ("server-small", "triton"),
        times_more=4,
    ),
    Goal(
        "worker, small MLP: CPU to Triton's", CPU, ("server-small", "worker"), ("server-small", "triton"), at_most=0.5
    ),
    Goal(
        "worker, 600 KB: rate to Triton's", RATE, ("server-large", "worker"), ("server-large", "triton"), times_more=2
    ),
    Goal(
        "worker, one at a time: median beyond in the node",
        Quantity(Figures.latency, "µs"),
        ("server-latency", "worker"),
        ("server-latency", "hosted"),
        at_most_more=150,
    ),
    Goal(
        "node, 600 KB: rate to MLServer's", RATE, ("server-large", "node"), ("server-large", "mlserver"), times_more=6
    ),
    Goal(
        "node: CPU of a message to a small unary's",
        CPU,
        ("server-stream", "node"),
        ("server-small", "node"),
        at_most=0.5,
    ),
)

HEADER = ("goal", "measured", "against", "ratio", "target", "verdict")


def rows(results: Results) -> list[tuple[str, ...]]:
    """Return a row of `HEADER`'s columns per goal of which our side was measured."""
    return [row(goal, results) for goal in GOALS if goal.ours in results]


def row(goal: Goal, results: Results) -> tuple[str, ...]:
    """Return one goal's row."""
    ours = reading(goal.quantity, goal.ours, results)
    theirs = reading(goal.quantity, goal.theirs, results) if goal.theirs else None
    shown = (_written(ours, goal.quantity), _written(theirs, goal.quantity) if goal.theirs else "")
    if ours is None or (goal.theirs and theirs is None):
        return (goal.what, *shown, "-", target(goal), "not measured")
    if theirs is None:
        return (goal.what, *shown, "", target(goal), "met" if _met(goal, ours) else "missed")
    if goal.at_most_more is not None:
        more = ours - theirs
        return (goal.what, *shown, f"{more:+,.0f}", target(goal), "met" if more <= goal.at_most_more else "missed")
    ratio = _ratio(theirs, ours) if goal.times_less is not None else _ratio(ours, theirs)
    return (goal.what, *shown, f"{ratio:.2f}x", target(goal), "met" if _met(goal, ratio) else "missed")


def reading(quantity: Quantity, where: tuple[str, str], results: Results) -> float | None:
    """Return what was measured there, None when nothing was."""
    figures = results.get(where)
    direct = results.get((where[0], DIRECT)) if quantity.added else None
    if figures is None or (quantity.added and direct is None):
        return None
    return quantity.of(figures) - (quantity.of(direct) if direct is not None else 0.0)


def target(goal: Goal) -> str:
    """Return the bound as tables show it."""
    if goal.at_most_more is not None:
        return f"≤ {goal.at_most_more:g} {goal.quantity.unit} more"
    if goal.at_most is not None:
        return f"≤ {goal.at_most:g}x" if goal.theirs else f"≤ {goal.at_most:g} {goal.quantity.unit}"
    return f"≥ {goal.times_less:g}x less" if goal.times_less is not None else f"≥ {goal.times_more:g}x"


def _met(goal: Goal, value: float) -> bool:
    if goal.at_most is not None:
        return value <= goal.at_most
    return value >= (goal.times_less or goal.times_more or 0.0)


def _ratio(over: float, under: float) -> float:
    return over / under if under else float("inf")


def _written(value: float | None, quantity: Quantity) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f} {quantity.unit}" if quantity.unit != "/s" else f"{value:,.0f}/s"
