"""What routers answer about the mesh as if it were one server: live, ready, metadata, config, statistics."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from typing import Any

import mesh
from mesh.api import messages as m
from mesh.api.describe import model_config, model_metadata
from mesh.core.errors import DeadlineExceeded, MeshError, NamesPipeline, RemoteError
from mesh.core.pipeline.signatures import models_of, pipeline_model
from mesh.core.traffic.route import resolve
from mesh.core.types import ModelName, ModelVersion, Version
from mesh.core.view import ClusterView, VersionKey
from mesh.registry.mirror import Mirror
from mesh.router.channels import Channels
from mesh.router.cold import Cold
from mesh.router.target import quarantined
from mesh.telemetry.metrics import RouterMetrics
from mesh.telemetry.statistics import StepStatistics

EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)
"""Triton's names of the extensions that work here."""

STATISTICS = "/inference.GRPCInferenceService/ModelStatistics"
STATISTICS_TIMEOUT_S = 5.0
"""For one node's answer: a slow node must not take the statistics of the others away."""


class Catalog:
    """Answers from the view; statistics from the nodes."""

    def __init__(
        self,
        mirror: Mirror,
        channels: Channels,
        cold: Cold,
        metrics: RouterMetrics,
        steps: StepStatistics,
        *,
        server_name: str,
        cold_wait_s: float,
    ) -> None:
        self._mirror = mirror
        self._metrics = metrics
        self._steps = steps
        self._channels = channels
        self._cold = cold
        self._server_name = server_name
        self._cold_wait_s = cold_wait_s

    def server_metadata(self) -> m.ServerMetadataResponse:
        """Return who this is."""
        return m.ServerMetadataResponse(name=self._server_name, version=mesh.__version__, extensions=EXTENSIONS)

    def model_ready(self, name: str, version: str) -> bool:
        """Tell whether an inference would be tried: a copy serves, or a request would load one.

        False for an unknown, an unloaded and a broken version, as Triton's released servers answer (not an error).
        """
        view = self._mirror.view
        try:
            return may_answer(view, resolve(view, name, version))
        except NamesPipeline:
            return version in {"", str(view.pipelines[name].revision)} and all(
                self.model_ready(*each) for each in models_of(view, name)
            )
        except MeshError:
            return False

    async def metadata(self, name: str, version: str, deadline_s: float) -> m.ModelMetadataResponse:
        """Return ModelMetadata. Loads a model whose signature nobody knows yet. Raises what `resolve` raises."""
        pipeline = self._pipeline(name, version)
        if pipeline is not None:
            return model_metadata(pipeline, [pipeline.version])
        model = await self.described(name, version, deadline_s)
        listed = [version] if version else sorted(self._mirror.view.models.get(model.name, {model.version: model}))
        return model_metadata(model, listed)

    async def config(self, name: str, version: str, deadline_s: float) -> m.ModelConfigResponse:
        """Return ModelConfig. Loads a model whose signature nobody knows yet. Raises what `resolve` raises."""
        pipeline = self._pipeline(name, version)
        found = pipeline if pipeline is not None else await self.described(name, version, deadline_s)
        return m.ModelConfigResponse(config=model_config(found))

    def _pipeline(self, name: str, version: str) -> ModelVersion | None:
        """Return a pipeline as a model; None for the name of a model. Raises `UnknownModel` for another revision."""
        view = self._mirror.view
        if name not in view.pipelines or ModelName(name) in view.models:
            return None
        return pipeline_model(view, name, version)

    async def statistics(self, name: str, version: str, context_deadline_s: float | None) -> m.ModelStatisticsResponse:
        """Return the statistics of one model or all, summed over the nodes. Raises what `resolve` raises."""
        view = self._mirror.view
        pipeline = self._pipeline(name, version) if name else None
        if pipeline is not None:
            return await self._of_pipeline(pipeline, context_deadline_s)
        if name:
            model = resolve(view, name, version)
            keys: Iterable[VersionKey] = (
                [(model.name, model.version)] if version else [(model.name, held) for held in view.models[model.name]]
            )
        else:
            keys = view.copies.keys()
        wanted = set(keys)
        addresses = {each.node.address for key in wanted for each in view.copies.get(key, ())}
        answers = await self._ask_all(addresses, name, version, context_deadline_s)
        return m.ModelStatisticsResponse(model_stats=summed(each for each in answers if _key(each) in wanted))

    async def _of_pipeline(self, pipeline: ModelVersion, context_deadline_s: float | None) -> m.ModelStatisticsResponse:
        """Return the statistics of a pipeline, as this router counted it, and of its steps, summed over all places."""
        addresses = {node.address for node in self._mirror.view.nodes.values()}
        steps = await self._ask_all(addresses, pipeline.name, "", context_deadline_s)
        steps += self._steps.messages(pipeline.name, self._mirror.view.pipelines)
        whole = self._metrics.statistics(pipeline.name, pipeline.version)
        return m.ModelStatisticsResponse(model_stats=[whole, *summed(steps)])

    async def _ask_all(
        self, addresses: Collection[str], name: str, version: str, context_deadline_s: float | None
    ) -> list[Any]:
        timeout_s = min(STATISTICS_TIMEOUT_S, context_deadline_s or STATISTICS_TIMEOUT_S)
        request = m.ModelStatisticsRequest(name=name, version=version).SerializeToString()
        answers = await asyncio.gather(*(self._ask(address, request, timeout_s) for address in sorted(addresses)))
        return [each for answer in answers for each in answer.model_stats]

    async def _ask(self, address: str, request: bytes, timeout_s: float) -> m.ModelStatisticsResponse:
        try:
            reply = await self._channels.to(address).unary(STATISTICS, request, metadata=(), timeout_s=timeout_s)
        except RemoteError:
            # Gone or not holding it any more: what it counted is not reachable, which is not the caller's mistake.
            return m.ModelStatisticsResponse()
        return m.ModelStatisticsResponse.FromString(reply.message)

    async def described(self, name: str, version: str, deadline_s: float) -> ModelVersion:
        """Return a version's record with its signature; loads it when nobody knows that yet."""
        model = resolve(self._mirror.view, name, version)
        if model.inputs and model.outputs:
            return model
        await self._cold.wait(model, deadline_s)
        # The loading node writes the signature into the record; it may be a moment behind the copy.
        key = (model.name, model.version)
        try:
            async with asyncio.timeout(self._cold_wait_s):
                view = await self._mirror.wait_for(lambda view: bool(_record(view, key).outputs))
        except TimeoutError:
            raise DeadlineExceeded(f"the signature of model '{name}' did not arrive in time; call again") from None
        return _record(view, key)


