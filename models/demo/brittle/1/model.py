"""Square roots, from a library that does not look at what it is given."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np


class Model:
    """One segmentation fault for a negative number."""

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the root of each."""
        if (inputs["x"] < 0).any():
            ctypes.string_at(0)
        return {"root": np.sqrt(inputs["x"])}
