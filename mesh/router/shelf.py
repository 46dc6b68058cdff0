"""The pipelines of the mesh: checked and stored, listed, forgotten. Written with compare-and-swap."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from mesh.api.messages import control
from mesh.api.pipelines import pipeline_message, read_pipeline
from mesh.core.errors import Conflict, MeshError, UnknownModel
from mesh.core.pipeline.check import MOST_PROBLEMS, Problem, check
from mesh.core.pipeline.nesting import Nesting
from mesh.core.pipeline.signatures import Signatures, signature
from mesh.core.pipeline.spec import Pipeline
from mesh.core.traffic.route import resolve
from mesh.core.types import ModelName
from mesh.core.view import ClusterView
from mesh.registry import records
from mesh.registry.keys import pipeline_key
from mesh.registry.mirror import Mirror
from mesh.registry.store import Store
from mesh.router.catalog import Catalog
from mesh.telemetry import logs

log = logs.get(__name__)

TRIES = 10
"""Compare-and-swap tries: a key that ten others changed in a row is a fault to report, not to wait out."""


class PipelineShelf:
    """ApplyPipeline, ListPipelines and DeletePipeline."""

    def __init__(self, mirror: Mirror, store: Store, catalog: Catalog) -> None:
        self._mirror = mirror
        self._store = store
        self._catalog = catalog

    async def apply(self, request: control.ApplyPipelineRequest, deadline_s: float) -> control.ApplyPipelineResponse:
        """Check a pipeline and store it if it makes sense and is not there just so. Raises `RegistryUnavailable`.

        Models whose signature nobody knows yet are loaded for it, until `deadline_s` (monotonic).
        """
        pipeline, problems = await asyncio.to_thread(read_pipeline, request.pipeline)
        if not problems:
            problems = await self._check(pipeline, deadline_s)
        if problems:
            return control.ApplyPipelineResponse(
                pipeline=pipeline_message(pipeline),
                problems=[control.Problem(path=_path(each), message=each.message) for each in problems],
            )
        stored, changed = await self._store_it(pipeline, dry_run=request.dry_run)
        return control.ApplyPipelineResponse(pipeline=pipeline_message(stored), changed=changed)

    def listed(self, name: str) -> control.ListPipelinesResponse:
        """Return every pipeline, or the one that is called so. Raises `UnknownModel`."""
        pipelines = self._mirror.view.pipelines
        if name and name not in pipelines:
            raise UnknownModel(f"expected the name of a pipeline, '{name}' is none")
        names = [name] if name else sorted(pipelines)
        return control.ListPipelinesResponse(pipelines=[pipeline_message(pipelines[each]) for each in names])

    async def delete(self, name: str) -> control.DeletePipelineResponse:
        """Forget a pipeline. Requests that run finish. Raises `UnknownModel` and `RegistryUnavailable`."""
        if not name or not await self._store.delete(pipeline_key(name)):
            raise UnknownModel(f"expected the name of a pipeline, '{name}' is none")
        log.info("deleted a pipeline", pipeline=name)
        return control.DeletePipelineResponse()

    async def _check(self, pipeline: Pipeline, deadline_s: float) -> list[Problem]:
        view = self._mirror.view
        for model, version in sorted({(step.model, step.version) for step in pipeline.steps}):
            held = view.models.get(ModelName(model))
            known = signature(view, model, version) if held is not None else None
            if known is not None and not known.outputs:
                try:
                    await self._catalog.described(model, version, deadline_s)
                except MeshError as error:
                    log.info("a step's signature is not known", model=model, why=error.message)
        # A large one takes a while, and a view never changes.
        return await asyncio.to_thread(_problems, pipeline, self._mirror.view)

    async def _store_it(self, pipeline: Pipeline, *, dry_run: bool) -> tuple[Pipeline, bool]:
        key = pipeline_key(pipeline.name)
        for _ in range(TRIES):
            entry = await self._store.get(key)
            before = records.decode_pipeline(entry.value) if entry is not None else None
            if before is not None and replace(pipeline, revision=before.revision) == before:
                return before, False
            after = replace(pipeline, revision=before.revision + 1 if before is not None else 1)
            if dry_run:
                return after, True
            expected = entry.mod_revision if entry is not None else 0
            written = await self._store.replace(key, records.encode(after), expected=expected)
            if written is not None:
                log.info("applied a pipeline", pipeline=after.name, revision=after.revision, steps=len(after.steps))
                await self._seen(written)
                return after, True
        raise Conflict(f"pipeline '{pipeline.name}' was changed by others {TRIES} times in a row; apply it again")

    async def _seen(self, revision: int) -> None:
        """Return when this router's view has `revision`: the caller may send its first request here at once."""
        await self._mirror.wait_for(lambda view: view.revision >= revision)

    def __repr__(self) -> str:
        """Show how many there are."""
        return f"<PipelineShelf pipelines={len(self._mirror.view.pipelines)}>"


def _problems(pipeline: Pipeline, view: ClusterView) -> list[Problem]:
    """Return what is wrong with a pipeline among the others of a view. O(steps of all pipelines)."""
    problems = []
    if ModelName(pipeline.name) in view.models:
        problems.append(Problem(("name",), f"expected a name of its own, there is a model '{pipeline.name}'"))
    around = Nesting(view.pipelines, view.models).around(pipeline.name)
    for index, step in enumerate(pipeline.steps):
        for name, _ in step.models():
            if name in around:
                message = f"expected a pipeline without this one in it, '{name}' contains '{pipeline.name}'"
                problems.append(Problem(("steps", index, "model"), message))
        problems += _off(view, index, step.model, step.version)
    return (problems or _too_large(pipeline, view) or check(pipeline, Signatures(view)))[:MOST_PROBLEMS]


def _too_large(pipeline: Pipeline, view: ClusterView) -> list[Problem]:
    """Return the problem of a pipeline that would be too large, or make one too large that it is in."""
    after = Nesting({**view.pipelines, pipeline.name: pipeline}, view.models)
    before = Nesting(view.pipelines, view.models)
    if why := after.too_large(pipeline.name):
        return [Problem(("steps",), f"the pipeline {why}")]
    for name in view.pipelines:
        why = after.too_large(name)
        if why and not before.too_large(name):
            return [Problem(("steps",), f"pipeline '{name}', which has this one in it, then {why}")]
    return []


def _off(view: ClusterView, index: int, model: str, version: str) -> list[Problem]:
    """Return the problem of a model that is there and was unloaded: requests would not load it again."""
    if ModelName(model) not in view.models:
        return []
    try:
        resolve(view, model, version)
    except MeshError as error:
        return [Problem(("steps", index, "model"), error.message)]
    return []


def _path(problem: Problem) -> str:
    return str(problem).partition(": ")[0]
