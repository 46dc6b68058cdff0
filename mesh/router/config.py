"""Everything a router can be told, built once at the edge (`mesh.cli`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from mesh.core.forwarding import Pattern
from mesh.registry.config import RegistryConfig
from mesh.wire.transport import Engine, Limits, TlsConfig


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Configuration of one router process."""

    host: str = "127.0.0.1"
    """Address to listen on. Loopback unless told otherwise."""
    grpc_port: int = 8001
    """Triton's default, so that clients' defaults work. 0: any free port."""
    http_port: int | None = 8000
    """Port of /metrics; 0 any free port, None: no HTTP."""
    server_name: str = "mesh"
    """The name in ServerMetadata; some clients look for "triton" there."""
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    cold_wait_s: float = 60.0
    """How long a call without a deadline waits for a cold model."""
    max_waiting: int = 1024
    """Calls that may wait for one cold model; more are refused at once."""
    max_attempts: int = 3
    """Copies asked for one safe call: the first and two more."""
    session_bytes: int = 256 * 1024 * 1024
    """What may be kept of all sessions together (their last states, and steps since) so that they outlive their nodes:
    60,000 of 4 KB. From half of it on other nodes keep the states of those unused longest."""
    grpc_header_forward_pattern: Pattern | None = None
    """Headers of gRPC calls that models read as parameters (`core.forwarding`); None: none."""
    http_header_forward_pattern: Pattern | None = None
    """The same of HTTP requests."""
    drain_s: float = 30.0
    """How long a stopping router waits for calls in flight."""
    settle_s: float = 1.0
    """How long a stopping router says NOT_SERVING before it refuses calls, so that balancers hear of it first."""
    compact_s: float = 300.0
    """The leading router lets the registry forget its history when it is this old; 0: somebody else does."""
    hang_s: float = 60.0
    """How long its event loop may stand before the process ends (`mesh.telemetry.watchdog`), so that it is started
    again; 0: for ever. Nothing that it does on purpose takes a second."""
    wire: Engine = "mesh"
    """What carries the calls: our own wire, or grpcio for comparison and as a way out."""
    reuse_port: bool = False
    """Share the gRPC port with other workers of this router (`mesh router --workers`)."""
    limits: Limits = field(default_factory=Limits)
    tls: TlsConfig | None = None
    """TLS of the gRPC port; None: plaintext."""
    node_tls: TlsConfig | None = None
    """TLS towards nodes; None: plaintext."""
