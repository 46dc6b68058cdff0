"""What a router says of its health: itself, the inference service, and every model by its name.

`""` and the inference service serve while the router sees a node that may take work; a model serves
when an inference would be tried. All are NOT_SERVING while the router drains, so that balancers leave first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from mesh.api.messages import INFERENCE_SERVICE
from mesh.core.view import ClusterView
from mesh.registry.mirror import Mirror
from mesh.router.catalog import may_answer


class RouterHealth:
    """A `HealthSource`. `drain` turns everything to NOT_SERVING for good."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._draining = asyncio.Event()
        self._answered: tuple[ClusterView, bool, Mapping[str, bool]] | None = None

    def drain(self) -> None:
        """Say NOT_SERVING from now on."""
        self._draining.set()

    def is_ready(self) -> bool:
        """Tell whether an inference would be tried now: a node may take work."""
        nodes = self._mirror.view.nodes.values()
        return not self._draining.is_set() and any(not node.draining for node in nodes)

    def serving(self) -> Mapping[str, bool]:
        """Return every service and model with whether it serves. O(models) once per view, then O(1)."""
        view, ready = self._mirror.view, self.is_ready()
        if self._answered is None or self._answered[0] is not view or self._answered[1] is not ready:
            said = {
                str(name): ready and any(may_answer(view, model) for model in versions.values())
                for name, versions in view.models.items()
            }
            said[""] = said[INFERENCE_SERVICE.full_name] = ready
            self._answered = (view, ready, said)
        return self._answered[2]

    async def changed(self) -> None:
        """Return at the next view or when draining begins."""
        if self._draining.is_set():
            await asyncio.Event().wait()  # Nothing changes any more.
        draining = asyncio.ensure_future(self._draining.wait())
        moved = asyncio.ensure_future(self._mirror.next(self._mirror.view))
        try:
            await asyncio.wait((draining, moved), return_when=asyncio.FIRST_COMPLETED)
        finally:
            draining.cancel()
            moved.cancel()
