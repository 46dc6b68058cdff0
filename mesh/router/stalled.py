"""What becomes of a call at a node that does not answer for now: whether another copy is asked, or it waits on.

A node is silent when it is stopped, cut off, or busy for longer than it should be (`mesh.wire.alive`). It may yet
answer, so that a call leaves it only for somebody: another copy that answers. Then the rules are those of a node that
died in the course of the call (`mesh.core.traffic.retry`), as the call may run on where it is.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from mesh.core.errors import MeshError
from mesh.core.pipeline.spec import Pipeline
from mesh.core.traffic.balance import Balancer
from mesh.core.traffic.retry import Tries
from mesh.core.traffic.route import resolve
from mesh.core.types import ModelVersion, NodeId
from mesh.core.view import Host, VersionKey
from mesh.registry.mirror import Mirror
from mesh.router.retries import Retries


class Stalled:
    """Answers for the calls of one router."""

    def __init__(self, mirror: Mirror, balancer: Balancer, retries: Retries) -> None:
        self._mirror = mirror
        self._balancer = balancer
        self._retries = retries

    def has_other(self, node: Host, model: VersionKey, tried: Collection[NodeId] = ()) -> bool:
        """Tell whether a copy on another node answers, as far as is known. O(copies)."""
        now_s = time.monotonic()
        return any(
            each.node.id != node.id and each.node.id not in tried and not self._balancer.is_suspect(each.node, now_s)
            for each in self._mirror.view.serving.get(model, ())
        )

    def leaves(
        self,
        node: Host,
        model: ModelVersion,
        tries: Tries,
        pipeline: Pipeline | None = None,
        *,
        long: bool,
        movable: bool = True,
    ) -> bool:
        """Tell whether a call at a silent node ends there now.

        One that is `movable`, as its message is here and nothing was answered, goes to another copy. When it has been
        `long`, one that could have been answered elsewhere, but may not be sent again, fails. O(copies of its models).
        """
        goes = movable and self._retries.may_leave(tries, model, pipeline)
        if not goes and not long:
            return False
        if pipeline is None:
            return self.has_other(node, (model.name, model.version), tries.tried)
        return all(self.has_other(node, key) for key in self._models(pipeline))

    def _models(self, pipeline: Pipeline) -> list[VersionKey]:
        view, found = self._mirror.view, []
        for name, version in pipeline.models():
            try:
                model = resolve(view, name, version)
            except MeshError:
                continue
            found.append((model.name, model.version))
        return found

    def __repr__(self) -> str:
        """Show whom it asks."""
        return f"<Stalled {self._balancer!r}>"
