"""The entry of `mesh`: the list of its commands. What a command does is imported when it runs, so help is quick."""

from __future__ import annotations

import os
import platform
import sys
from typing import Annotated

import typer

from mesh import __version__
from mesh.cli import client, node, pipelines, router, up
from mesh.cli.bench import bench
from mesh.cli.demo import demo
from mesh.cli.explain import explain
from mesh.cli.top import top

HELP = "A gRPC-native model mesh: KServe v2 inference over many nodes, with etcd as its registry."

app = typer.Typer(
    name="mesh",
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True, help=HELP)
def versions(
    version: Annotated[
        bool, typer.Option("--version", help="Print the mesh's and Python's versions, and exit.")
    ] = False,
) -> None:
    """Print the versions and end the program, where they are asked for; else the command that was named runs."""
    if version:
        print(f"mesh {__version__}, Python {platform.python_version()}")
        raise typer.Exit


app.command("up")(up.up)
app.command("router")(router.router)
app.command("node")(node.node)
app.command("infer")(client.infer)
app.command("models")(client.models)
app.command("nodes")(client.nodes)
app.command("explain")(explain)
app.command("top")(top)
app.command("apply")(pipelines.apply)
app.add_typer(pipelines.app, name="pipelines")
app.command("demo")(demo)
app.command("bench", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench)


def main() -> None:
    """Run the command line; the process exits with the command's code: 2 for wrong flags, with one sentence."""
    # The C++ core writes lines of its own on stderr; what matters of them reaches us as errors with sentences.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        code = 130
    except typer.TyperException as error:
        message = error.format_message()
        if message:  # empty when the help was shown instead
            print(f"error: {message}", file=sys.stderr)
        code = error.exit_code
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
