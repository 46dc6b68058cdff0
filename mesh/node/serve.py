"""The node process: builds its parts, starts them, and drains them. Nowhere else are they put together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from mesh.api.clock import steady_s
from mesh.api.messages import INFERENCE_SERVICE, NODE_CONTROL_SERVICE
from mesh.api.service import generic_handler
from mesh.core.errors import Conflict
from mesh.core.journal import Charge
from mesh.core.placement.duties import HOT_RATE
from mesh.core.types import NodeId
from mesh.core.view import ClusterView
from mesh.gateway.http import HttpServer
from mesh.node import capacity, direct
from mesh.node.config import NodeConfig
from mesh.node.control import NodeControlService, NodeHealth, NodeInferenceService
from mesh.node.infer import Infer
from mesh.node.journal import Journal
from mesh.node.kept import Kept
from mesh.node.leave import Leaves
from mesh.node.loader import Loader
from mesh.node.parts import Parts
from mesh.node.publish import Publisher
from mesh.node.report import Report
from mesh.node.repository import Scanner
from mesh.node.runtimes.base import Runtime
from mesh.node.runtimes.choice import Runtimes
from mesh.node.runtimes.onnx import OnnxRuntime
from mesh.node.runtimes.python import PythonRuntime
from mesh.node.runtimes.remote import RemoteRuntime
from mesh.node.suspects import Suspects
from mesh.node.upkeep import Upkeep
from mesh.node.workers.runtime import WorkerRuntime
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.keys import copies_prefix, node_key
from mesh.registry.lease import Presence
from mesh.registry.mirror import Mirror
from mesh.registry.ready import answers_before
from mesh.registry.restore import NODE_S, Restore
from mesh.telemetry import logs
from mesh.telemetry.metrics import NodeMetrics, observe_callers
from mesh.telemetry.tracing import Tracing
from mesh.telemetry.watchdog import watching
from mesh.wire.engine import Carrier
from mesh.wire.grpc_services import health_handlers, reflection_handlers
from mesh.wire.lasting import lasting
from mesh.wire.transport import MODEL_INFER, MODEL_STREAM_INFER, PARTS_EXCHANGE, HotMethods, Server

log = logs.get(__name__)

RUN_THREADS = 32
"""Threads for runs that are too long for the event loop. Python models may sleep or call out, so more than cores."""


async def run(
    config: NodeConfig, *, tracing: Tracing, stop: asyncio.Event, on_started: Callable[[str, str], None]
) -> None:
    """Serve until `stop` is set, then drain. Calls `on_started(grpc_address, http_address)` when it is registered.

    Waits for the registry as long as it takes, with a message. Raises OSError when a port is taken and `Conflict` when
    a live node has this id. Cancelling it cuts calls in flight.
    """
    store = EtcdClient(config.registry)
    try:
        with watching(config.hang_s):
            if await answers_before(stop, store):
                executor = ThreadPoolExecutor(RUN_THREADS, thread_name_prefix="run")
                journal = Journal(config.state_dir, config.id, config.registry.endpoints)
                try:
                    await _serve(config, _build(config, store, tracing, stop, executor, journal), stop, on_started)
                finally:
                    journal.close()
                    # A model that never returns must not keep the node from ending: its thread is left behind.
                    executor.shutdown(wait=False, cancel_futures=True)
    finally:
        await store.close()
        await asyncio.to_thread(tracing.shutdown)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Everything that lives as long as the node serves."""

    mirror: Mirror
    publisher: Publisher
    loader: Loader
    suspects: Suspects
    workers: WorkerRuntime
    upkeep: Upkeep
    journal: Journal
    report: Report
    presence: Presence
    restore: Restore
    health: NodeHealth
    shared: Parts
    server: Server
    http: HttpServer | None


