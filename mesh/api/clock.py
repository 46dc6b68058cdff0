"""The clock that a process measures ages by: reads like the wall clock, and is never set.

Ages are differences between two times of one such clock. The times of two processes are never compared: their machines'
clocks may be hours apart. A record that another process wrote is as old as it has been known here
(`mesh.core.sightings`), or whoever wrote it says itself when it is over; its own times are for people.
"""

from __future__ import annotations

import time
from typing import Final

_BEGAN_S: Final = time.time() - time.monotonic()


def steady_s() -> float:
    """Return the time: seconds since 1970-01-01 UTC as this process saw it when it began, and monotonic since."""
    return time.monotonic() + _BEGAN_S
