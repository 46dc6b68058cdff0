"""The plain grpcio services of a node: its own view of the inference service, and mesh.v1 node control."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import grpc

import mesh
from mesh.api import messages as m
from mesh.api.clock import steady_s
from mesh.api.describe import model_config, model_metadata, node_message
from mesh.api.messages import INFERENCE_SERVICE, node_control
from mesh.api.status import status_of
from mesh.core.errors import MeshError
from mesh.core.texts import status_text
from mesh.node.folder import shown
from mesh.node.infer import Infer
from mesh.node.kept import Kept
from mesh.node.loader import Loader
from mesh.node.publish import Publisher
from mesh.node.report import Report
from mesh.node.served import Served


class NodeInferenceService:
    """inference.GRPCInferenceService for the copies on this node, but ModelInfer and ModelStreamInfer."""

    def __init__(self, loader: Loader, report: Report, infer: Infer) -> None:
        self._loader = loader
        self._report = report
        self._infer = infer

    async def ServerLive(self, request: Any, context: Any) -> m.ServerLiveResponse:
        return m.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> m.ServerReadyResponse:
        return m.ServerReadyResponse(ready=self._report.ready)

    async def ServerMetadata(self, request: Any, context: Any) -> m.ServerMetadataResponse:
        return m.ServerMetadataResponse(
            name=self._report.record().id, version=mesh.__version__, extensions=["statistics"]
        )

    async def ModelReady(self, request: m.ModelReadyRequest, context: Any) -> m.ModelReadyResponse:
        return m.ModelReadyResponse(ready=self._loader.find(request.name, request.version) is not None)

    async def ModelMetadata(self, request: m.ModelMetadataRequest, context: Any) -> Any:
        served = await self._served(request, context)
        return model_metadata(_whole(served), [served.model.version])

    async def ModelConfig(self, request: m.ModelConfigRequest, context: Any) -> Any:
        return m.ModelConfigResponse(config=model_config(_whole(await self._served(request, context))))

    async def ModelStatistics(self, request: m.ModelStatisticsRequest, context: Any) -> m.ModelStatisticsResponse:
        wanted = [
            served
            for served in self._loader.served()
            if request.name in ("", served.model.name) and request.version in ("", served.model.version)
        ]
        stats = [served.statistics.message(served.model.name, served.model.version, served.bytes) for served in wanted]
        if request.name and not stats:
            stats = self._infer.pipelines.step_messages(request.name)
        return m.ModelStatisticsResponse(model_stats=stats)

    async def _served(self, request: Any, context: Any) -> Served:
        served = self._loader.find(request.name, request.version)
        if served is None:
            text = f"Request for unknown model: '{request.name}' is not found on this node"
            await context.abort(grpc.StatusCode.NOT_FOUND, status_text(text))
            raise AssertionError  # abort does not return
        return served


def _whole(served: Served) -> Any:
    """Return the record with the signature that the load found."""
    return replace(served.model, inputs=served.loaded.inputs, outputs=served.loaded.outputs)


class NodeControlService:
    """mesh.v1.NodeControl."""

    def __init__(  # noqa: PLR0917 - its parts
        self, loader: Loader, report: Report, publisher: Publisher, infer: Infer, kept: Kept, stop: asyncio.Event
    ) -> None:
        self._loader = loader
        self._kept = kept
        self._report = report
        self._publisher = publisher
        self._infer = infer
        self._stop = stop

    async def Describe(self, request: Any, context: Any) -> node_control.DescribeResponse:
        record = node_message(self._report.record(), self._loader.copies())
        return node_control.DescribeResponse(node=record, outstanding=self._infer.outstanding)

    async def ScanRepository(self, request: Any, context: Any) -> Any:
        try:
            done = await self._publisher.scan()
        except MeshError as error:
            await context.abort(*status_of(error))
            raise AssertionError from error  # abort does not return
        refused = {shown(path, 4096): why for path, why in done.refused.items()}
        return node_control.ScanRepositoryResponse(
            added=done.added, changed=done.changed, removed=done.removed, refused=refused
        )

    async def Usage(self, request: node_control.UsageRequest, context: Any) -> node_control.UsageResponse:
        now_s = steady_s()
        answer = node_control.UsageResponse()
        since_s = now_s - request.within_s if request.within_s else 0.0
        for served in self._loader.served():
            if served.last_used_s >= since_s or served.in_flight:
                done, failed = served.statistics.success, served.statistics.fail
                answer.copies.add(
                    model=served.model.name,
                    version=served.model.version,
                    requests=done.count + failed.count,
                    busy_s=(done.ns + failed.ns) / 1e9,
                    in_flight=served.in_flight,
                    idle_s=0.0 if served.in_flight else max(0.0, now_s - served.last_used_s),
                )
        return answer

    async def TakeSequence(
        self, request: node_control.TakeSequenceRequest, context: Any
    ) -> node_control.TakeSequenceResponse:
        queue = self._loader.sequences(request.model, request.version)
        id_ = request.text_id if request.WhichOneof("id") == "text_id" else request.number_id
        state = queue.take(id_) if queue is not None else None
        return node_control.TakeSequenceResponse(state=state or b"")

    async def KeepSnapshots(
        self, request: node_control.KeepSnapshotsRequest, context: Any
    ) -> node_control.KeepSnapshotsResponse:
        now_s = time.monotonic()
        empty = self._kept.renew(request.owner, request.dropped, now_s)
        takes = not self._report.draining
        refused = [
            each.key
            for each in request.snapshots
            if not (takes and self._kept.keep(request.owner, each.key, each.state, now_s))
        ]
        return node_control.KeepSnapshotsResponse(refused=refused, empty=empty)

    async def KeptSnapshot(
        self, request: node_control.KeptSnapshotRequest, context: Any
    ) -> node_control.KeptSnapshotResponse:
        state = self._kept.find(request.owner, request.key)
        if state is None:
            text = f"no snapshot {request.key} of '{request.owner}' is kept on this node"
            await context.abort(grpc.StatusCode.NOT_FOUND, status_text(text))
            raise AssertionError  # abort does not return
        return node_control.KeptSnapshotResponse(state=state)

    async def Drain(self, request: Any, context: Any) -> node_control.DrainResponse:
        self._stop.set()
        return node_control.DrainResponse()


class NodeHealth:
    """A `HealthSource`: the node itself, and the versions it holds by their model's name."""

    def __init__(self, loader: Loader, report: Report) -> None:
        self._loader = loader
        self._report = report
        self._moved = asyncio.Event()

    def serving(self) -> Mapping[str, bool]:
        """Return every service with whether it serves."""
        ready, serves = self._report.ready, not self._report.draining
        held = {str(served.model.name): serves for served in self._loader.served()}
        return {**held, "": ready, INFERENCE_SERVICE.full_name: ready}

    def moved(self) -> None:
        """Wake the watches: something changed."""
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def changed(self) -> None:
        """Return at the next `moved`."""
        await self._moved.wait()
