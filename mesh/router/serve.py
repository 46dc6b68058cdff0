"""The router process: builds its parts, starts them, and drains them. Nowhere else are they put together."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from mesh.api.messages import INFERENCE_SERVICE, MESH_CONTROL_SERVICE
from mesh.api.service import generic_handler
from mesh.core.traffic.balance import Balancer
from mesh.core.types import NodeId
from mesh.core.view import ClusterView
from mesh.gateway.http import HttpServer
from mesh.gateway.seam import GrpcCalls
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.mirror import Mirror
from mesh.registry.ready import answers_before
from mesh.registry.restore import ROUTER_S, Restore
from mesh.router import hop, hop_stream
from mesh.router.catalog import Catalog
from mesh.router.channels import Channels
from mesh.router.cold import Cold
from mesh.router.config import RouterConfig
from mesh.router.dispatch import Dispatch
from mesh.router.health import RouterHealth
from mesh.router.repository import Repository
from mesh.router.service import ControlService, InferenceService
from mesh.router.settings import Settings
from mesh.router.shelf import PipelineShelf
from mesh.router.steward import Steward
from mesh.router.streams import Streams
from mesh.telemetry import logs
from mesh.telemetry.metrics import RouterMetrics, observe_callers
from mesh.telemetry.tracing import Tracing
from mesh.telemetry.watchdog import watching
from mesh.wire.engine import Carrier
from mesh.wire.flow import Bounds
from mesh.wire.grpc_services import health_handlers, reflection_handlers
from mesh.wire.lasting import lasting
from mesh.wire.transport import MODEL_INFER, MODEL_STREAM_INFER, HotMethods, Server

log = logs.get(__name__)

PASSING = Bounds(max_stream_window=128 * 1024)
"""A router keeps nothing: what it takes in of one call is what the other side has not taken yet. 128 KiB each way keeps
a 600 KB tensor moving, and a thousand of them in flight under 256 MB."""


async def run(
    config: RouterConfig, *, tracing: Tracing, stop: asyncio.Event, on_started: Callable[[str, str], None]
) -> None:
    """Serve until `stop` is set, then drain. Calls `on_started(grpc_address, http_address)` when it listens.

    Waits for the registry as long as it takes, with a message. Raises OSError when a port is taken. Cancelling it
    cuts calls in flight.
    """
    store = EtcdClient(config.registry)
    try:
        with watching(config.hang_s):
            if await answers_before(stop, store):
                await _serve(config, _build(config, store, tracing), stop, on_started)
    finally:
        await store.close()
        await asyncio.to_thread(tracing.shutdown)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Everything that lives as long as the router serves."""

    mirror: Mirror
    metrics: RouterMetrics
    balancer: Balancer
    channels: Channels
    dispatch: Dispatch
    cold: Cold
    steward: Steward
    restore: Restore
    health: RouterHealth
    server: Server
    http: HttpServer | None


