"""Flags that several commands share, and the configuration they become.

Raises `typer.BadParameter` (exit code 2, one sentence) for a value that makes no sense.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from mesh.core.forwarding import Pattern, header_pattern
from mesh.registry.config import RegistryConfig
from mesh.telemetry.logs import LEVELS
from mesh.wire.transport import ENGINES, Engine, Limits, TlsConfig

PASSWORD_VARIABLE: Final = "MESH_REGISTRY_PASSWORD"  # noqa: S105 - a name, not a password
OTLP_VARIABLE: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"

REGISTRY: Final = "Registry"
TLS: Final = "TLS"
TELEMETRY: Final = "Telemetry"
TUNING: Final = "Tuning"

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Registry = Annotated[
    str,
    typer.Option(
        metavar="HOST:PORT,...", help="etcd members; etcd://, http:// or https:// may stand before.", show_default=True
    ),
]
RegistryCa = Annotated[Path | None, typer.Option(help="PEM roots of the registry.", rich_help_panel=REGISTRY)]
RegistryCert = Annotated[Path | None, typer.Option(help="PEM certificate to show it.", rich_help_panel=REGISTRY)]
RegistryKey = Annotated[Path | None, typer.Option(help="PEM key of the certificate.", rich_help_panel=REGISTRY)]
RegistryUser = Annotated[
    str, typer.Option(help=f"etcd user; the password comes from {PASSWORD_VARIABLE}.", rich_help_panel=REGISTRY)
]
RegistryPasswordFile = Annotated[
    Path | None, typer.Option(help="File that holds the password; read again when etcd asks.", rich_help_panel=REGISTRY)
]
RegistryTimeout = Annotated[float, typer.Option(help="Seconds for one registry call.", rich_help_panel=REGISTRY)]
TlsCert = Annotated[Path | None, typer.Option(help="PEM certificate chain of the gRPC port.", rich_help_panel=TLS)]
TlsKey = Annotated[Path | None, typer.Option(help="PEM key of the certificate.", rich_help_panel=TLS)]
TlsCa = Annotated[Path | None, typer.Option(help="PEM roots that clients must chain to (mTLS).", rich_help_panel=TLS)]
Drain = Annotated[float, typer.Option(min=0, help="Seconds for calls in flight at the end.", rich_help_panel=TUNING)]
Hang = Annotated[
    float,
    typer.Option(
        min=0,
        help="Seconds its event loop may stand before the process ends; 0: for ever.",
        rich_help_panel=TUNING,
    ),
]
NoHttp = Annotated[bool, typer.Option("--no-http", help="No HTTP port.")]
MaxMessageBytes = Annotated[int, typer.Option(min=1, help="Largest message taken in.", rich_help_panel=TUNING)]
MaxConnectionAge = Annotated[
    float,
    typer.Option(
        min=0, help="Seconds after which clients are asked to connect anew; 0: never.", rich_help_panel=TUNING
    ),
]
HeldBytes = Annotated[
    int,
    typer.Option(
        min=0, help="Bytes that callers may make it hold; 0: an eighth of the memory.", rich_help_panel=TUNING
    ),
]
MaxConnections = Annotated[
    int,
    typer.Option(min=0, help="Connections at a time; 0: what the limit of open files leaves.", rich_help_panel=TUNING),
]
GrpcHeaders = Annotated[
    str | None,
    typer.Option(
        "--grpc-header-forward-pattern", metavar="REGEX", help="Headers of gRPC calls that models read as parameters."
    ),
]
HttpHeaders = Annotated[
    str | None,
    typer.Option("--http-header-forward-pattern", metavar="REGEX", help="The same of HTTP requests."),
]
LogLevel = Annotated[str, typer.Option(metavar="|".join(LEVELS), help="Least level to log.", rich_help_panel=TELEMETRY)]
LogJson = Annotated[bool, typer.Option("--log-json", help="Log JSON lines.", rich_help_panel=TELEMETRY)]
TraceSample = Annotated[
    float,
    typer.Option(
        min=0, max=1, help=f"Share of traces recorded; traces go to {OTLP_VARIABLE}.", rich_help_panel=TELEMETRY
    ),
]
Loop = Annotated[str, typer.Option(metavar="auto|uvloop|asyncio", help="Event loop.", rich_help_panel=TUNING)]
Wire = Annotated[str, typer.Option(metavar="|".join(ENGINES), help="What carries the calls.", rich_help_panel=TUNING)]
JsonReady = Annotated[bool, typer.Option("--json-ready", help="Say ready as one JSON line.", hidden=True)]
ExitWithStdin = Annotated[bool, typer.Option("--exit-with-stdin", help="Stop when stdin ends.", hidden=True)]
NodeTls = Annotated[bool, typer.Option("--node-tls", help="TLS towards nodes, system roots.", rich_help_panel=TLS)]
NodeTlsCa = Annotated[Path | None, typer.Option(help="PEM roots of the nodes.", rich_help_panel=TLS)]
NodeTlsCert = Annotated[Path | None, typer.Option(help="PEM certificate to show nodes.", rich_help_panel=TLS)]
NodeTlsKey = Annotated[Path | None, typer.Option(help="PEM key of the certificate.", rich_help_panel=TLS)]


def registry_config(  # noqa: PLR0917 - the flags of the registry, in their order
    endpoints: str,
    ca: Path | None = None,
    cert: Path | None = None,
    key: Path | None = None,
    user: str = "",
    password_file: Path | None = None,
    *,
    timeout_s: float = RegistryConfig().timeout_s,
    environment: Mapping[str, str] | None = None,
) -> RegistryConfig:
    """Return how to reach the registry. The password is in the file, read whenever etcd asks, or in the environment."""
    env = os.environ if environment is None else environment
    found, secure = split_endpoints(endpoints)
    password = env.get(PASSWORD_VARIABLE, "") if user and password_file is None else ""
    if password_file is not None and not _password_in(existing(password_file, "--registry-password-file")):
        raise typer.BadParameter(f"{password_file} is empty", param_hint="--registry-password-file")
    if user and not password and password_file is None:
        raise typer.BadParameter(
            f"user {user!r} needs a password: set {PASSWORD_VARIABLE} or give --registry-password-file",
            param_hint="--registry-user",
        )
    if timeout_s <= 0:
        raise typer.BadParameter(f"expected seconds above 0, got {timeout_s}", param_hint="--registry-timeout-s")
    tls = tls_config(cert, key, ca, "--registry") if secure or ca or cert or key else None
    file = str(password_file.absolute()) if password_file is not None else ""
    return RegistryConfig(
        endpoints=found, tls=tls, user=user, password=password, password_file=file, timeout_s=timeout_s
    )


def _password_in(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"cannot read {path}: {error}", param_hint="--registry-password-file") from None


def split_endpoints(text: str) -> tuple[tuple[str, ...], bool]:
    """Return the host:port of each member in `text` and whether https:// was asked for."""
    found, secure = [], False
    for part in (each.strip() for each in text.split(",")):
        scheme, mark, rest = part.partition("://")
        if mark and scheme not in {"etcd", "http", "https"}:
            raise typer.BadParameter(
                f"expected etcd://, http:// or https:// before {rest!r}, got {scheme}://", param_hint="--registry"
            )
        secure = secure or scheme == "https"
        address = rest.rstrip("/") if mark else part
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise typer.BadParameter(f"expected host:port, got {part!r}", param_hint="--registry")
        found.append(address)
    return tuple(found), secure