def _build(  # noqa: PLR0917 - what lives longer than the parts
    config: NodeConfig,
    store: EtcdClient,
    tracing: Tracing,
    stop: asyncio.Event,
    executor: ThreadPoolExecutor,
    journal: Journal,
) -> _Parts:
    node = NodeId(config.id)
    mirror = Mirror(store)
    metrics = NodeMetrics()
    accounts = capacity.accounts(config.memory_bytes)
    scanner = Scanner(config.repositories)
    publisher = Publisher(scanner, store, mirror)
    suspects = Suspects(node, mirror=mirror, store=store, metrics=metrics)
    by_kind: dict[str, Runtime] = {"onnx": OnnxRuntime(), "python": PythonRuntime(), "remote": RemoteRuntime()}
    workers = WorkerRuntime(suspects.worker_died, suspects.pause_left_s)
    loader = Loader(
        node,
        mirror=mirror,
        leaves=Leaves(node, store, mirror),
        publisher=publisher,
        runtimes=Runtimes(by_kind, suspects, journal, workers, isolation=config.isolation),
        accounts=accounts,
        metrics=metrics,
        executor=executor,
        default_queue_size=config.default_queue_size,
        drain_s=config.drain_s,
    )
    upkeep = Upkeep(loader, workers, suspects)
    report = Report(
        node,
        labels=config.labels,
        repositories=scanner.urls(),
        loader=loader,
        nodes=lambda: len(mirror.view.nodes),
        refused=lambda: publisher.refused,
    )
    presence = Presence(
        store,
        node_key(node),
        prefix=copies_prefix(node),
        ttl_s=config.lease_ttl_s,
        is_mine=report.is_mine,
        on_event=lambda text: log.warning("registration", event=text),
    )
    infer = Infer(loader.find, metrics, tracing, lambda: mirror.view, config.grpc_header_forward_pattern)
    metrics.observe(report.record, loader.copies, lambda: infer.outstanding)
    kept = Kept(config.kept_bytes)
    metrics.observe_sequences(loader.served, lambda: kept.kept_bytes)
    health = NodeHealth(loader, report)
    service = NodeControlService(loader, report, publisher, infer, kept, stop)
    services = _services(NodeInferenceService(loader, report, infer), service, health)
    carrier = Carrier(config.wire, config.limits, asyncio.get_running_loop())
    observe_callers(metrics.registry, "mesh_node", carrier.held, carrier.clients)
    connect = carrier.connector(config.node_tls, on_silence=_nothing)
    shared = Parts(node, mirror=mirror, runs=infer.pipelines, connect=connect)
    server = carrier.server(config.host, config.grpc_port, _hot(infer, shared), services, tls=config.tls)
    http = None
    if config.http_port is not None:
        http = HttpServer(config.host, config.http_port, metrics.registry, lambda: report.ready)
    restore = Restore(mirror, store, NODE_S)
    return _Parts(
        *(mirror, publisher, loader, suspects, workers, upkeep, journal, report, presence, restore),
        *(health, shared, server, http),
    )


def _services(inference: NodeInferenceService, control: NodeControlService, health: NodeHealth) -> list[Any]:
    return [
        generic_handler(INFERENCE_SERVICE, inference),
        generic_handler(NODE_CONTROL_SERVICE, control),
        *health_handlers(health),
        *reflection_handlers([INFERENCE_SERVICE.full_name, NODE_CONTROL_SERVICE.full_name]),
    ]


def _hot(infer: Infer, shared: Parts) -> HotMethods:
    unary, stream = direct.methods(infer)
    return HotMethods(
        unary={MODEL_INFER: infer.infer},
        stream={MODEL_STREAM_INFER: infer.stream, PARTS_EXCHANGE: shared.exchange},
        direct={MODEL_INFER: unary, MODEL_STREAM_INFER: stream},
    )


