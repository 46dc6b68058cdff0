"""What a router says of its health: itself, the inference service, and every model by its name.

`""` and the inference service serve while the router sees a node that may take work; a model serves
when an inference would be tried. All are NOT_SERVING while the router drains, so that balancers leave first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Final

from mesh.api.messages import INFERENCE_SERVICE
from mesh.core.types import ModelName
from mesh.core.view import ClusterView
from mesh.registry.mirror import Mirror
from mesh.router.catalog import may_answer


class RouterHealth:
    """A `HealthSource`. `drain` turns everything to NOT_SERVING for good."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Say NOT_SERVING from now on."""
        self._draining.set()

    def is_ready(self) -> bool:
        """Tell whether an inference would be tried now: a node may take work."""
        nodes = self._mirror.view.nodes.values()
        return not self._draining.is_set() and any(not node.draining for node in nodes)

    def serving(self) -> Mapping[str, bool]:
        """Return every service and model with whether it serves, each found out when it is asked for."""
        return _Serving(self._mirror.view, ready=self.is_ready())

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


class _Serving(Mapping[str, bool]):
    """What serves in one view. Of very many models a check asks for one."""

    def __init__(self, view: ClusterView, *, ready: bool) -> None:
        self._view = view
        self._ready = ready

    def __getitem__(self, service: str) -> bool:
        if service in _WHOLE:
            return self._ready
        versions = self._view.models[ModelName(service)]
        return self._ready and any(may_answer(self._view, model) for model in versions.values())

    def __iter__(self) -> Iterator[str]:
        return chain(_WHOLE, self._view.models)

    def __len__(self) -> int:
        return len(_WHOLE) + len(self._view.models)


_WHOLE: Final = ("", INFERENCE_SERVICE.full_name)
