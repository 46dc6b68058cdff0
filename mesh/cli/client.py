"""`mesh infer`, `mesh models` and `mesh nodes`: calls to a router through the Python client.

Each prints a table for people or JSON for programs; a call that fails is one sentence on stderr and exit code 1.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mesh.cli.process import fail
from mesh.cli.tables import milliseconds, short, size, table

if TYPE_CHECKING:
    from mesh_client import Client

DEFAULT: Final = "127.0.0.1:8001"
RELEASE: Final = "release"

Address = Annotated[str, typer.Option(metavar="HOST:PORT", envvar="MESH_ADDRESS", help="A router.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds to wait for the answer.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def infer(  # noqa: PLR0917 - typer calls it by name
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=VALUE", help="JSON such as x='[[1, 2]]', or x=@file.json, x=@file.npy."),
    ] = None,
    version: Annotated[str, typer.Option(help="Version; the latest unless given.")] = "",
    param: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Request parameter.")] = None,
    output: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this output.")] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print responses as they are made, of a model that gives several.")
    ] = False,
    address: Address = DEFAULT,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Run one inference and print its outputs."""
    with connected(address) as client:
        from mesh.cli.values import array, parameter, split_pair  # noqa: PLC0415 - help must not load numpy
        from mesh.core.errors import InvalidRequest  # noqa: PLC0415

        metadata = client.model_metadata(model, version=version, timeout_s=timeout)
        dtypes = {each.name: each.datatype for each in metadata.inputs}
        given = {}
        for text in inputs or []:
            name, value = split_pair(text, "--input")
            if name not in dtypes:
                raise InvalidRequest(f"model '{model}' has no input '{name}'; it has {', '.join(dtypes) or 'none'}")
            given[name] = array(name, value, dtypes[name])
        parameters = {name: parameter(value) for name, value in (split_pair(each, "--param") for each in param or [])}
        if stream:
            made = client.generate(model, given, version=version, outputs=output or None, parameters=parameters or None)
            show_responses(made, {each.name: each.datatype for each in metadata.outputs}, as_json)
            return
        begun_s = time.monotonic()
        result = client.infer(
            model, given, version=version, outputs=output or None, parameters=parameters or None, timeout_s=timeout
        )
        show_result(
            result, {each.name: each.datatype for each in metadata.outputs}, time.monotonic() - begun_s, as_json
        )


def show_responses(made: Iterator[Any], dtypes: dict[str, str], as_json: bool) -> None:
    """Print responses as they come: text as it is where that is all there is, else a line of JSON each."""
    from mesh.cli.values import plain  # noqa: PLC0415 - help must not load numpy

    text = list(dtypes.values()) == ["BYTES"] and not as_json
    for result in made:
        if text:
            (value,) = result.values()
            print(b"".join(value.reshape(-1)).decode("utf-8", "replace"), end="", flush=True)
        else:
            print(json.dumps({name: plain(value) for name, value in result.items()}), flush=True)
    if text:
        print()


def show_result(result: Any, dtypes: dict[str, str], seconds: float, as_json: bool) -> None:
    """Print the outputs of one inference."""
    from mesh.cli.values import plain  # noqa: PLC0415 - help must not load numpy

    outputs = [
        {"name": name, "datatype": dtypes.get(name, str(value.dtype)), "shape": list(value.shape), "data": plain(value)}
        for name, value in result.items()
    ]
    if as_json:
        answer = {"model_name": result.model_name, "model_version": result.model_version, "outputs": outputs}
        if result.parameters:
            answer["parameters"] = dict(result.parameters)
        print(json.dumps(answer))
        return
    rows = [(each["name"], each["datatype"], str(each["shape"]), short(json.dumps(each["data"]))) for each in outputs]
    print(table(("output", "type", "shape", "values"), rows))
    print(f"{result.model_name} version {result.model_version}, {milliseconds(seconds)}")