async def _serve(
    config: NodeConfig, parts: _Parts, stop: asyncio.Event, on_started: Callable[[str, str], None]
) -> None:
    report, presence, loader = parts.report, parts.presence, parts.loader

    def changed(*, within_s: float = 0.0) -> None:
        report.changed(within_s=within_s)
        parts.health.moved()

    loader.on_change(changed)
    loader.leaves.along = presence.along
    parts.publisher.on_refused = changed
    async with asyncio.TaskGroup() as tasks:
        work = [tasks.create_task(lasting("following the registry", parts.mirror.run))]
        try:
            await parts.mirror.wait_synced()
            _charge(parts, await asyncio.to_thread(parts.journal.open))
            await parts.server.start()
            if parts.http is not None:
                await parts.http.start()
            http_address = parts.http.address if parts.http is not None else ""
            report.address = _advertised(config, parts.server.address)
            report.through(presence)
            registration = tasks.create_task(lasting("the registration", presence.run, ends=(Conflict,)))
            work.append(registration)
            await presence.registered()
            publishing = partial(parts.publisher.run, config.repository_poll_s)
            work.append(tasks.create_task(lasting("scanning the repository", publishing)))
            await parts.publisher.scanned()
            if "python" in parts.publisher.kinds and config.isolation != "none":
                work.append(tasks.create_task(parts.workers.warm()))
            rounds = (
                ("writing what processes died of", parts.suspects.run),
                ("loading and unloading", loader.run),
                ("reporting this node", report.run),
                ("looking after workers", parts.upkeep.run),
                ("putting back what the registry lost", parts.restore.run),
            )
            work += [tasks.create_task(lasting(what, each)) for what, each in rounds]
            log.info("node serving", id=config.id, grpc=parts.server.address, http=http_address)
            on_started(parts.server.address, http_address)
            await stop.wait()
            parts.journal.stopping()
            await _moved(config, parts)
            log.info("node draining", id=config.id, settle_s=config.settle_s, drain_s=config.drain_s)
            report.draining = True
            changed()
            # Routers need this long to hear of it and send their calls elsewhere.
            await asyncio.sleep(config.settle_s)
            await presence.withdraw()
        finally:
            for task in work:
                task.cancel()
            await parts.shared.close(config.drain_s if stop.is_set() else 0)
            await parts.server.stop(config.drain_s)
            if parts.http is not None:
                await parts.http.stop()
            await loader.close()
            parts.workers.close()
    log.info("node stopped", id=config.id)


def _charge(parts: _Parts, charges: Iterable[Charge]) -> None:
    """Tell whose death the end of the process before was. Of files that are not there any more nothing is known."""
    for charge in charges:
        model = parts.mirror.view.models.get(charge.held.name, {}).get(charge.held.version)
        if model is not None and model.digest == charge.held.digest:
            parts.suspects.died(model, charge.how, charge.text)


async def _moved(config: NodeConfig, parts: _Parts) -> None:
    """Say that this node is leaving, and wait until the models in demand serve elsewhere; `config.move_s` at most.

    While it waits it serves. Nothing is waited for when no other node stays.
    """
    report, loader, mirror = parts.report, parts.loader, parts.mirror
    report.leaving = True
    report.changed()

    def moved(view: ClusterView) -> bool:
        others = {id_ for id_, node in view.nodes.items() if id_ != config.id and not (node.leaving or node.draining)}
        if not others:
            return True
        now_s = steady_s()
        return all(
            any(each.node.id in others for each in view.serving.get((served.model.name, served.model.version), ()))
            for served in loader.served()
            if view.forecast.rate(served.history, now_s) >= HOT_RATE
        )

    try:
        async with asyncio.timeout(config.move_s):
            await mirror.wait_for(moved)
    except TimeoutError:
        log.warning("not all models in demand were moved in time", waited_s=config.move_s)


def _nothing(address: str, silent: bool) -> None:
    """Do nothing when another node does not answer: each stream to it hears so itself."""


def _advertised(config: NodeConfig, listening: str) -> str:
    """Return the address that routers use: what was asked for, with the real port where none was given."""
    if not config.advertise:
        return listening
    port = listening.rpartition(":")[2]
    host_only = ":" not in config.advertise or config.advertise.endswith("]")
    return f"{config.advertise}:{port}" if host_only else config.advertise
