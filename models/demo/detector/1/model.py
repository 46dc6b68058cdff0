"""Detects events in a signal that comes frame by frame: a sequence is one signal, its state what is usual in it."""

from __future__ import annotations

from typing import Any

import numpy as np

LEARNS = 0.05
"""Weight of a quiet frame in what is usual."""
WARM = 8
"""Frames before anything can be unusual."""
LOUD, QUIET = 6.0, 3.0
"""An event begins above so many deviations from what is usual, and ends below so many."""
LEAST = 1e-6


class Model:
    """Follows the mean and deviation of each signal's loudness."""

    def infer(self, inputs: dict[str, np.ndarray], sequences: list[Any]) -> dict[str, np.ndarray]:
        """Return for each frame FP32 [n, 64] its `event`, BYTES [n, 1], and `level` FP32 [n, 1].

        An event is "begin", "end" or empty; the level is the frame's loudness in deviations from what is usual.
        """
        loudness = np.sqrt(np.mean(np.square(inputs["frame"], dtype=np.float64), axis=1))
        found = [_heard(each.state, float(value)) for each, value in zip(sequences, loudness, strict=True)]
        events = np.array([[event.encode()] for event, _ in found], object)
        return {"event": events, "level": np.array([[level] for _, level in found], np.float32)}


def _heard(state: dict[str, Any], loudness: float) -> tuple[str, float]:
    """Take one frame of a signal into its state; return the event and the level."""
    frames = state.get("frames", 0)
    mean, spread = state.get("mean", loudness), state.get("spread", 0.0)
    inside = state.get("inside", False)
    level = (loudness - mean) / max(spread, LEAST * max(1.0, mean), 0.02 * mean)
    event = ""
    if frames >= WARM and not inside and level > LOUD:
        event, inside = "begin", True
    elif inside and level < QUIET:
        event, inside = "end", False
    if not inside:
        weight = max(LEARNS, 1 / (frames + 1))
        spread += weight * (abs(loudness - mean) - spread)
        mean += weight * (loudness - mean)
    state.update(frames=frames + 1, mean=mean, spread=spread, inside=inside)
    return event, level