def models(  # noqa: PLR0917 - typer calls it by name
    name: Annotated[str, typer.Argument(help="Only this model, with its copies.")] = "",
    released: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="With `release` before it: forget that it ended processes.")
    ] = "",
    version: Annotated[str, typer.Option(help="With `release`: only this version.")] = "",
    address: Address = DEFAULT,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """List models, their state and where they are; `mesh models release MODEL` lifts a quarantine."""
    if released or version:
        if name != RELEASE or not released:
            fail(f"expected `mesh models {RELEASE} MODEL`, or at most one name", code=2)
        release(released, version, address, timeout, as_json=as_json)
        return
    with connected(address) as client:
        found = client.models(name, timeout_s=timeout)
    if as_json:
        print(json.dumps([model_record(each) for each in found]))
        return
    rows = [
        (
            each.name,
            each.version,
            each.runtime,
            each.state,
            size(each.size_bytes),
            ",".join(copy.node for copy in each.copies if copy.state == "ready") or "-",
            short(each.reason, 400 if name else 72),
        )
        for each in found
    ]
    print(table(("model", "version", "runtime", "state", "size", "ready on", "why"), rows))
    if name:
        copies = [
            (copy.node, copy.version, copy.state, size(copy.bytes), copy.device, short(copy.error or waits(copy)))
            for each in found
            for copy in each.copies
        ]
        if copies:
            print()
            print(table(("node", "version", "state", "memory", "device", "why"), copies))


def release(name: str, version: str, address: str, timeout: float, *, as_json: bool) -> None:
    """Forget that a model ended processes, and say of which versions something was forgotten."""
    with connected(address) as client:
        found = client.release(name, version=version, timeout_s=timeout)
    if as_json:
        print(json.dumps({"model": name, "released": found}))
    elif found:
        print(f"released {name} version {', '.join(found)}: it is loaded and called like any other")
    else:
        print(f"nothing is held against {name}")


def nodes(address: Address = DEFAULT, timeout: Timeout = 10.0, as_json: AsJson = False) -> None:
    """List nodes, their memory and how many models they hold."""
    with connected(address) as client:
        found = client.nodes(timeout_s=timeout)
    if as_json:
        print(json.dumps([node_record(each) for each in found]))
        return
    rows = [
        (
            each.id,
            each.address,
            "draining" if each.draining else "serving",
            str(sum(copy.state == "ready" for copy in each.copies)),
            ", ".join(f"{device.kind}:{device.index} {size(device.free_bytes)} free" for device in each.devices),
            ",".join(f"{key}={value}" for key, value in sorted(each.labels.items())),
        )
        for each in found
    ]
    print(table(("node", "address", "state", "ready copies", "devices", "labels"), rows))


@contextlib.contextmanager
def connected(address: str) -> Iterator[Client]:
    """Give a client of the router; a call that fails ends the process with its sentence."""
    from mesh.core.errors import MeshError  # noqa: PLC0415
    from mesh_client import Client, MeshClientError  # noqa: PLC0415 - help must not load grpc

    try:
        with Client(address) as client:
            yield client
    except (MeshClientError, MeshError) as error:
        fail(error.message)


def waits(copy: Any) -> str:
    """Return what a copy's load waits for, in words; empty when it waits for nothing."""
    return f"behind {copy.loads_before} other loads" if copy.loads_before else ""


def copy_record(copy: Any) -> dict[str, Any]:
    """Return a copy as JSON can hold it."""
    names = (
        "model",
        "version",
        "node",
        "state",
        "bytes",
        "last_used_s",
        "error",
        "device",
        "changed_s",
        "loads_before",
    )
    return {name: getattr(copy, name) for name in names}


def model_record(model: Any) -> dict[str, Any]:
    """Return a model version as JSON can hold it."""
    names = ("name", "version", "runtime", "state", "size_bytes", "digest", "reason")
    return {name: getattr(model, name) for name in names} | {"copies": [copy_record(each) for each in model.copies]}


def node_record(node: Any) -> dict[str, Any]:
    """Return a node as JSON can hold it."""
    names = ("id", "address", "draining", "started_s")
    device_names = ("kind", "index", "name", "total_bytes", "free_bytes")
    devices = [{name: getattr(each, name) for name in device_names} for each in node.devices]
    return {name: getattr(node, name) for name in names} | {
        "labels": dict(node.labels),
        "devices": devices,
        "copies": [copy_record(each) for each in node.copies],
    }
