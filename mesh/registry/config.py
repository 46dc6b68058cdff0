"""How a process reaches the registry."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.wire.transport import TlsConfig


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """Endpoints and credentials of an etcd v3 (or of the embedded store, which looks the same)."""

    endpoints: tuple[str, ...] = ("127.0.0.1:2379",)
    """host:port of each member. A call goes to the next one when one does not answer."""
    tls: TlsConfig | None = None
    """None: plaintext."""
    user: str = ""
    """etcd user; empty: no authentication."""
    password: str = ""
    """Password of `user`, where no file is given."""
    password_file: str = ""
    """File that holds the password of `user`, read again at each authentication."""
    timeout_s: float = 5.0
    """Time for one call over all endpoints before `RegistryUnavailable`."""
