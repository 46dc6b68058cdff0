"""`mesh apply` and `mesh pipelines`: store pipelines from files, list them, show one, chain models, forget one."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from mesh.cli.client import DEFAULT, Address, AsJson, Timeout, connected
from mesh.cli.drawing import drawn, lively
from mesh.cli.process import fail
from mesh.cli.tables import table

app = typer.Typer(help="Pipelines: list them, show one, chain models, delete one.", no_args_is_help=False)

File = Annotated[Path, typer.Option("-f", "--file", help="YAML with one or more documents; - for stdin.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check only.")]


def apply(file: File, dry_run: DryRun = False, address: Address = DEFAULT, timeout: Timeout = 60.0) -> None:
    """Check what a file describes and store it in the mesh. Nothing of a document with a problem is stored."""
    from mesh.cli.manifest import BadManifest, read  # noqa: PLC0415 - help must not load what it needs

    named = "stdin" if str(file) == "-" else str(file)
    try:
        manifests = read(named, sys.stdin.read() if named == "stdin" else file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        fail(f"cannot read {named}: {error}", code=2)
    except BadManifest as error:
        fail(str(error), code=2)
    told = []
    with connected(address) as client:
        for manifest in manifests:
            answer = client.apply_pipeline(manifest.pipeline, dry_run=dry_run, timeout_s=timeout)
            told += [f"{named}:{manifest.line_of(each.path)}: {each.path}: {each.message}" for each in answer.problems]
            if not answer.problems:
                print(_outcome(answer, dry_run=dry_run))
    if told:
        fail("\n".join(told))


@app.callback(invoke_without_command=True)
def listed(
    context: typer.Context, address: Address = DEFAULT, timeout: Timeout = 10.0, as_json: AsJson = False
) -> None:
    """List the pipelines and their steps."""
    if context.invoked_subcommand is not None:
        return
    with connected(address) as client:
        found = client.pipelines(timeout_s=timeout)
    if as_json:
        print(json.dumps([record(each) for each in found]))
        return
    rows = [
        (each.name, str(each.revision), ", ".join(f"{step.name}: {step.model}" for step in each.steps))
        for each in found
    ]
    print(table(("pipeline", "revision", "steps"), rows))


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    interval_s: Annotated[float, typer.Option(min=0.0, help="Seconds to watch for the rates; 0: do not.")] = 1.0,
    address: Address = DEFAULT,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Draw a pipeline: where each step gets its inputs, on which node it runs, how often and how long just now."""
    with connected(address) as client:
        (found,) = client.pipelines(name, timeout_s=timeout)
        if as_json:
            print(json.dumps(record(found)))
            return
        metadata = client.model_metadata(name, timeout_s=timeout)
        cut = client.explain_pipeline(name, timeout_s=timeout)
        before = client.model_statistics(name, timeout_s=timeout)
        time.sleep(interval_s)
        now = client.model_statistics(name, timeout_s=timeout)
    print(drawn(found, metadata, cut, lively(before, now, interval_s)))


@app.command("delete")
def delete(
    name: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    address: Address = DEFAULT,
    timeout: Timeout = 10.0,
) -> None:
    """Forget a pipeline; requests that run finish."""
    with connected(address) as client:
        client.delete_pipeline(name, timeout_s=timeout)
    print(f"pipeline {name} is deleted")


@app.command("chain")
def chain(
    name: Annotated[str, typer.Argument(help="Name of the new pipeline.")],
    models: Annotated[list[str], typer.Argument(help="Models, the first to run first.")],
    dry_run: DryRun = False,
    address: Address = DEFAULT,
    timeout: Timeout = 60.0,
) -> None:
    """Make a pipeline of models one after another: tensors match by name, or where each has one, by position."""
    with connected(address) as client:
        signatures = [client.model_metadata(model, timeout_s=timeout) for model in models]
        answer = client.apply_pipeline(chained(name, models, signatures), dry_run=dry_run, timeout_s=timeout)
    if answer.problems:
        fail("\n".join(f"{each.path}: {each.message}" for each in answer.problems))
    print(_outcome(answer, dry_run=dry_run))


def chained(name: str, models: list[str], signatures: list[Any]) -> Any:
    """Return the pipeline that runs `models` in turn. What a model wants and none before it gives, callers give."""
    from mesh.api.messages import control  # noqa: PLC0415 - help must not load protobuf

    pipeline = control.Pipeline(name=name)
    given: dict[str, str] = {}
    before: list[str] = []
    for index, (model, found) in enumerate(zip(models, signatures, strict=True)):
        step = pipeline.steps.add(name=model if models.count(model) == 1 else f"{model}-{index + 1}", model=model)
        wanted = [each.name for each in found.inputs]
        for each in wanted:
            alone = len(wanted) == len(before) == 1
            step.inputs[each] = given.get(each) or (given[before[0]] if alone else f"${each}")
        before = [each.name for each in found.outputs]
        given = {**given, **{each: f"{step.name}.{each}" for each in before}}
    for each in before:
        pipeline.outputs[each] = given[each]
    return pipeline


def record(found: Any) -> dict[str, Any]:
    """Return a pipeline as JSON can hold it."""
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415 - help must not load protobuf

    return MessageToDict(found, preserving_proto_field_name=True)


def _outcome(answer: Any, *, dry_run: bool) -> str:
    what = f"pipeline {answer.pipeline.name}"
    if not answer.changed:
        return f"{what} is as it was, revision {answer.pipeline.revision}"
    return f"{what} {'would be' if dry_run else 'is now'} revision {answer.pipeline.revision}"
