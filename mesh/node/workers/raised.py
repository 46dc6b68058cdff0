"""What models raise, in the log: once with its traceback, and not a thousand times a second."""

from __future__ import annotations

import time
from typing import Final

from mesh.core.types import ModelVersion
from mesh.core.view import VersionKey
from mesh.telemetry import logs

log = logs.get(__name__)

AGAIN_S: Final = 1.0
"""Between two tracebacks of one version."""

MOST_VERSIONS: Final = 1000
"""That are remembered before those are forgotten whose next failure would be logged anyway."""

MOST_CHARS: Final = 8000
"""Of a traceback: a recursion that went wrong has a thousand frames that say the same."""


class Raised:
    """The failures of all models of a node."""

    def __init__(self) -> None:
        self._last: dict[VersionKey, tuple[float, int]] = {}
        """When a version's failure was logged last, and how many were not since."""

    def tell(self, model: ModelVersion, text: str, traceback: str, request_id: str) -> None:
        """Log a failure, unless one of the same version was logged a moment ago."""
        now_s = time.monotonic()
        key = (model.name, model.version)
        last_s, left_out = self._last.get(key, (-AGAIN_S, 0))
        if now_s - last_s < AGAIN_S:
            self._last[key] = (last_s, left_out + 1)
            return
        if len(self._last) >= MOST_VERSIONS:
            self._last = {each: found for each, found in self._last.items() if now_s - found[0] < AGAIN_S}
        self._last[key] = (now_s, 0)
        if len(traceback) > MOST_CHARS:
            traceback = f"{traceback[: MOST_CHARS // 2]}\n...\n{traceback[-MOST_CHARS // 2 :]}"
        log.warning(
            "a model raised", model=model.name, version=model.version, error=text[:MOST_CHARS], request_id=request_id,
            not_logged=left_out, traceback=traceback,
        )  # fmt: skip

    def __repr__(self) -> str:
        """Show how many models failed."""
        return f"<Raised models={len(self._last)}>"