def _build(config: RouterConfig, store: EtcdClient, tracing: Tracing) -> _Parts:
    mirror = Mirror(store)
    metrics = RouterMetrics()
    balancer = Balancer()
    carrier = Carrier(config.wire, config.limits, asyncio.get_running_loop())
    observe_callers(metrics.registry, "mesh_router", carrier.held, carrier.clients)
    channels = Channels(carrier.connector(config.node_tls, bounds=PASSING, on_silence=balancer.silence))

    def avoided(view: ClusterView) -> Collection[NodeId]:
        now_s = time.monotonic()
        return {node.id for node in view.nodes.values() if balancer.is_suspect(node, now_s)}

    cold = Cold(mirror, store, avoided=avoided, max_waiting=config.max_waiting)
    dispatch = Dispatch(
        mirror=mirror,
        balancer=balancer,
        channels=channels,
        cold=cold,
        metrics=metrics,
        tracing=tracing,
        cold_wait_s=config.cold_wait_s,
        max_attempts=config.max_attempts,
        session_bytes=config.session_bytes,
        forwards=config.grpc_header_forward_pattern,
    )
    metrics.observe(dispatch.sessions.table.messages, balancer.silent)
    streams = Streams(dispatch, metrics)
    health = RouterHealth(mirror)
    repository = Repository(mirror, store, cold)
    steps = dispatch.pipelines.steps
    catalog = Catalog(
        mirror, channels, cold, metrics, steps, server_name=config.server_name, cold_wait_s=config.cold_wait_s
    )
    shelf = PipelineShelf(mirror, store, catalog)
    inference = InferenceService(
        catalog,
        repository,
        Settings(tracing),
        is_ready=health.is_ready,
        default_wait_s=config.cold_wait_s,
    )
    control = ControlService(mirror, repository, shelf, dispatch, default_wait_s=config.cold_wait_s)
    services = [
        generic_handler(INFERENCE_SERVICE, inference),
        generic_handler(MESH_CONTROL_SERVICE, control),
        *health_handlers(health),
        *reflection_handlers([INFERENCE_SERVICE.full_name, MESH_CONTROL_SERVICE.full_name]),
    ]
    hot = HotMethods(
        unary={MODEL_INFER: dispatch.infer},
        stream={MODEL_STREAM_INFER: streams.stream},
        direct={MODEL_INFER: hop.unary(dispatch), MODEL_STREAM_INFER: hop_stream.stream(streams)},
    )
    server = carrier.server(
        config.host, config.grpc_port, hot, services, tls=config.tls, bounds=PASSING, reuse_port=config.reuse_port
    )
    http = _http(config, metrics, health, _calls(config, dispatch, streams, inference, carrier))
    candidate = f"{socket.gethostname()}-{os.getpid()}"
    steward = Steward(mirror, store, channels, candidate, compact_s=config.compact_s)
    restore = Restore(mirror, store, ROUTER_S)
    return _Parts(mirror, metrics, balancer, channels, dispatch, cold, steward, restore, health, server, http)


def _calls(
    config: RouterConfig, dispatch: Dispatch, streams: Streams, inference: InferenceService, carrier: Carrier
) -> GrpcCalls:
    return GrpcCalls(
        dispatch.infer,
        streams.stream,
        inference,
        carrier.held,
        config.limits.max_message_bytes,
        config.http_header_forward_pattern,
    )


def _http(config: RouterConfig, metrics: RouterMetrics, health: RouterHealth, calls: GrpcCalls) -> HttpServer | None:
    if config.http_port is None:
        return None
    return HttpServer(config.host, config.http_port, metrics.registry, health.is_ready, calls)


async def _serve(
    config: RouterConfig, parts: _Parts, stop: asyncio.Event, on_started: Callable[[str, str], None]
) -> None:
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(lasting("following the registry", parts.mirror.run))
        await parts.mirror.wait_synced()
        tidying = tasks.create_task(lasting("forgetting nodes that left", partial(_tidy, parts)))
        leading = tasks.create_task(lasting("leading", parts.steward.run))
        restoring = tasks.create_task(lasting("putting back what the registry lost", parts.restore.run))
        try:
            await parts.server.start()
            if parts.http is not None:
                await parts.http.start()
            http_address = parts.http.address if parts.http is not None else ""
            log.info("router serving", grpc=parts.server.address, http=http_address)
            on_started(parts.server.address, http_address)
            await stop.wait()
            log.info("router draining", settle_s=config.settle_s, drain_s=config.drain_s)
            parts.health.drain()
            leading.cancel()
            # Balancers that watch health need this long to hear of it and send their calls elsewhere.
            await asyncio.sleep(config.settle_s)
        finally:
            await parts.server.stop(config.drain_s)
            if parts.http is not None:
                await parts.http.stop()
            await parts.dispatch.pipelines.close()
            await parts.dispatch.sessions.close()
            await parts.cold.close()
            following.cancel()
            tidying.cancel()
            restoring.cancel()
            leading.cancel()
            await parts.channels.close()
    log.info("router stopped")


async def _tidy(parts: _Parts) -> None:
    """Forget nodes that left, at each new view."""
    view = parts.mirror.view
    while True:
        parts.balancer.forget(view.nodes.keys())
        parts.channels.keep({node.address for node in view.nodes.values()})
        parts.metrics.view_published(view)
        parts.dispatch.sessions.moved()
        view = await parts.mirror.next(view)
