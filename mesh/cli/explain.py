"""`mesh explain`: where a model would be loaded now, or where the steps of a pipeline run, and why."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from mesh.cli.client import DEFAULT, Address, AsJson, Timeout, connected
from mesh.cli.process import fail
from mesh.cli.tables import short, size, table

REMOVE = "remove-node"


def explain(  # noqa: PLR0917 - typer calls it by name
    model: Annotated[str, typer.Argument(help="Name of the model or pipeline; not needed with --what-if.")] = "",
    version: Annotated[str, typer.Option(help="Version; the latest unless given.")] = "",
    what_if: Annotated[
        str, typer.Option(metavar=f"{REMOVE}=NODE", help="Decide as if this node were not there; nothing is done.")
    ] = "",
    address: Address = DEFAULT,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Print where a model would be loaded now, node by node and why; or where the steps of a pipeline run."""
    what, _, gone = what_if.partition("=")
    if what_if and (what != REMOVE or not gone):
        fail(f"expected --what-if {REMOVE}=NODE, got '{what_if}'", code=2)
    if not model and not gone:
        fail(f"expected a model, or --what-if {REMOVE}=NODE, got neither", code=2)
    with connected(address) as client:
        found = client.explain(model, version, remove_node=gone, timeout_s=timeout)
        cut = None if found or not model else client.explain_pipeline(model, timeout_s=timeout)
    if cut is not None:
        from mesh.cli.pipelines import record as as_record  # noqa: PLC0415 - help must not load what it needs

        print(json.dumps(as_record(cut)) if as_json else cut_told(cut))
    elif as_json:
        print(json.dumps([record(each) for each in found]))
    elif model:
        for each in found:
            print(told(each))
    else:
        print(moves(found, gone))


def told(found: Any) -> str:
    """Return a decision as a table, the nodes that can hold it first."""
    where = f"it would go to node {found.node}" if found.node else f"no node can take it now: {found.why_none}"
    lines = [f"{found.name} version {found.version} is {found.state} and needs {size(found.needs_bytes)}; {where}"]
    lines += [f"it is under suspicion: {found.suspected}"] if found.suspected else []
    names = next(([score.name for score in each.scores] for each in found.verdicts if each.scores), [])
    rows = []
    for each in found.verdicts:
        state = each.copy or "-"
        if each.refused_by:
            rows.append((each.node, state, "no", f"{each.refused_by}: {short(each.reason, 90)}", *("" for _ in names)))
            continue
        cost = f"evicts {size(each.evicts_bytes)} worth {each.loss:.3g}" if each.evicts_bytes else f"fits {each.device}"
        scores = [f"{score.value:.2f}/{score.weight:g}" for score in each.scores]
        rows.append((each.node, state, f"{each.total:.2f}", cost, *scores))
    lines.append(table(("node", "copy", "score", "why", *names), rows))
    return "\n".join(lines)


def cut_told(cut: Any) -> str:
    """Return where the steps of a pipeline run, and what travels."""
    head = f"{cut.name}, revision {cut.revision}: "
    if cut.together:
        many = len(cut.together) > 1
        which = "any of them holds" if many else "which holds"
        head += f"in one hop on {' or '.join(cut.together)}, {which} all of its models"
        return head
    nodes = sorted({each.node for each in cut.steps if each.node})
    head += f"over {len(nodes)} nodes" if nodes else "step by step from the router"
    head += f"; {cut.alternatives} other cuts are as good" if cut.alternatives else ""
    steps = [(each.step, each.model, each.node or "router", each.why) for each in cut.steps]
    ways = [
        (each.tensor, each.origin or "router", each.to or "router", f"~{size(each.bytes)}" if each.bytes else "")
        for each in cut.journeys
    ]
    parts = [head, table(("step", "model", "runs on", "why"), steps)]
    return "\n\n".join([*parts, table(("tensor", "from", "to", "size"), ways)] if ways else parts)


def moves(found: list[Any], gone: str) -> str:
    """Return what would become of the models that only one node serves."""
    if not found:
        return f"without node {gone} nothing would have to move: no model is served by it alone"
    rows = [(each.name, each.version, each.node or "-", short(each.why_none, 90)) for each in found]
    kept = sum(1 for each in found if each.node)
    head = f"without node {gone}: {len(found)} models served by it alone, {kept} of them would find room"
    return f"{head}\n{table(('model', 'version', 'would go to', 'why not'), rows)}"


def record(found: Any) -> dict[str, Any]:
    """Return a decision as JSON can hold it."""
    names = ("name", "version", "state", "needs_bytes", "node", "why_none", "suspected")
    verdict = ("node", "copy", "refused_by", "reason", "device", "evicts_bytes", "loss", "total")
    return {name: getattr(found, name) for name in names} | {
        "verdicts": [
            {name: getattr(each, name) for name in verdict}
            | {"scores": {score.name: score.value for score in each.scores}}
            for each in found.verdicts
        ]
    }
