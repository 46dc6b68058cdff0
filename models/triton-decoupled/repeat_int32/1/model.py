"""Answers one request several times, each after a delay that the request names."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from mesh.core.errors import InvalidRequest


class Model:
    """Keeps no state."""

    def infer(self, inputs: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Yield OUT = IN[i] (INT32 [1]) and IDX = i (UINT32 [1]) after DELAY[i] ms; return WAIT[0] ms after the last.

        Blocks the calling thread meanwhile. Raises InvalidRequest when IN and DELAY differ in length.
        """
        values, delays_ms = inputs["IN"], inputs["DELAY"]
        if len(values) != len(delays_ms):
            raise InvalidRequest(
                f"input 'DELAY' wants one delay for each of the {len(values)} elements of 'IN'; got {len(delays_ms)}"
            )
        for index, (value, delay_ms) in enumerate(zip(values, delays_ms, strict=True)):
            time.sleep(int(delay_ms) / 1000)
            yield {"OUT": np.array([value], np.int32), "IDX": np.array([index], np.uint32)}
        time.sleep(int(inputs["WAIT"][0]) / 1000)
