"""`mesh node`: its flags, one for every field of `NodeConfig`, and how it is run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from mesh.cli import flags, process
from mesh.cli.flags import TUNING
from mesh.node.config import NodeConfig

DEFAULT: Final = NodeConfig(id="", repositories=())

Id = Annotated[str, typer.Option(help="Unique in the mesh.")]
Models = Annotated[list[Path], typer.Option(help="Model repository folder; may be given several times.")]
GrpcPort = Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")]
HttpPort = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Metrics; 0: any free port. No HTTP port unless given.")
]
Advertise = Annotated[str, typer.Option(metavar="HOST[:PORT]", help="Where routers reach it.")]
StateDir = Annotated[
    str, typer.Option(help="Folder of its journal, in which a crash leaves word; auto: the user's, empty: none.")
]
Label = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Label that models may ask for.")]
MemoryBytes = Annotated[int, typer.Option(min=0, help="Memory for models; 0: 80% of what there is.")]
LeaseTtl = Annotated[
    int, typer.Option(min=2, help="Seconds of silence after which it counts as dead.", rich_help_panel=TUNING)
]
RepositoryPoll = Annotated[
    float, typer.Option(min=0, help="Seconds between scans of the folders; 0: on request.", rich_help_panel=TUNING)
]
QueueSize = Annotated[int, typer.Option(min=1, help="Requests that may wait per copy.", rich_help_panel=TUNING)]
KeptBytes = Annotated[
    int,
    typer.Option(
        min=0, help="Kept of other nodes' sessions, for routers without room (--session-bytes).", rich_help_panel=TUNING
    ),
]
Move = Annotated[
    float,
    typer.Option(min=0.0, help="Seconds to wait, when stopping, for models in demand to move elsewhere."),
]
Settle = Annotated[
    float, typer.Option(min=0, help="Seconds to keep answering after leaving the registry.", rich_help_panel=TUNING)
]


Isolation = Annotated[
    str,
    typer.Option(
        help="Where Python models run that do not say: process (workers of their own) or none (in the node). "
        "all: in workers whatever they say."
    ),
]


def node(  # noqa: PLR0917 - typer calls it by name
    id: Id,  # noqa: A002 - the flag is --id
    models: Models,
    host: flags.Host = DEFAULT.host,
    grpc_port: GrpcPort = DEFAULT.grpc_port,
    http_port: HttpPort = DEFAULT.http_port,
    advertise: Advertise = DEFAULT.advertise,
    label: Label = None,
    memory_bytes: MemoryBytes = DEFAULT.memory_bytes,
    state_dir: StateDir = flags.AUTO,
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
    node_tls_ca: flags.NodeTlsCa = None,
    node_tls_cert: flags.NodeTlsCert = None,
    node_tls_key: flags.NodeTlsKey = None,
    lease_ttl_s: LeaseTtl = DEFAULT.lease_ttl_s,
    repository_poll_s: RepositoryPoll = DEFAULT.repository_poll_s,
    default_queue_size: QueueSize = DEFAULT.default_queue_size,
    kept_bytes: KeptBytes = DEFAULT.kept_bytes,
    isolation: Isolation = DEFAULT.isolation,
    grpc_header_forward_pattern: flags.GrpcHeaders = None,
    drain_s: flags.Drain = DEFAULT.drain_s,
    move_s: Move = DEFAULT.move_s,
    settle_s: Settle = DEFAULT.settle_s,
    hang_s: flags.Hang = DEFAULT.hang_s,
    max_message_bytes: flags.MaxMessageBytes = DEFAULT.limits.max_message_bytes,
    max_connections: flags.MaxConnections = DEFAULT.limits.max_connections,
    held_bytes: flags.HeldBytes = DEFAULT.limits.held_bytes,
    loop: flags.Loop = "auto",
    wire: flags.Wire = DEFAULT.wire,
    log_level: flags.LogLevel = "info",
    log_json: flags.LogJson = False,
    trace_sample: flags.TraceSample = 1.0,
    json_ready: flags.JsonReady = False,
    exit_with_stdin: flags.ExitWithStdin = False,
) -> None:
    """Run a node: it holds models and answers inference for routers."""
    process.set_logs(log_level, as_json=log_json)
    credentials = (registry_ca, registry_cert, registry_key, registry_user, registry_password_file)
    tls = flags.server_tls(tls_cert, tls_key, tls_ca)
    config = NodeConfig(
        id=named(id),
        repositories=folders(models),
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        advertise=advertise,
        registry=flags.registry_config(registry, *credentials, timeout_s=registry_timeout_s),
        labels=flags.labels(label or []),
        memory_bytes=memory_bytes,
        state_dir=flags.state_folder(state_dir),
        lease_ttl_s=lease_ttl_s,
        repository_poll_s=repository_poll_s,
        default_queue_size=default_queue_size,
        kept_bytes=kept_bytes,
        isolation=isolated(isolation),
        grpc_header_forward_pattern=flags.pattern(grpc_header_forward_pattern, "--grpc-header-forward-pattern"),
        drain_s=drain_s,
        move_s=move_s,
        settle_s=settle_s,
        hang_s=hang_s,
        wire=flags.engine(wire),
        limits=flags.limits(max_message_bytes, max_connections=max_connections, held_bytes=held_bytes),
        tls=tls,
        # Nodes of one mesh are alike: what one shows to its callers and trusts, it uses towards another.
        node_tls=flags.node_tls(node_tls_cert, node_tls_key, node_tls_ca, asked=False) or tls,
    )
    run(config, process.Shell(loop, exit_with_stdin=exit_with_stdin, json_ready=json_ready, sample_ratio=trace_sample))


def run(config: NodeConfig, shell: process.Shell) -> None:
    """Serve as `config` says until a signal."""

    async def main(stop: asyncio.Event) -> None:
        from mesh.node import serve  # noqa: PLC0415 - help must not load the runtimes

        tracing = shell.tracing("mesh-node", config.id)
        await serve.run(config, tracing=tracing, stop=stop, on_started=shell.say_ready("node", config.id))

    process.run(main, loop=shell.loop, exit_with_stdin=shell.exit_with_stdin)


def named(name: str) -> str:
    """Return `name` if it is one."""
    if not name:
        raise typer.BadParameter("expected a name, got an empty text", param_hint="--id")
    return name


def isolated(said: str) -> Literal["process", "none", "all"]:
    """Return where Python models run. Raises `typer.BadParameter`."""
    match said:
        case "process" | "none" | "all":
            return said
    raise typer.BadParameter(f"expected process, none or all, got {said!r}", param_hint="--isolation")


def folders(paths: list[Path]) -> tuple[Path, ...]:
    """Return the folders of `paths`, absolute. Raises `typer.BadParameter` for one that is not there."""
    for path in paths:
        if not path.is_dir():
            raise typer.BadParameter(f"expected a folder of models, found none at {path}", param_hint="--models")
    return tuple(path.resolve() for path in paths)
