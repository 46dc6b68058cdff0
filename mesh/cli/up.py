"""`mesh up`: a whole mesh on this machine with one command, for trying and developing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import tempfile
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

import mesh
from mesh.cli import flags, process
from mesh.cli.plan import Plan, node_names
from mesh.cli.router import DEFAULT, HTTP_PORT, GrpcPort, HttpPort, ServerName

if TYPE_CHECKING:
    from mesh.cli.local_registry import LocalRegistry

SAID: Final = "mesh up  "
"""Before each sentence on stderr that is not a child's."""

Nodes = Annotated[int, typer.Option(min=1, help="Nodes to start.")]
Models = Annotated[
    list[Path] | None, typer.Option(help="Model repository folder; may be given several times. Default: the demo's.")
]
OwnRegistry = Annotated[str, typer.Option(metavar="HOST:PORT,...", help="Use this etcd instead of a local registry.")]
NodePrefix = Annotated[str, typer.Option(help="Before the node ids, where several meshes share a registry.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON line on stdout when ready.")]
DataDir = Annotated[Path | None, typer.Option(help="Where the local etcd keeps its data.")]
StartTimeout = Annotated[float, typer.Option(min=1, help="Seconds to get ready.")]


def up(  # noqa: PLR0917 - typer calls it by name
    nodes: Nodes = 2,
    models: Models = None,
    host: flags.Host = "127.0.0.1",
    grpc_port: GrpcPort = DEFAULT.grpc_port,
    http_port: HttpPort = HTTP_PORT,
    registry: OwnRegistry = "",
    registry_ca: flags.RegistryCa = None,
    registry_cert: flags.RegistryCert = None,
    registry_key: flags.RegistryKey = None,
    registry_user: flags.RegistryUser = "",
    registry_password_file: flags.RegistryPasswordFile = None,
    server_name: ServerName = DEFAULT.server_name,
    node_prefix: NodePrefix = "",
    as_json: AsJson = False,
    data_dir: DataDir = None,
    start_timeout_s: StartTimeout = 120.0,
    wire: flags.Wire = DEFAULT.wire,
    log_level: flags.LogLevel = "warning",
    log_json: flags.LogJson = False,
    trace_sample: flags.TraceSample = 1.0,
    exit_with_stdin: flags.ExitWithStdin = False,
) -> None:
    """Start a registry, a router and nodes here, and keep them running until Ctrl-C."""
    process.set_logs(log_level, as_json=log_json)
    credentials = (registry_ca, registry_cert, registry_key, registry_user, registry_password_file)
    shared = [
        "--wire",
        flags.engine(wire),
        "--log-level",
        log_level,
        "--trace-sample",
        str(trace_sample),
        *(["--log-json"] if log_json else []),
    ]
    for flag, value in zip(("ca", "cert", "key", "user", "password-file"), credentials, strict=True):
        shared += [f"--registry-{flag}", str(value)] if registry and value else []
    # Nodes are reached from this machine alone, unless others share the registry.
    wildcard = host in {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
    plan = Plan(
        nodes=node_names(nodes, node_prefix),
        models=repositories(models) if models else (demo_models(),),
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        server_name=server_name,
        node_host=host if registry else "127.0.0.1",
        node_advertise=socket.gethostname() if registry and wildcard else "",
        shared_flags=tuple(shared),
    )
    given = flags.registry_config(registry, *credentials) if registry else None

    async def main(stop: asyncio.Event) -> None:
        from mesh.cli.local_registry import choose  # noqa: PLC0415 - help must not load grpc

        chosen = choose(given, registry, data_dir, say)
        # A node that is started again finds its journal there; another `mesh up` is another mesh.
        with tempfile.TemporaryDirectory(prefix="mesh-nodes-") as folder:
            here = replace(plan, state_dir=Path(folder))
            await run(here, chosen, stop, start_timeout_s=start_timeout_s, as_json=as_json)

    # uvloop starts children no faster, and its child watching differs from version to version.
    process.run(main, loop="asyncio", exit_with_stdin=exit_with_stdin)


async def run(
    plan: Plan, registry: LocalRegistry, stop: asyncio.Event, *, start_timeout_s: float, as_json: bool
) -> None:
    """Start a mesh, say when it is ready, keep it running until `stop` is set, and stop it whatever happens."""
    from mesh.cli.supervisor import Supervisor  # noqa: PLC0415 - help must not load grpc

    supervisor = Supervisor(plan, registry, say=say, relay=relay)
    try:
        with progress(f"starting a registry, a router and {len(plan.nodes)} nodes"):
            running = await unless(stop, supervisor.start(start_timeout_s))
        if running is not None:
            tell(supervisor, running, as_json=as_json)
            await unless(stop, supervisor.watch())
    finally:
        with progress("stopping: calls in flight finish first"):
            await supervisor.stop()


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, Any]) -> Any:
    """Run `work` until it ends or `stop` is set; return its result, None when it was stopped."""
    running = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return running.result() if running.done() else None
    finally:
        stopped.cancel()
        running.cancel()
        await asyncio.gather(running, stopped, return_exceptions=True)


def tell(supervisor: Any, running: Any, *, as_json: bool) -> None:
    """Print the one line on stdout that says an inference would succeed."""
    url, router = supervisor.registry.url, running.router
    if as_json:
        line = json.dumps(
            {
                "ready": True,
                "registry": url,
                "router": {"pid": supervisor.router.pid, "grpc": router.grpc, "http": router.http},
                "nodes": [
                    {"id": name, "pid": child.pid, "grpc": ready.grpc}
                    for (name, ready), child in zip(running.nodes, supervisor.nodes, strict=True)
                ],
            }
        )
    else:
        names = ",".join(name for name, _ in running.nodes)
        line = (
            f"ready  grpc {router.grpc}  http {router.http}  registry {url}  nodes {names}  models {running.models}\n"
            f"try:   mesh models --address {router.grpc}   (Ctrl-C stops everything)"
        )
    with contextlib.suppress(OSError):  # nobody reads it: no reason to stop serving
        print(line, flush=True)


def say(text: str) -> None:
    """Print a sentence about the mesh on stderr."""
    relay(SAID + text)


def relay(line: str) -> None:
    """Pass a line on to stderr; a reader who went away is no reason to stop."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(text: str) -> Iterator[None]:
    """Show a spinner on stderr while the block runs, on a terminal only."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    from rich.console import Console  # noqa: PLC0415 - only terminals need it

    with Console(stderr=True).status(text):
        yield


def repositories(paths: list[Path]) -> tuple[Path, ...]:
    """Return the folders of `paths`, absolute; ends the process with a sentence when one cannot hold a model."""
    for path in paths:
        if not path.is_dir():
            process.fail(f"expected a folder of models, found none at {path}")
        if not any(each.is_dir() for each in path.iterdir()):
            process.fail(f"there is no model in {path}: expected folders such as NAME/VERSION/model.onnx in it")
    return tuple(path.resolve() for path in paths)


def demo_models() -> Path:
    """Return the demo's model folder: the checkout's, or the one the installed package brought along."""
    package = Path(mesh.__file__).parent
    for folder in (package.parent / "models" / "demo", package / "_models" / "demo"):
        if folder.is_dir():
            return folder
    raise typer.BadParameter("the demo models are not here: give a folder of models", param_hint="--models")