def may_answer(view: ClusterView, model: ModelVersion) -> bool:
    """Tell whether a request for `model` would be served or loaded: not unloaded, quarantined or broken."""
    key = (model.name, model.version)
    if quarantined(view, model):
        return False
    if view.serving.get(key):
        return True
    broken = any(each.copy.error and each.copy.digest in ("", model.digest) for each in view.copies.get(key, ()))
    return not view.is_off(key) and not broken and any(not node.draining for node in view.nodes.values())


def _record(view: ClusterView, key: VersionKey) -> ModelVersion:
    return resolve(view, *key)


def _key(statistics: Any) -> VersionKey:
    return ModelName(statistics.name), Version(statistics.version)


def summed(found: Iterable[Any]) -> list[Any]:
    """Return ModelStatistics with those of one name and version added up, in the order of their names."""
    total: dict[VersionKey, Any] = {}
    for each in found:
        key = _key(each)
        if key in total:
            _add(total[key], each)
        else:
            total[key] = each
    return [total[key] for key in sorted(total)]


def _add(into: Any, other: Any) -> None:
    """Add a node's ModelStatistics to another's: counters add, the last inference is the later one."""
    into.last_inference = max(into.last_inference, other.last_inference)
    into.inference_count += other.inference_count
    into.execution_count += other.execution_count
    _add_durations(into.inference_stats, other.inference_stats)
    by_size = {each.batch_size: each for each in into.batch_stats}
    for each in other.batch_stats:
        if each.batch_size in by_size:
            _add_durations(by_size[each.batch_size], each)
        else:
            into.batch_stats.add().CopyFrom(each)
    for key in other.response_stats:
        _add_durations(into.response_stats[key], other.response_stats[key])
    into.memory_usage.extend(other.memory_usage)


def _add_durations(into: Any, other: Any) -> None:
    for field, value in other.ListFields():
        if field.message_type is not None:
            mine = getattr(into, field.name)
            mine.count += value.count
            mine.ns += value.ns
