"""What one activity meets at the registry: told once per change of the reason, and the pause before the next try.

No answer of the registry ends an activity of a process that serves. It goes on with what it has, and says why.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

from mesh.core.errors import MeshError, RegistryRefused
from mesh.registry.etcd_errors import kind_of

_FIRST_PAUSE_S: Final = 0.05
_LAST_PAUSE_S: Final = 1.0
_LAST_REFUSED_PAUSE_S: Final = 5.0
"""What is refused has to be changed by a person; each process asks a few times a minute whether it was."""


class Trouble:
    """The state of one activity. `tell` is called with a sentence when trouble begins and when its reason changes."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._kind = ""
        self._failures = 0
        self._longest_s = _LAST_PAUSE_S
        self.why = ""
        """What the registry said last; empty while all is well."""
        self.since_s = 0.0
        """When it began, as `time.monotonic` counts."""

    def __repr__(self) -> str:
        """Show where it stands."""
        return f"<Trouble failures={self._failures} why={self.why!r}>"

    def met(self, error: MeshError) -> bool:
        """Take that a try failed; tell whether that is news."""
        self._failures += 1
        self._longest_s = _LAST_REFUSED_PAUSE_S if isinstance(error, RegistryRefused) else _LAST_PAUSE_S
        if not self.why:
            self.since_s = time.monotonic()
        self.why, news = error.message, kind_of(error) != self._kind
        if news:
            self._kind = kind_of(error)
            self._tell(error.message)
        return news

    def over(self) -> None:
        """Take that a try went well."""
        self._kind, self._failures, self.why = "", 0, ""

    @property
    def pause_s(self) -> float:
        """Seconds to wait before the next try."""
        return pause_s(self._failures, random.random(), self._longest_s)  # noqa: S311 - spreads load, no secret


def pause_s(failures: int, u: float, longest_s: float = _LAST_PAUSE_S) -> float:
    """Return the seconds before try number `failures` + 1: doubling, capped, spread over its upper half by `u`."""
    return min(longest_s, _FIRST_PAUSE_S * 2.0 ** min(max(0, failures - 1), 16)) * (0.5 + 0.5 * u)
