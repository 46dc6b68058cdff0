"""What model.yaml says about the processes of a model, checked."""

from __future__ import annotations

import math

from mesh.core.types import PLAIN_ISOLATION, Isolation

MOST_INSTANCES = 64
"""Processes of one copy: each has the model in memory, and more than cores run no faster."""

MOST_STREAMS = 1024
"""Threads of one process."""


def isolating(said: Isolation) -> Isolation | None:
    """Return what was said, None when it is what goes without saying. Raises ValueError for what cannot be meant."""
    checks = (
        (1 <= said.instances <= MOST_INSTANCES, "instances", f"from 1 to {MOST_INSTANCES}", said.instances),
        (0 <= said.streams <= MOST_STREAMS, "streams", f"from 0 to {MOST_STREAMS}", said.streams),
        (said.memory_limit_bytes >= 0, "memory_limit_bytes", "0 (none) or more", said.memory_limit_bytes),
        (0 < said.max_load_s < math.inf, "max_load_s", "more than 0", said.max_load_s),
        (0 <= said.max_run_s < math.inf, "max_run_s", "0 (none) or more", said.max_run_s),
    )
    for right, name, expected, came in checks:
        if not right:
            raise ValueError(f"{name} must be {expected}, got {came}")
    about_workers = said.instances > 1 or said.streams or said.python or said.memory_limit_bytes or said.max_run_s
    if about_workers and said.mode == "none":
        raise ValueError(
            "instances, streams, python, memory_limit_bytes and max_run_s are about worker processes; leave them out, "
            "or isolation: none"
        )
    return None if said == PLAIN_ISOLATION else said
