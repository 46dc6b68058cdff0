"""The client: one router (or node), every call of the protocol and of the mesh."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from mesh.api import messages as m
from mesh.core.errors import Code
from mesh_client import _common as c
from mesh_client._errors import ModelNotFound
from mesh_client._pipeline import Pipeline
from mesh_client._transport_async import open_transport
from mesh_client._values import InferResult, Inputs, Metadata, Parameter, Tls, request_of, result_of

from .routers import AsyncRouters
from .session import AsyncSession, generate
from .stream import AsyncStream


class AsyncClient:
    """Calls a mesh.

    `address` is host:port of a router, or several separated by commas: when one goes away, the next is called.
    `metadata` goes with every call, `token` as a bearer token, `timeout_s` is the timeout of calls that give none
    (None: no limit). Every call raises a `MeshClientError` when it fails. Use it as a context, or call `close`.
    """

    def __init__(
        self,
        address: str = c.DEFAULT_ADDRESS,
        *,
        tls: Tls | None = None,
        token: str | None = None,
        metadata: Metadata = (),
        timeout_s: float | None = None,
        max_message_bytes: int = c.MAX_MESSAGE_BYTES,
        transport: str = "grpcio",
    ) -> None:
        self._token = token
        self._metadata = metadata
        self._timeout_s = timeout_s
        self._routers = AsyncRouters(
            c.addresses_of(address),
            lambda one: open_transport(transport, one, tls=tls, max_message_bytes=max_message_bytes),
        )

    @property
    def address(self) -> str:
        """The router that is called now."""
        return self._routers.address

    async def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str = "",
        id: str = "",  # noqa: A002 - the protocol's word
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Parameter] | None = None,
        timeout_s: float | None = None,
        metadata: Metadata | None = None,
    ) -> InferResult:
        """Run one inference: arrays in by input name, arrays out by output name.

        Types follow the arrays (float32 is FP32, str and bytes are BYTES; BF16 needs a `Tensor`). `outputs` names the
        outputs wanted, all when None. A cold model is loaded first, within the timeout.
        """
        request = request_of(model, inputs, version=version, id=id, outputs=outputs, parameters=parameters)
        return result_of(await self._call(c.INFER, request, timeout_s, metadata))

    def stream(
        self, *, timeout_s: float | None = None, metadata: Metadata | None = None, unordered: bool = False
    ) -> AsyncStream:
        """Open a two-way stream. `timeout_s` limits the whole stream, None (not the client's own) does not.

        Results come in the order of their requests; with `unordered` each as soon as it is there, and every request
        needs an id.
        """
        pairs = c.metadata_of(self._metadata, self._token, metadata)
        if unordered:
            pairs = (*(pairs or ()), c.UNORDERED)
        return AsyncStream(self._routers.transport.stream(metadata=pairs, timeout_s=timeout_s))

    def session(
        self,
        model: str,
        *,
        version: str = "",
        id: int | str | None = None,  # noqa: A002 - the protocol's word
        resume_s: float = 30.0,
        metadata: Metadata | None = None,
    ) -> AsyncSession:
        """Begin a session with a model that keeps state: ``async with client.session("gru") as s: await s.step(...)``.

        `id` names the sequence, made up when None. It outlives its node, and its router for up to `resume_s` seconds of
        trying.
        """
        pairs = c.metadata_of(self._metadata, self._token, metadata)
        return AsyncSession(self._routers, model, version=version, id=id, resume_s=resume_s, metadata=pairs)

    def generate(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str = "",
        id: str = "",  # noqa: A002 - the protocol's word
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Parameter] | None = None,
        resume_s: float = 30.0,
        metadata: Metadata | None = None,
    ) -> AsyncIterator[InferResult]:
        """Iterate over the responses of one request of a several-response model, as they are made.

        Leaving the iteration stops the model at its next step (close it, or leave the task). It outlives node and
        router as a session does, where the model generates step by step.
        """
        request = request_of(model, inputs, version=version, id=id, outputs=outputs, parameters=parameters)
        pairs = c.metadata_of(self._metadata, self._token, metadata)
        return generate(self._routers, request, resume_s=resume_s, metadata=pairs)

    async def server_live(self, *, timeout_s: float | None = None) -> bool:
        """Tell whether the router runs."""
        return bool((await self._call(c.SERVER_LIVE, m.ServerLiveRequest(), timeout_s)).live)

    async def server_ready(self, *, timeout_s: float | None = None) -> bool:
        """Tell whether an inference would be tried."""
        return bool((await self._call(c.SERVER_READY, m.ServerReadyRequest(), timeout_s)).ready)

    async def server_metadata(self, *, timeout_s: float | None = None) -> m.ServerMetadataResponse:
        """Return name, version and extensions."""
        answer: m.ServerMetadataResponse = await self._call(c.SERVER_METADATA, m.ServerMetadataRequest(), timeout_s)
        return answer

    async def model_ready(self, model: str, *, version: str = "", timeout_s: float | None = None) -> bool:
        """Tell whether an inference would be answered, by a loaded copy or by loading one."""
        request = m.ModelReadyRequest(name=model, version=version)
        return bool((await self._call(c.MODEL_READY, request, timeout_s)).ready)

    async def model_metadata(
        self, model: str, *, version: str = "", timeout_s: float | None = None
    ) -> m.ModelMetadataResponse:
        """Return versions, inputs and outputs."""
        request = m.ModelMetadataRequest(name=model, version=version)
        answer: m.ModelMetadataResponse = await self._call(c.MODEL_METADATA, request, timeout_s)
        return answer

    async def model_config(self, model: str, *, version: str = "", timeout_s: float | None = None) -> m.ModelConfig:
        """Return Triton's ModelConfig of the model."""
        request = m.ModelConfigRequest(name=model, version=version)
        config: m.ModelConfig = (await self._call(c.MODEL_CONFIG, request, timeout_s)).config
        return config

    async def model_statistics(
        self, model: str = "", *, version: str = "", timeout_s: float | None = None
    ) -> m.ModelStatisticsResponse:
        """Return counts and times of one model or all, over the whole mesh."""
        request = m.ModelStatisticsRequest(name=model, version=version)
        answer: m.ModelStatisticsResponse = await self._call(c.MODEL_STATISTICS, request, timeout_s)
        return answer

    async def repository_index(
        self, *, ready: bool = False, timeout_s: float | None = None
    ) -> list[m.RepositoryIndexResponse.ModelIndex]:
        """Return every version with its state; with `ready` only those that are loaded."""
        answer = await self._call(c.REPOSITORY_INDEX, m.RepositoryIndexRequest(ready=ready), timeout_s)
        return list(answer.models)

    async def load(self, model: str, *, timeout_s: float | None = None) -> None:
        """Load a model, and allow requests to load it again after an `unload`."""
        await self._call(c.LOAD, m.RepositoryModelLoadRequest(model_name=model), timeout_s)

    async def unload(self, model: str, *, timeout_s: float | None = None) -> None:
        """Unload a model everywhere, and keep requests from loading it."""
        await self._call(c.UNLOAD, m.RepositoryModelUnloadRequest(model_name=model), timeout_s)

    async def models(self, name: str = "", *, timeout_s: float | None = None) -> list[m.control.Model]:
        """Return every model version the mesh knows, or those of `name`, with their copies."""
        answer = await self._call(c.LIST_MODELS, m.control.ListModelsRequest(name=name), timeout_s)
        return list(answer.models)

    async def release(self, model: str, *, version: str = "", timeout_s: float | None = None) -> list[str]:
        """Forget that a model ended processes; return the versions of which something was forgotten."""
        request = m.control.ReleaseModelRequest(name=model, version=version)
        return list((await self._call(c.RELEASE_MODEL, request, timeout_s)).versions)

    async def nodes(self, *, timeout_s: float | None = None) -> list[m.control.Node]:
        """Return every node with its devices and copies."""
        answer = await self._call(c.LIST_NODES, m.control.ListNodesRequest(), timeout_s)
        return list(answer.nodes)

    async def sessions(self, *, timeout_s: float | None = None) -> list[m.control.SessionGroup]:
        """Return the sequences and generations that go through this router, by model version."""
        answer = await self._call(c.LIST_SESSIONS, m.control.ListSessionsRequest(), timeout_s)
        return list(answer.groups)

    async def explain(
        self, name: str = "", version: str = "", *, remove_node: str = "", timeout_s: float | None = None
    ) -> list[m.control.Explanation]:
        """Return where `name` would be loaded now, node by node, with the reasons.

        With `remove_node`, as if that node were not there; without `name` then, every model that only that node serves.
        """
        request = m.control.ExplainRequest(name=name, version=version, remove_node=remove_node)
        return list((await self._call(c.EXPLAIN, request, timeout_s)).models)

    async def explain_pipeline(self, name: str, *, timeout_s: float | None = None) -> m.control.PipelineCut:
        """Return where the steps of a pipeline run now, which tensors leave their node, and why."""
        answer = await self._call(c.EXPLAIN, m.control.ExplainRequest(name=name), timeout_s)
        if not answer.HasField("pipeline"):
            raise ModelNotFound(f"expected the name of a pipeline, '{name}' is that of a model", code=Code.NOT_FOUND)
        cut: m.control.PipelineCut = answer.pipeline
        return cut

    async def apply_pipeline(
        self, pipeline: m.control.Pipeline | Pipeline, *, dry_run: bool = False, timeout_s: float | None = None
    ) -> m.control.ApplyPipelineResponse:
        """Check a pipeline and store it; with `dry_run` check only. Its `problems` say why it was not stored."""
        message = pipeline.message if isinstance(pipeline, Pipeline) else pipeline
        request = m.control.ApplyPipelineRequest(pipeline=message, dry_run=dry_run)
        answer: m.control.ApplyPipelineResponse = await self._call(c.APPLY_PIPELINE, request, timeout_s)
        return answer

    async def pipelines(self, name: str = "", *, timeout_s: float | None = None) -> list[m.control.Pipeline]:
        """Return every pipeline, or the one that is called `name`."""
        answer = await self._call(c.LIST_PIPELINES, m.control.ListPipelinesRequest(name=name), timeout_s)
        return list(answer.pipelines)

    async def delete_pipeline(self, name: str, *, timeout_s: float | None = None) -> None:
        """Forget a pipeline; requests that run finish."""
        await self._call(c.DELETE_PIPELINE, m.control.DeletePipelineRequest(name=name), timeout_s)

    async def health(self, service: str = "", *, timeout_s: float | None = None) -> bool:
        """Tell whether `service` (a model's name, or the whole server) is SERVING; False for an unknown one."""
        try:
            answer = await self._call(c.HEALTH_CHECK, c.HealthCheckRequest(service=service), timeout_s)
        except ModelNotFound:
            return False
        return bool(answer.status == c.SERVING)

    async def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        await self._routers.close()

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

    async def _call(
        self, method: c.Method, request: Any, timeout_s: float | None, metadata: Metadata | None = None
    ) -> Any:
        return await self._routers.call(
            method,
            request,
            metadata=c.metadata_of(self._metadata, self._token, metadata),
            timeout_s=self._timeout_s if timeout_s is None else timeout_s,
        )

    def __repr__(self) -> str:
        """Show the address."""
        return f"<AsyncClient {self.address}>"
