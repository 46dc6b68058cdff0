"""What `mesh up` asks its router to know that an inference would succeed now."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final

import grpc

from mesh.api.messages import ServerReadyRequest, ServerReadyResponse, control
from mesh.api.service import unary

POLL_S: Final = 0.1
CALL_S: Final = 5.0


class RouterProbe:
    """Asks one router until it is ready with the nodes and models wanted. `missing` says what was lacking last."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.missing = f"the router at {address} has not answered yet"

    async def wait(self, nodes: Collection[str]) -> int:
        """Return the number of model names once the router is ready, knows all `nodes` and at least one model."""
        async with grpc.aio.insecure_channel(self._address) as channel:
            while True:
                try:
                    models = await self._ask(channel, nodes)
                except grpc.aio.AioRpcError as error:
                    self.missing = f"the router at {self._address} answers {error.code().name}: {error.details()}"
                else:
                    if not self.missing:
                        return models
                await asyncio.sleep(POLL_S)

    async def _ask(self, channel: grpc.aio.Channel, nodes: Collection[str]) -> int:
        ready = unary(channel, "/inference.GRPCInferenceService/ServerReady", ServerReadyRequest, ServerReadyResponse)
        list_nodes = unary(
            channel, "/mesh.v1.MeshControl/ListNodes", control.ListNodesRequest, control.ListNodesResponse
        )
        list_models = unary(
            channel, "/mesh.v1.MeshControl/ListModels", control.ListModelsRequest, control.ListModelsResponse
        )
        seen = await list_nodes(control.ListNodesRequest(), timeout=CALL_S)
        known = await list_models(control.ListModelsRequest(), timeout=CALL_S)
        is_ready = (await ready(ServerReadyRequest(), timeout=CALL_S)).ready
        absent = sorted(set(nodes) - {node.id for node in seen.nodes if not node.draining})
        if absent:
            self.missing = f"the router does not see node {', '.join(absent)} yet"
        elif not known.models:
            self.missing = "the router knows no model: the nodes found none that can be served in their folders"
        elif not is_ready:
            self.missing = "the router is not ready"
        else:
            self.missing = ""
        return len({model.name for model in known.models})
