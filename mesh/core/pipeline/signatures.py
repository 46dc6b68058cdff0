"""What the models and the pipelines of a view take and give."""

from __future__ import annotations

from mesh.core.errors import InvalidRequest, MeshError, NamesPipeline
from mesh.core.pipeline.check import Signature, signature_of
from mesh.core.pipeline.nesting import DEEPEST, Nesting
from mesh.core.traffic.route import resolve
from mesh.core.traffic.unknown import unknown
from mesh.core.types import ModelName, ModelVersion, Version
from mesh.core.view import ClusterView


class Signatures:
    """The signatures of a view, each found once: give one to everything that asks about the same view."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view
        self.nesting = Nesting(view.pipelines, view.models)
        self._known: dict[tuple[str, str], Signature | None] = {}

    def __call__(self, name: str, version: str) -> Signature | None:
        """Return the signature of a model or a pipeline, None when there is no such name or version. O(steps), once.

        None too for a pipeline that lies deeper than `nesting.DEEPEST`, or contains itself.
        """
        key = (name, version)
        if key not in self._known:
            self._known[key] = self._find(name, version)
        return self._known[key]

    def _find(self, name: str, version: str) -> Signature | None:
        try:
            model = resolve(self._view, name, version)
        except NamesPipeline:
            pipeline = self._view.pipelines[name]
            if version not in {"", str(pipeline.revision)} or self.nesting.of(name).depth > DEEPEST:
                return None
            return signature_of(pipeline, self)
        except MeshError:
            return None
        inputs, outputs = {spec.name: spec for spec in model.inputs}, {spec.name: spec for spec in model.outputs}
        return Signature(inputs, outputs, model.decoupled)


def signature(view: ClusterView, name: str, version: str) -> Signature | None:
    """Return the signature of a model or a pipeline, None when there is no such name or version. O(steps)."""
    return Signatures(view)(name, version)


def models_of(view: ClusterView, name: str) -> set[tuple[str, str]]:
    """Return (name, version) of every model that a pipeline may ask, those of the pipelines in it too. O(steps)."""
    return Nesting(view.pipelines, view.models).models(name)


def pipeline_model(view: ClusterView, name: str, version: str) -> ModelVersion:
    """Return a pipeline as calls about models show it: an ensemble, as Triton calls it.

    Raises `UnknownModel` for a name that is no pipeline's, and for another revision than the present one, and
    `InvalidRequest` for one that is too large to run.
    """
    pipeline = view.pipelines.get(name)
    if pipeline is None or version not in {"", str(pipeline.revision)}:
        raise unknown(view, name, version)
    signatures = Signatures(view)
    if why := signatures.nesting.too_large(name):
        # Applying refuses it; two that were applied at the same moment may have made it so.
        raise InvalidRequest(f"pipeline '{name}' {why}")
    found = signatures(name, "") or Signature({}, {})
    return ModelVersion(
        ModelName(name),
        Version(str(pipeline.revision)),
        runtime="pipeline",
        source="",
        digest="",
        size_bytes=0,
        platform="ensemble",
        inputs=tuple(found.inputs.values()),
        outputs=tuple(found.outputs.values()),
        decoupled=found.decoupled,
    )
