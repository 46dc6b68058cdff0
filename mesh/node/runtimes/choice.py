"""Which runtime loads a version: by its kind, and by whether it may run in the node's own process."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final, Literal

from mesh.core.errors import LoadFailed
from mesh.core.types import ModelVersion
from mesh.node.journal import Journal
from mesh.node.runtimes.base import Loaded, LoadSpec, Runtime
from mesh.node.suspects import Suspects
from mesh.node.workers.runtime import WorkerRuntime

SUPPORTED: Final = sys.platform == "linux"
"""Workers need Linux: sealed shared memory, and a way to end all that a process started."""


class Runtimes:
    """The runtimes of one node. `workers` runs versions in processes of their own."""

    def __init__(
        self,
        by_kind: Mapping[str, Runtime],
        suspects: Suspects,
        journal: Journal,
        workers: WorkerRuntime,
        *,
        isolation: Literal["process", "none", "all"] = "process",
    ) -> None:
        """`isolation`: where Python models run that say nothing of it; "all": in workers, whatever they say."""
        self._by_kind = by_kind
        self._journal = journal
        self._workers = workers
        self._isolation = isolation
        self.suspects = suspects

    def of(self, model: ModelVersion) -> Runtime | WorkerRuntime:
        """Return what loads a version. Raises `LoadFailed`."""
        runtime = self._by_kind.get(model.runtime)
        if runtime is None:
            raise LoadFailed(f"failed to load '{model.name}', this node has no runtime '{model.runtime}'")
        if not runtime.in_process:
            return runtime
        suspect = self.suspects.must_isolate(model)
        if not (suspect or self._wants_worker(model)):
            return runtime
        if not SUPPORTED:
            if suspect:
                raise LoadFailed(
                    f"failed to load '{model.name}', it ended a node's process and runs in one of its own from then "
                    f"on, which needs Linux; change its files, or call 'mesh models release {model.name}'"
                )
            return runtime
        return self._workers

    def _wants_worker(self, model: ModelVersion) -> bool:
        mode = model.process.mode
        if model.runtime != "python":
            return mode == "process"
        return self._isolation == "all" or mode == "process" or (not mode and self._isolation == "process")

    def load(self, runtime: Runtime, spec: LoadSpec) -> Loaded:
        """Load, in a thread; in this process under the journal's eyes. Raises `LoadFailed` with a sentence."""
        return self._journal.load(runtime, spec) if runtime.in_process else runtime.load(spec)

    def __repr__(self) -> str:
        """Show the kinds."""
        return f"<Runtimes {sorted(self._by_kind)} isolation={self._isolation}>"
