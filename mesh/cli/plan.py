"""What a `mesh up` starts, as a value: made from flags in `mesh.cli.up`, carried out by `mesh.cli.supervisor`."""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start."""

    nodes: tuple[str, ...]
    """Node ids."""
    models: tuple[Path, ...]
    host: str = "127.0.0.1"
    grpc_port: int = 8001
    http_port: int = 8000
    server_name: str = "mesh"
    node_host: str = "127.0.0.1"
    node_advertise: str = ""
    state_dir: Path | None = None
    """Folder of the nodes' journals; None: they keep none."""
    shared_flags: tuple[str, ...] = ()
    """Flags that router and nodes get alike: registry credentials, logs, traces."""


def node_names(count: int, prefix: str = "") -> tuple[str, ...]:
    """Return `count` node ids: a, b, c, ... with `prefix` before; node-27 and so on beyond the alphabet."""
    letters = string.ascii_lowercase
    return tuple(prefix + (letters[at] if at < len(letters) else f"node-{at + 1}") for at in range(count))
