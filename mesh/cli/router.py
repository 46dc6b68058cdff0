"""`mesh router`: its flags, one for every field of `RouterConfig`, and how it is run."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import Annotated, Final

import typer

from mesh.cli import flags, process
from mesh.cli.flags import TUNING
from mesh.cli.workers import Workers, ports, reserve
from mesh.router.config import RouterConfig
from mesh.telemetry import logs

DEFAULT: Final = RouterConfig()
HTTP_PORT: Final = 8000

GrpcPort = Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")]
HttpPort = Annotated[int, typer.Option(min=0, max=65535, help="Metrics and health; 0: any free port.")]
ServerName = Annotated[str, typer.Option(help="Name in ServerMetadata.")]
ColdWait = Annotated[
    float, typer.Option(min=0, help="Seconds a call without a deadline waits for a cold model.", rich_help_panel=TUNING)
]
MaxWaiting = Annotated[int, typer.Option(min=0, help="Calls that may wait for one cold model.", rich_help_panel=TUNING)]
Compact = Annotated[
    float,
    typer.Option(
        min=0,
        help="Age of etcd's history that is dropped; 0: etcd compacts itself.",
        rich_help_panel=TUNING,
    ),
]
WorkerCount = Annotated[
    int,
    typer.Option(min=1, max=256, help="Processes behind the port; worker k has HTTP port + k.", rich_help_panel=TUNING),
]
ReusePort = Annotated[bool, typer.Option("--reuse-port", help="Share the gRPC port.", hidden=True)]
MaxAttempts = Annotated[int, typer.Option(min=1, help="Copies asked for one safe call.", rich_help_panel=TUNING)]
SessionBytes = Annotated[
    int,
    typer.Option(
        min=0,
        help="Kept of all sessions, so that they outlive their nodes; other nodes keep the rest.",
        rich_help_panel=TUNING,
    ),
]
Settle = Annotated[
    float, typer.Option(min=0, help="Seconds to say NOT_SERVING before refusing.", rich_help_panel=TUNING)
]


def router(  # noqa: PLR0917 - typer calls it by name
    host: flags.Host = DEFAULT.host,
    grpc_port: GrpcPort = DEFAULT.grpc_port,
    http_port: HttpPort = HTTP_PORT,
    no_http: flags.NoHttp = False,
    server_name: ServerName = DEFAULT.server_name,
    registry: flags.Registry = DEFAULT.registry.endpoints[0],
    registry_ca: flags.RegistryCa = None,
    registry_cert: flags.RegistryCert = None,
    registry_key: flags.RegistryKey = None,
    registry_user: flags.RegistryUser = "",
    registry_password_file: flags.RegistryPasswordFile = None,
    registry_timeout_s: flags.RegistryTimeout = DEFAULT.registry.timeout_s,
    tls_cert: flags.TlsCert = None,
    tls_key: flags.TlsKey = None,
    tls_ca: flags.TlsCa = None,
    node_tls: flags.NodeTls = False,
    node_tls_ca: flags.NodeTlsCa = None,
    node_tls_cert: flags.NodeTlsCert = None,
    node_tls_key: flags.NodeTlsKey = None,
    cold_wait_s: ColdWait = DEFAULT.cold_wait_s,
    max_waiting: MaxWaiting = DEFAULT.max_waiting,
    max_attempts: MaxAttempts = DEFAULT.max_attempts,
    session_bytes: SessionBytes = DEFAULT.session_bytes,
    grpc_header_forward_pattern: flags.GrpcHeaders = None,
    http_header_forward_pattern: flags.HttpHeaders = None,
    drain_s: flags.Drain = DEFAULT.drain_s,
    settle_s: Settle = DEFAULT.settle_s,
    compact_s: Compact = DEFAULT.compact_s,
    hang_s: flags.Hang = DEFAULT.hang_s,
    max_message_bytes: flags.MaxMessageBytes = DEFAULT.limits.max_message_bytes,
    max_connection_age_s: flags.MaxConnectionAge = DEFAULT.limits.max_connection_age_s,
    max_connections: flags.MaxConnections = DEFAULT.limits.max_connections,
    held_bytes: flags.HeldBytes = DEFAULT.limits.held_bytes,
    workers: WorkerCount = 1,
    loop: flags.Loop = "auto",
    wire: flags.Wire = DEFAULT.wire,
    log_level: flags.LogLevel = "info",
    log_json: flags.LogJson = False,
    trace_sample: flags.TraceSample = 1.0,
    reuse_port: ReusePort = False,
    json_ready: flags.JsonReady = False,
    exit_with_stdin: flags.ExitWithStdin = False,
) -> None:
    """Run a router: clients call it, it forwards to nodes. Any number may run side by side."""
    process.set_logs(log_level, as_json=log_json)
    credentials = (registry_ca, registry_cert, registry_key, registry_user, registry_password_file)
    config = RouterConfig(
        host=host,
        grpc_port=grpc_port,
        http_port=None if no_http else http_port,
        server_name=server_name,
        registry=flags.registry_config(registry, *credentials, timeout_s=registry_timeout_s),
        cold_wait_s=cold_wait_s,
        max_waiting=max_waiting,
        max_attempts=max_attempts,
        session_bytes=session_bytes,
        grpc_header_forward_pattern=flags.pattern(grpc_header_forward_pattern, "--grpc-header-forward-pattern"),
        http_header_forward_pattern=flags.pattern(http_header_forward_pattern, "--http-header-forward-pattern"),
        drain_s=drain_s,
        settle_s=settle_s,
        compact_s=compact_s,
        hang_s=hang_s,
        wire=flags.engine(wire),
        reuse_port=reuse_port,
        limits=flags.limits(max_message_bytes, max_connection_age_s, max_connections, held_bytes),
        tls=flags.server_tls(tls_cert, tls_key, tls_ca),
        node_tls=flags.node_tls(node_tls_cert, node_tls_key, node_tls_ca, asked=node_tls),
    )
    run(config, process.Shell(loop, exit_with_stdin, json_ready, sample_ratio=trace_sample), workers)


def run_workers(config: RouterConfig, shell: process.Shell, count: int) -> None:
    """Serve with `count` processes behind one port until a signal. They get the flags of this command line."""
    name = f"{socket.gethostname()}-{os.getpid()}"

    async def main(stop: asyncio.Event) -> None:
        with reserve(config.host, config.grpc_port) as held:
            port: int = held.getsockname()[1]
            say = logs.get(__name__).warning
            http = ports(config.http_port, count)
            workers = Workers(sys.argv[2:], port, http, say, config.settle_s + config.drain_s)
            await workers.run(stop, shell.say_ready("router", name))

    # As `mesh up` does: children are watched by the standard loop.
    process.run(main, loop="asyncio", exit_with_stdin=shell.exit_with_stdin)


def run(config: RouterConfig, shell: process.Shell, workers: int = 1) -> None:
    """Serve as `config` says until a signal."""
    if workers > 1:
        run_workers(config, shell, workers)
        return
    name = f"{socket.gethostname()}-{os.getpid()}"

    async def main(stop: asyncio.Event) -> None:
        from mesh.router import serve  # noqa: PLC0415 - help must not load the router

        tracing = shell.tracing("mesh-router", name)
        await serve.run(config, tracing=tracing, stop=stop, on_started=shell.say_ready("router", name))

    process.run(main, loop=shell.loop, exit_with_stdin=shell.exit_with_stdin)