def tls_config(cert: Path | None, key: Path | None, ca: Path | None, flag: str) -> TlsConfig:
    """Return TLS with these PEM files; a certificate needs its key and the other way round."""
    if (cert is None) != (key is None):
        raise typer.BadParameter(f"{flag}-cert and {flag}-key go together: give both or none", param_hint=flag)
    paths = [
        None if path is None else str(existing(path, f"{flag}-{name}"))
        for name, path in (("cert", cert), ("key", key), ("ca", ca))
    ]
    return TlsConfig(cert=paths[0], key=paths[1], ca=paths[2])


def server_tls(cert: Path | None, key: Path | None, ca: Path | None) -> TlsConfig | None:
    """Return TLS of the gRPC port, None for plaintext."""
    if cert is None and key is None:
        if ca is not None:
            raise typer.BadParameter("needs --tls-cert and --tls-key beside it", param_hint="--tls-ca")
        return None
    return tls_config(cert, key, ca, "--tls")


def node_tls(cert: Path | None, key: Path | None, ca: Path | None, *, asked: bool) -> TlsConfig | None:
    """Return TLS towards nodes, None for plaintext."""
    return tls_config(cert, key, ca, "--node-tls") if asked or ca or cert or key else None


def limits(
    max_message_bytes: int, max_connection_age_s: float = 0.0, max_connections: int = 0, held_bytes: int = 0
) -> Limits:
    """Return the bounds every engine enforces."""
    return Limits(max_message_bytes, max_connection_age_s, held_bytes, max_connections)


def pattern(text: str | None, flag: str) -> Pattern | None:
    """Return a pattern for names of headers. Raises `typer.BadParameter` for what is no regular expression."""
    try:
        return header_pattern(text or "")
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=flag) from None


def engine(name: str) -> Engine:
    """Return the engine called `name`."""
    found = next((each for each in ENGINES if each == name), None)
    if found is None:
        raise typer.BadParameter(f"expected one of {', '.join(ENGINES)}, got {name!r}", param_hint="--wire")
    return found


def existing(path: Path, flag: str) -> Path:
    """Return `path` if it is a file."""
    if not path.is_file():
        raise typer.BadParameter(f"expected a file, found none at {path}", param_hint=flag)
    return path


def labels(pairs: list[str]) -> dict[str, str]:
    """Return the labels of `key=value` texts."""
    found = {}
    for pair in pairs:
        key, mark, value = pair.partition("=")
        if not key or not mark:
            raise typer.BadParameter(f"expected key=value, got {pair!r}", param_hint="--label")
        found[key] = value
    return found


AUTO: Final = "auto"


def state_folder(text: str) -> Path | None:
    """Return the folder for what a process wants to find again when it is started again; None where none is wanted.

    The user's is where the XDG Base Directory Specification says.
    """
    if text != AUTO:
        return Path(text).resolve() if text else None
    given = os.environ.get("XDG_STATE_HOME", "")
    try:
        base = Path(given) if Path(given).is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError:  # no home
        return None
    return base / "mesh"
