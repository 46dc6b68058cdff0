"""Measures one shape on its peers, in turns, so that a slow minute of the machine hits all alike."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figures
from benchmarks.load import LoadFailed, Sent, send
from benchmarks.machine import cpu_s, forget_peak, memory_bytes
from benchmarks.peers.base import Peer
from benchmarks.shapes import Shape

TRIAL = 64
"""Requests of the first of two trials: the second, longer one says how many fill the time."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long it takes: `runs` of `seconds` each, with `folder` as scratch space."""

    runs: int
    seconds: float
    folder: Path


def compare(peers: list[Peer], shape: Shape, effort: Effort) -> dict[str, Figures]:
    """Measure one shape on all peers, by their keys. A peer that fails requests is left out unless it is required.

    Raises `LoadFailed` for one that is.
    """
    print(f"\n{shape.title}", file=sys.stderr)
    counts: dict[str, int] = {}
    found: dict[str, Figures] = {}
    for run in range(-1, effort.runs):
        print(f"  run {run + 1} of {effort.runs}" if run >= 0 else "  trials", file=sys.stderr)
        for peer in peers:
            if run >= 0 and peer.key not in found:
                continue
            try:
                if run < 0:
                    counts[peer.key] = calibrated(peer, shape, effort)
                    found[peer.key] = Figures(peer.name)
                else:
                    measure(peer, shape, counts[peer.key], found[peer.key], effort.folder)
            except LoadFailed as error:
                if peer.required:
                    raise
                found.pop(peer.key, None)
                print(f"{peer.name} is left out of {shape.key}: {error}", file=sys.stderr)
    return found


def calibrated(peer: Peer, shape: Shape, effort: Effort) -> int:
    """Warm `peer` up and return how many requests fill the time. Raises `LoadFailed`."""
    count = TRIAL
    for share in (0.2, 1.0):
        sent = _send(peer, shape, count, effort.folder)
        count = max(TRIAL, int(count / sent.seconds * effort.seconds * share))
    return count


def measure(peer: Peer, shape: Shape, count: int, figures: Figures, folder: Path) -> None:
    """Run once and add the numbers. Raises `LoadFailed`."""
    if shape.memory:
        for pid in peer.parts.values():
            forget_peak(pid)
    before = {name: cpu_s(pid) for name, pid in peer.parts.items()}
    sent = _send(peer, shape, count, folder)
    used = {name: cpu_s(pid) - before[name] for name, pid in peer.parts.items()}
    figures.add(count=count, seconds=sent.seconds, cpu_s=used)
    if shape.latency:
        figures.latencies_us.append(sent.latency_s * 1e6)
    if shape.memory:
        peak = sum(memory_bytes(pid, "VmHWM") for pid in peer.parts.values())
        figures.memory_kb.append(max(0, peak - peer.resting_bytes) / shape.in_flight / 1024)


def _send(peer: Peer, shape: Shape, count: int, folder: Path) -> Sent:
    size = peer.answer_bytes[shape.method, shape.case.name]
    return send(shape.job(peer.address, size, count), folder, own=shape.own_client)
