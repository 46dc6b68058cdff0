"""Which runtime loads a version: by its kind, and by whether it may run in the node's own process."""

from __future__ import annotations

from collections.abc import Mapping

from mesh.core.errors import LoadFailed
from mesh.core.types import ModelVersion
from mesh.node.journal import Journal
from mesh.node.runtimes.base import Loaded, LoadSpec, Runtime
from mesh.node.suspects import Suspects


class Runtimes:
    """The runtimes of one node. `isolated` runs versions in processes of their own; None: nothing here does."""

    def __init__(
        self, by_kind: Mapping[str, Runtime], suspects: Suspects, journal: Journal, isolated: Runtime | None = None
    ) -> None:
        self._by_kind = by_kind
        self._journal = journal
        self._isolated = isolated
        self.suspects = suspects

    def of(self, model: ModelVersion) -> Runtime:
        """Return what loads a version. Raises `LoadFailed`."""
        runtime = self._by_kind.get(model.runtime)
        if runtime is None:
            raise LoadFailed(f"failed to load '{model.name}', this node has no runtime '{model.runtime}'")
        if not runtime.in_process or not self.suspects.must_isolate(model):
            return runtime
        if self._isolated is None:
            raise LoadFailed(
                f"failed to load '{model.name}', it ended a node's process and runs in one of its own from then on, "
                f"which this node does not offer; change its files, or call 'mesh models release {model.name}'"
            )
        return self._isolated

    def load(self, runtime: Runtime, spec: LoadSpec) -> Loaded:
        """Load, in a thread; in this process under the journal's eyes. Raises `LoadFailed` with a sentence."""
        return self._journal.load(runtime, spec) if runtime.in_process else runtime.load(spec)

    def __repr__(self) -> str:
        """Show the kinds."""
        return f"<Runtimes {sorted(self._by_kind)} isolated={self._isolated is not None}>"
