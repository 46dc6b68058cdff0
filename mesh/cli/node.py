"""`mesh node`: its flags, one for every field of `NodeConfig`, and how it is run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from mesh.cli import flags, process
from mesh.cli.flags import TUNING
from mesh.node.config import NodeConfig
from mesh.registry.config import RegistryConfig

DEFAULT = NodeConfig(id="", repositories=())


def node(  # noqa: PLR0917 - typer calls it by name
    id: Annotated[str, typer.Option(help="Unique in the mesh.")],  # noqa: A002 - the flag is --id
    models: Annotated[list[Path], typer.Option(help="Model repository folder; may be given several times.")],
    host: flags.Host = DEFAULT.host,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = DEFAULT.grpc_port,
    http_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Metrics; 0: any free port. No HTTP port unless given.")
    ] = DEFAULT.http_port,
    advertise: Annotated[str, typer.Option(metavar="HOST[:PORT]", help="Where routers reach it.")] = DEFAULT.advertise,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Label models may ask for.")] = None,
    memory_bytes: Annotated[int, typer.Option(min=0, help="Memory for models; 0: 80% of what there is.")] = (
        DEFAULT.memory_bytes
    ),
    registry: flags.Registry = DEFAULT.registry.endpoints[0],
    registry_ca: flags.RegistryCa = None,
    registry_cert: flags.RegistryCert = None,
    registry_key: flags.RegistryKey = None,
    registry_user: flags.RegistryUser = "",
    registry_password_file: flags.RegistryPasswordFile = None,
    registry_timeout_s: flags.RegistryTimeout = RegistryConfig().timeout_s,
    tls_cert: flags.TlsCert = None,
    tls_key: flags.TlsKey = None,
    tls_ca: flags.TlsCa = None,
    lease_ttl_s: Annotated[
        int, typer.Option(min=2, help="Silence after which it counts as dead.", rich_help_panel=TUNING)
    ] = DEFAULT.lease_ttl_s,
    repository_poll_s: Annotated[
        float, typer.Option(min=0, help="How often repositories are scanned; 0: on request.", rich_help_panel=TUNING)
    ] = DEFAULT.repository_poll_s,
    default_queue_size: Annotated[
        int, typer.Option(min=1, help="Requests that may wait per copy.", rich_help_panel=TUNING)
    ] = DEFAULT.default_queue_size,
    drain_s: Annotated[
        float, typer.Option(min=0, help="Wait for calls in flight at the end.", rich_help_panel=TUNING)
    ] = DEFAULT.drain_s,
    settle_s: Annotated[
        float, typer.Option(min=0, help="Keep answering after leaving the registry.", rich_help_panel=TUNING)
    ] = DEFAULT.settle_s,
    max_message_bytes: flags.MaxMessageBytes = DEFAULT.limits.max_message_bytes,
    loop: flags.Loop = "auto",
    log_level: flags.LogLevel = "info",
    log_json: flags.LogJson = False,
    trace_sample: flags.TraceSample = 1.0,
    json_ready: flags.JsonReady = False,
    exit_with_stdin: flags.ExitWithStdin = False,
) -> None:
    """Run a node: it holds models and answers inference for routers."""
    process.set_logs(log_level, as_json=log_json)
    if not id:
        raise typer.BadParameter("expected a name, got an empty text", param_hint="--id")
    config = NodeConfig(
        id=id,
        repositories=folders(models),
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        advertise=advertise,
        registry=flags.registry_config(
            registry,
            ca=registry_ca,
            cert=registry_cert,
            key=registry_key,
            user=registry_user,
            password_file=registry_password_file,
            timeout_s=registry_timeout_s,
        ),
        labels=flags.labels(label or []),
        memory_bytes=memory_bytes,
        lease_ttl_s=lease_ttl_s,
        repository_poll_s=repository_poll_s,
        default_queue_size=default_queue_size,
        drain_s=drain_s,
        settle_s=settle_s,
        limits=flags.limits(max_message_bytes),
        tls=flags.server_tls(tls_cert, tls_key, tls_ca),
    )

    async def main(stop: asyncio.Event) -> None:
        from mesh.node import serve  # noqa: PLC0415 - help must not load the runtimes
        from mesh.telemetry import tracing  # noqa: PLC0415

        await serve.run(
            config,
            tracing=tracing.configure(
                "mesh-node", node_or_router_id=id, sample_ratio=trace_sample, endpoint=flags.otlp_endpoint()
            ),
            stop=stop,
            on_started=lambda grpc, http: process.say_ready("node", id, grpc, http, as_json=json_ready),
        )

    process.run(main, loop=loop, exit_with_stdin=exit_with_stdin)


def folders(paths: list[Path]) -> tuple[Path, ...]:
    """Return the folders of `paths`, absolute. Raises `typer.BadParameter` for one that is not there."""
    for path in paths:
        if not path.is_dir():
            raise typer.BadParameter(f"expected a folder of models, found none at {path}", param_hint="--models")
    return tuple(path.resolve() for path in paths)
