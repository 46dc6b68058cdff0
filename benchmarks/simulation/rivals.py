"""What else could have been done with the same room: Belady's optimum, LRU, and LRU behind consistent hashing.

All take models of one size. Each returns how many of the requests found their model in memory.
"""

from __future__ import annotations

from bisect import bisect
from collections import OrderedDict
from hashlib import blake2b
from heapq import heappop, heappush

from benchmarks.simulation.workloads import Trace

_POINTS = 100
"""Points of each node on the ring of consistent hashing."""


def belady(trace: Trace, room: int) -> int:
    """Evict what is asked for again latest: nobody can do better without knowing less. O(n log n)."""
    asked = trace.tolist()
    never = len(asked)
    next_at = [0] * never
    seen: dict[int, int] = {}
    for index in range(never - 1, -1, -1):
        next_at[index] = seen.get(asked[index], never + asked[index])
        seen[asked[index]] = index
    held: dict[int, int] = {}
    latest: list[tuple[int, int]] = []
    hits = 0
    for index, model in enumerate(asked):
        if model in held:
            hits += 1
        elif len(held) >= room:
            while True:
                when, victim = heappop(latest)
                if held.get(victim) == -when:
                    del held[victim]
                    break
        held[model] = next_at[index]
        heappush(latest, (-next_at[index], model))
    return hits


def lru(trace: Trace, room: int) -> int:
    """Evict what was used longest ago, of one memory of `room` models, as ModelMesh does. O(n)."""
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for model in trace.tolist():
        if model in held:
            hits += 1
            held.move_to_end(model)
        else:
            if len(held) >= room:
                held.popitem(last=False)
            held[model] = None
    return hits


def hashed(trace: Trace, rooms: list[int]) -> int:
    """Send each model to the node that consistent hashing gives, which evicts what was used longest ago. O(n)."""
    ring = sorted((_hash(f"node {node} {point}"), node) for node in range(len(rooms)) for point in range(_POINTS))
    places = [place for place, _ in ring]
    home = {model: ring[bisect(places, _hash(f"{model}")) % len(ring)][1] for model in set(trace.tolist())}
    held: list[OrderedDict[int, None]] = [OrderedDict() for _ in rooms]
    hits = 0
    for model in trace.tolist():
        node = home[model]
        if model in held[node]:
            hits += 1
            held[node].move_to_end(model)
            continue
        if len(held[node]) >= rooms[node]:
            if not rooms[node]:
                continue
            held[node].popitem(last=False)
        held[node][model] = None
    return hits


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
