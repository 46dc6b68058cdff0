"""What the models and the pipelines of a view take and give."""

from __future__ import annotations

from mesh.core.errors import MeshError, NamesPipeline
from mesh.core.pipeline.check import Signature, signature_of
from mesh.core.traffic.route import resolve
from mesh.core.traffic.unknown import unknown
from mesh.core.types import ModelName, ModelVersion, Version
from mesh.core.view import ClusterView

DEEPEST = 16
"""Pipelines in pipelines that are looked into: those that contain themselves end there."""


def signature(view: ClusterView, name: str, version: str, *, depth: int = 0) -> Signature | None:
    """Return the signature of a model or a pipeline, None when there is no such name or version. O(steps)."""
    try:
        model = resolve(view, name, version)
    except NamesPipeline:
        pipeline = view.pipelines[name]
        if version not in {"", str(pipeline.revision)} or depth > DEEPEST:
            return None
        return signature_of(pipeline, lambda step, held: signature(view, step, held, depth=depth + 1))
    except MeshError:
        return None
    inputs, outputs = {spec.name: spec for spec in model.inputs}, {spec.name: spec for spec in model.outputs}
    return Signature(inputs, outputs, model.decoupled)


def models_of(view: ClusterView, name: str, *, depth: int = 0) -> set[tuple[str, str]]:
    """Return (name, version) of every model that a pipeline may ask, those of the pipelines in it too. O(steps)."""
    found: set[tuple[str, str]] = set()
    pipeline = view.pipelines.get(name)
    for step in pipeline.steps if pipeline is not None and depth <= DEEPEST else ():
        if step.model in view.pipelines and step.model not in view.models:
            found |= models_of(view, step.model, depth=depth + 1)
        else:
            found.add((step.model, step.version))
    return found


def contains(view: ClusterView, name: str, within: str, *, depth: int = 0) -> bool:
    """Tell whether pipeline `name` is a step of `within`, or of a pipeline in it."""
    pipeline = view.pipelines.get(within)
    if pipeline is None or depth > DEEPEST:
        return False
    asked = {step.model for step in pipeline.steps} | {step.use_on_error for step in pipeline.steps}
    return name in asked or any(contains(view, name, each, depth=depth + 1) for each in asked)


def pipeline_model(view: ClusterView, name: str, version: str) -> ModelVersion:
    """Return a pipeline as calls about models show it: an ensemble, as Triton calls it.

    Raises `UnknownModel` for a name that is no pipeline's, and for another revision than the present one.
    """
    pipeline = view.pipelines.get(name)
    if pipeline is None or version not in {"", str(pipeline.revision)}:
        raise unknown(view, name, version)
    found = signature(view, name, "") or Signature({}, {})
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
