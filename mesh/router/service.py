"""The plain grpcio services of a router: all of the inference service but the hot methods, and mesh.v1 control.

Each method reads its request, calls one function and writes the answer; errors become statuses in one place.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from mesh.api import messages as m
from mesh.api.clock import steady_s
from mesh.api.describe import node_message
from mesh.api.details import trailers_of
from mesh.api.messages import control
from mesh.api.status import status_of
from mesh.core.errors import InvalidRequest, LoadFailed, MeshError, NamesPipeline, Unimplemented
from mesh.core.placement.explain import explain, without_node
from mesh.core.traffic.route import resolve
from mesh.core.types import NodeId
from mesh.registry.mirror import Mirror
from mesh.router.catalog import Catalog
from mesh.router.describe import explanation
from mesh.router.dispatch import Dispatch
from mesh.router.override import check_file_path
from mesh.router.repository import Repository
from mesh.router.settings import Settings
from mesh.router.shelf import PipelineShelf
from mesh.telemetry import logs

log = logs.get(__name__)

SHARED_MEMORY = "Client shared memory is disabled: this server reads tensors from the message alone"
"""The text of a Triton whose client shared memory is off, which is its default too."""


class InferenceService:
    """inference.GRPCInferenceService but ModelInfer and ModelStreamInfer."""

    def __init__(
        self,
        catalog: Catalog,
        repository: Repository,
        settings: Settings,
        *,
        is_ready: Callable[[], bool],
        default_wait_s: float,
    ) -> None:
        self._catalog = catalog
        self._repository = repository
        self._settings = settings
        self._is_ready = is_ready
        self._default_wait_s = default_wait_s

    async def ServerLive(self, request: Any, context: Any) -> m.ServerLiveResponse:
        return m.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> m.ServerReadyResponse:
        return m.ServerReadyResponse(ready=self._is_ready())

    async def ServerMetadata(self, request: Any, context: Any) -> m.ServerMetadataResponse:
        return self._catalog.server_metadata()

    async def ModelReady(self, request: m.ModelReadyRequest, context: Any) -> m.ModelReadyResponse:
        return m.ModelReadyResponse(ready=self._is_ready() and self._catalog.model_ready(request.name, request.version))

    async def ModelMetadata(self, request: m.ModelMetadataRequest, context: Any) -> Any:
        return await told(context, self._catalog.metadata(request.name, request.version, self._deadline_s(context)))

    async def ModelConfig(self, request: m.ModelConfigRequest, context: Any) -> Any:
        return await told(context, self._catalog.config(request.name, request.version, self._deadline_s(context)))

    async def ModelStatistics(self, request: m.ModelStatisticsRequest, context: Any) -> Any:
        left_s = context.time_remaining()
        return await told(context, self._catalog.statistics(request.name, request.version, left_s))

    async def RepositoryIndex(self, request: m.RepositoryIndexRequest, context: Any) -> Any:
        return await self._repository.index(ready_only=request.ready)

    async def RepositoryModelLoad(self, request: m.RepositoryModelLoadRequest, context: Any) -> Any:
        name = _model_of(request)

        async def load() -> m.RepositoryModelLoadResponse:
            config = ""
            for key, value in request.parameters.items():
                if key.startswith("file:"):
                    check_file_path(name, key)
                    raise LoadFailed(
                        f"failed to load '{name}', files in a load request are not offered: put them into a model "
                        "repository that the nodes read"
                    )
                if key != "config":
                    raise InvalidRequest(f"load parameter '{key}' is not known: expected 'config'")
                config = value.string_param
            await self._repository.load(name, self._deadline_s(context), config)
            answer = m.RepositoryModelLoadResponse()
            if not request.model_name:
                answer.model_name, answer.isLoaded = name, True
            return answer

        return await told(context, load())

    async def RepositoryModelUnload(self, request: m.RepositoryModelUnloadRequest, context: Any) -> Any:
        name = _model_of(request)

        async def unload() -> m.RepositoryModelUnloadResponse:
            await self._repository.unload(name, self._deadline_s(context))
            answer = m.RepositoryModelUnloadResponse()
            if not request.model_name:
                answer.model_name, answer.isUnloaded = name, True
            return answer

        return await told(context, unload())

    async def TraceSetting(self, request: Any, context: Any) -> Any:
        return await told(context, _later(lambda: self._settings.trace(request)))

    async def LogSettings(self, request: Any, context: Any) -> Any:
        return await told(context, _later(lambda: self._settings.logging(request)))

    async def _shared_memory(self, request: Any, context: Any) -> Any:
        await context.abort(*status_of(Unimplemented(SHARED_MEMORY)))

    SystemSharedMemoryStatus = SystemSharedMemoryRegister = SystemSharedMemoryUnregister = _shared_memory
    CudaSharedMemoryStatus = CudaSharedMemoryRegister = CudaSharedMemoryUnregister = _shared_memory

    def _deadline_s(self, context: Any) -> float:
        left_s = context.time_remaining()
        return time.monotonic() + (self._default_wait_s if left_s is None else left_s)


class ControlService:
    """mesh.v1.MeshControl."""

    def __init__(
        self,
        mirror: Mirror,
        repository: Repository,
        shelf: PipelineShelf,
        dispatch: Dispatch,
        *,
        default_wait_s: float,
    ) -> None:
        self._mirror = mirror
        self._pipelines = dispatch.pipelines
        self._sessions = dispatch.sessions.table
        self._repository = repository
        self._shelf = shelf
        self._default_wait_s = default_wait_s

    async def ListNodes(self, request: control.ListNodesRequest, context: Any) -> control.ListNodesResponse:
        view = self._mirror.view
        return control.ListNodesResponse(
            nodes=[node_message(view.nodes[id_], view.held.get(id_, {}).values()) for id_ in sorted(view.nodes)]
        )

    async def ListSessions(self, request: Any, context: Any) -> control.ListSessionsResponse:
        return control.ListSessionsResponse(groups=self._sessions.messages())

    async def ListModels(self, request: control.ListModelsRequest, context: Any) -> Any:
        return await told(context, self._models(request.name))

    async def _models(self, name: str) -> control.ListModelsResponse:
        return control.ListModelsResponse(models=await self._repository.list(name))

    async def ReleaseModel(self, request: control.ReleaseModelRequest, context: Any) -> Any:
        return await told(context, self._release(request))

    async def _release(self, request: control.ReleaseModelRequest) -> control.ReleaseModelResponse:
        return control.ReleaseModelResponse(versions=await self._repository.release(request.name, request.version))

    async def ApplyPipeline(self, request: control.ApplyPipelineRequest, context: Any) -> Any:
        left_s = context.time_remaining()
        deadline_s = time.monotonic() + (self._default_wait_s if left_s is None else left_s)
        return await told(context, self._shelf.apply(request, deadline_s))

    async def ListPipelines(self, request: control.ListPipelinesRequest, context: Any) -> Any:
        return await told(context, _later(lambda: self._shelf.listed(request.name)))

    async def DeletePipeline(self, request: control.DeletePipelineRequest, context: Any) -> Any:
        return await told(context, self._shelf.delete(request.name))

    async def Explain(self, request: control.ExplainRequest, context: Any) -> Any:
        return await told(context, _later(lambda: self._explain(request)))

    def _explain(self, request: control.ExplainRequest) -> control.ExplainResponse:
        view, gone = self._mirror.view, NodeId(request.remove_node)
        if gone and gone not in view.nodes:
            raise InvalidRequest(f"expected a node of this mesh in remove_node, got '{gone}'; see ListNodes")
        if not request.name and not gone:
            raise InvalidRequest("expected the name of a model, or remove_node, got neither")
        if request.name:
            try:
                model = resolve(view, request.name, request.version)
            except NamesPipeline:
                if gone:
                    raise InvalidRequest(
                        "expected the name of a model with remove_node, got that of a pipeline"
                    ) from None
                return control.ExplainResponse(pipeline=self._pipelines.explain(request.name, request.version))
            found = [explain(view, model, now_s=steady_s(), without=gone or None)]
        else:
            found = without_node(view, gone, now_s=steady_s())
        return control.ExplainResponse(models=[explanation(view, each) for each in found])


async def told(context: Any, answer: Awaitable[Any]) -> Any:
    """Return `answer`, or end the call with the status of its error."""
    try:
        return await answer
    except Exception as error:
        if not isinstance(error, MeshError):
            log.exception("a service method failed")
        code, text = status_of(error)
        await context.abort(code, text, trailers_of(error))


async def _later(answer: Callable[[], Any]) -> Any:
    return answer()


def _model_of(request: Any) -> str:
    """Return the model of a load or unload: field 2 (Triton's callers), else field 1 (KServe's)."""
    return str(request.model_name or request.repository_name)
