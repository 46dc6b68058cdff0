"""Everything a node can be told, built once at the edge (`mesh.cli`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mesh.core.forwarding import Pattern
from mesh.registry.config import RegistryConfig
from mesh.wire.transport import Engine, Limits, TlsConfig


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Configuration of one node process."""

    id: str
    """Unique in the mesh; a second live node with the same id is refused."""
    repositories: tuple[Path, ...]
    """Model repository folders, scanned in this order; the first that has a model name wins."""
    host: str = "127.0.0.1"
    """Address to listen on. Loopback unless told otherwise."""
    grpc_port: int = 0
    """0: any free port."""
    http_port: int | None = None
    """Port of /metrics; 0 any free port, None: no HTTP."""
    advertise: str = ""
    """host[:port] that routers reach this node at; empty: `host` and the real port."""
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that models may ask for (node_labels in model.yaml)."""
    memory_bytes: int = 0
    """Memory for models on the CPU; 0: what the cgroup or host has, less 20% for everything else."""
    lease_ttl_s: int = 5
    """How long the mesh waits before it takes a silent node for dead. etcd's shortest useful value is about 2."""
    repository_poll_s: float = 5.0
    """How often the repositories are scanned again; 0: only on request."""
    default_queue_size: int = 1024
    """Requests that may wait per copy when model.yaml says nothing: at 1 ms a request, about a second of work."""
    kept_bytes: int = 256 * 1024 * 1024
    """Snapshots of sessions on other nodes that may be kept for routers without room, beside `memory_bytes`."""
    isolation: Literal["process", "none", "all"] = "process"
    """Where Python models run whose model.yaml does not say: in worker processes, or in the node's own. "all": every
    one in worker processes, whatever it says."""
    grpc_header_forward_pattern: Pattern | None = None
    """Headers that models read as parameters (`core.forwarding`), of callers who come to this node itself: for those
    who come through a router it decides. None: none."""
    drain_s: float = 30.0
    """How long a stopping node waits for calls in flight."""
    move_s: float = 20.0
    """How long a leaving node waits for its models in demand to serve elsewhere."""
    settle_s: float = 1.0
    """How long a stopping node keeps answering after it left the registry, so that routers hear of it first."""
    state_dir: Path | None = None
    """Folder of the node's journal: what it loads and runs, from which the next process of this node sees after a crash
    what the last one died of. It should outlive the process, which a container's own files do not; None: no journal."""
    hang_s: float = 60.0
    """How long its event loop may stand before the process ends (`mesh.telemetry.watchdog`), so that it is started
    again; 0: for ever. Nothing that it does on purpose takes a second."""
    wire: Engine = "mesh"
    """What carries the calls: our own wire, or grpcio for comparison and as a way out."""
    limits: Limits = field(default_factory=Limits)
    tls: TlsConfig | None = None
    """TLS of the gRPC port; None: plaintext."""
    node_tls: TlsConfig | None = None
    """TLS towards other nodes, which pipelines' tensors go to; None: plaintext."""
