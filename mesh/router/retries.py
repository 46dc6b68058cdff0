"""Whether a call of this router may be sent again: the rule of `mesh.core.traffic.retry`, with what the view knows."""

from __future__ import annotations

import time
from typing import Final

from mesh.api.clock import steady_s
from mesh.core.pipeline.spec import Pipeline
from mesh.core.suspects import is_suspect
from mesh.core.traffic.retry import MOST_DEATHS, Fate, Tries, may_retry
from mesh.core.types import ModelName, ModelVersion, NodeId, Version
from mesh.core.view import VersionKey
from mesh.registry.mirror import Mirror

WARY_S: Final = 10.0
"""How long this router takes a version for suspect after one call for it ended two processes: their nodes start again
within that, and tell the mesh what they died of. Calls meanwhile end one process each at most."""


class Retries:
    """One per router. `max_attempts` is how often a call is sent at most."""

    def __init__(self, mirror: Mirror, max_attempts: int) -> None:
        self._mirror = mirror
        self.max_attempts = max_attempts
        self._wary: dict[VersionKey, float] = {}

    def may_follow(
        self,
        tries: Tries,
        node: NodeId,
        fate: Fate,
        model: ModelVersion,
        pipeline: Pipeline | None = None,
        *,
        in_sequence: bool = False,
        free: bool = False,
    ) -> bool:
        """Note an attempt that failed; tell whether another copy may be asked. See `Tries.failed`."""
        suspect = fate is Fate.DIED and self.is_suspect(model, pipeline)
        most = self.max_attempts
        again = tries.failed(node, fate, max_attempts=most, in_sequence=in_sequence, suspect=suspect, free=free)
        if fate is Fate.DIED and tries.deaths >= MOST_DEATHS:
            self.beware(model)
        return again

    def may_leave(self, tries: Tries, model: ModelVersion, pipeline: Pipeline | None = None) -> bool:
        """Tell whether a call may go from a node that does not answer to another copy: as if that node had died.

        It may run in both places, and what made the first stand still may do so to the second.
        """
        suspect = self.is_suspect(model, pipeline)
        return may_retry(
            Fate.DIED,
            in_sequence=False,
            suspect=suspect,
            failures=tries.failures + 1,
            deaths=tries.deaths + 1,
            max_attempts=self.max_attempts,
        )

    def most_deaths(self, model: ModelVersion) -> int:
        """Return how many processes one step of a session may end: one when its model is suspect."""
        return 1 if self.is_suspect(model) else MOST_DEATHS

    def beware(self, model: ModelVersion) -> None:
        """Take a version for suspect for a moment: one call for it ended two processes."""
        self._wary[model.name, model.version] = time.monotonic() + WARY_S

    def is_suspect(self, model: ModelVersion, pipeline: Pipeline | None = None) -> bool:
        """Tell whether what a process died of may be a version, or one of the models of a pipeline. O(models)."""
        if self._wary and self._wary.get((model.name, model.version), 0.0) > time.monotonic():
            return True
        view, now_s = self._mirror.view, steady_s()
        models = [model]
        for name, version in pipeline.models() if pipeline is not None and view.suspects else ():
            found = view.resolve(ModelName(name), Version(version))
            models += [found] if found is not None else []
        return any(is_suspect(view.suspect(each), each.digest, now_s) for each in models)

    def __repr__(self) -> str:
        """Show how often."""
        return f"<Retries max_attempts={self.max_attempts}>"
