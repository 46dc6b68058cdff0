"""Whether a node fails to load what others can: a wrong image, a missing driver, a share that is not mounted.

Such a node says so, gets no more models and reports itself not ready, so that a rollout stops at it. Pure; the caller
tells what happened and when.
"""

from __future__ import annotations

from typing import Final

from mesh.core.view import VersionKey

ENOUGH: Final = 3
"""Different versions that failed here one after another while other nodes held them."""

TRY_AGAIN_S: Final = 60.0
"""After this long it is given one more load: what was wrong may have been mended."""


class Failing:
    """What this node failed to load since it last loaded anything."""

    def __init__(self) -> None:
        self._failed: dict[VersionKey, str] = {}
        self._since_s = 0.0

    def loaded(self) -> None:
        """Note a load that went well: the node works."""
        self._failed.clear()

    def failed(self, key: VersionKey, error: str, now_s: float, *, elsewhere: bool) -> None:
        """Note a load that failed; `elsewhere`: another node holds the version, so that it can be loaded."""
        if elsewhere:
            self._failed[key] = error
            self._since_s = now_s

    def why(self, now_s: float) -> str:
        """Return why the node should get no more models now; empty when it may."""
        if len(self._failed) < ENOUGH or now_s - self._since_s >= TRY_AGAIN_S:
            return ""
        (name, version), error = next(reversed(self._failed.items()))
        return (
            f"it failed to load {len(self._failed)} models that other nodes hold, '{name}' version {version}: {error}"
        )

    def __repr__(self) -> str:
        """Show the count."""
        return f"<Failing {len(self._failed)}>"
