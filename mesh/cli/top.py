"""`mesh top`: what the mesh does just now, again and again: nodes, models that are asked, live sessions."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mesh.cli.client import DEFAULT, Address, AsJson, Timeout, connected
from mesh.cli.drawing import Live
from mesh.cli.tables import milliseconds, size, table

if TYPE_CHECKING:
    from mesh_client import Client

MOST_MODELS: Final = 20
"""Models that are shown: those with the most requests."""
CLEAR: Final = "\x1b[2J\x1b[H"


@dataclass(slots=True)
class Seen:
    """What was counted at a moment."""

    at_s: float
    nodes: list[Any] = field(default_factory=list)
    models: dict[tuple[str, str], Any] = field(default_factory=dict)
    sessions: dict[tuple[str, str], Any] = field(default_factory=dict)


def top(
    interval_s: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one look and end.")] = False,
    address: Address = DEFAULT,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Show what the mesh does just now: nodes, models that are asked, live sessions. Ctrl-C ends it."""
    with connected(address) as client:
        before = look(client, timeout)
        while True:
            time.sleep(interval_s)
            now = look(client, timeout)
            told = record(before, now)
            if as_json:
                print(json.dumps(told), flush=True)
            else:
                print((CLEAR if sys.stdout.isatty() else "") + shown(told), flush=True)
            if once:
                return
            before = now


def look(client: Client, timeout_s: float) -> Seen:
    """Ask the router for everything."""
    nodes = client.nodes(timeout_s=timeout_s)
    statistics = client.model_statistics(timeout_s=timeout_s).model_stats
    sessions = client.sessions(timeout_s=timeout_s)
    return Seen(
        time.monotonic(),
        nodes,
        {(each.name, each.version): each for each in statistics},
        {(each.model, each.version): each for each in sessions},
    )


def record(before: Seen, now: Seen) -> dict[str, Any]:
    """Return what happened between two looks, as JSON can hold it; rates are per second."""
    lasted_s = max(1e-9, now.at_s - before.at_s)

    def rate(new: Any, old: Any, name: str) -> float:
        more: int = getattr(new, name) - (getattr(old, name) if old is not None else 0)
        return max(0, more) / lasted_s

    models: list[dict[str, Any]] = []
    for (name, version), each in now.models.items():
        live = Live.between(before.models.get((name, version)), each, lasted_s)
        # A node that went takes its counts along.
        asked, failed = max(0.0, live.per_s), max(0.0, live.failed_per_s)
        if asked or failed:
            told = {"requests": asked, "failed": failed, "mean_s": max(0.0, live.mean_s)}
            models.append({"model": name, "version": version, **told})
    sessions = [
        {
            "model": each.model,
            "version": each.version,
            "live": each.live,
            "nodes": dict(each.nodes),
            "steps": rate(each, before.sessions.get(key), "steps"),
            "kept_bytes": each.kept_bytes,
            "kept_elsewhere": each.kept_elsewhere,
            "unprotected": each.unprotected,
            "generations": each.generations,
            "responses": rate(each, before.sessions.get(key), "responses"),
            "failovers": each.failovers,
            "lost": each.lost,
        }
        for key, each in now.sessions.items()
    ]
    nodes = [
        {
            "node": each.id,
            "state": "draining" if each.draining else "serving",
            "copies": sum(copy.state == "ready" for copy in each.copies),
            "free_bytes": sum(device.free_bytes for device in each.devices),
        }
        for each in now.nodes
    ]
    models.sort(key=lambda each: (-each["requests"], each["model"]))
    return {"nodes": nodes, "models": models, "sessions": sessions}


def shown(told: dict[str, Any]) -> str:
    """Return a look as tables."""
    parts = [
        table(
            ("node", "state", "copies", "free"),
            [(each["node"], each["state"], str(each["copies"]), size(each["free_bytes"])) for each in told["nodes"]],
        )
    ]
    models = [
        (
            each["model"],
            each["version"],
            f"{each['requests']:.1f}",
            f"{each['failed']:.1f}",
            milliseconds(each["mean_s"]),
        )
        for each in told["models"][:MOST_MODELS]
    ]
    parts.append(
        table(("model", "version", "requests/s", "failed/s", "mean"), models)
        if models
        else "no model is asked just now"
    )
    sessions = [
        (
            f"{each['model']}/{each['version']}",
            str(each["live"]),
            ",".join(f"{node}:{count}" for node, count in sorted(each["nodes"].items())) or "-",
            f"{each['steps']:.1f}",
            size(each["kept_bytes"]) + (f" (+{each['kept_elsewhere']} elsewhere)" if each["kept_elsewhere"] else ""),
            str(each["generations"]),
            f"{each['responses']:.1f}",
            f"{each['failovers']} ({each['lost']} lost)",
        )
        for each in told["sessions"]
    ]
    header = ("sessions", "live", "on", "steps/s", "kept", "generations", "responses/s", "failovers")
    parts.append(table(header, sessions) if sessions else "no session went through this router yet")
    return "\n\n".join(parts)
