"""The seam between what the mesh does with a call and what carries it: handlers over bytes.

Router and node write handlers against this file only. An engine (`grpcio_server`, `grpcio_client`; later the wire)
carries them, so that engines can be swapped and compared under the same tests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Metadata = tuple[tuple[str, str | bytes], ...]

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
MODEL_STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
PARTS_EXCHANGE = "/mesh.v1.Parts/Exchange"

LOAD_TRAILER = "mesh-load"
"""A node's outstanding requests, on every answer of a node, errors included. The router strips it. Its absence on a
failed call shows that the status was made up by the local transport: the node never answered."""

NOT_RUN_TRAILER = "mesh-not-run"
ABSENT = "absent"
"""On a failed answer of a node: the request was certainly not run (not held here, queue full, draining), so another
copy may be asked. Set for every error whose class is `retry_safe`. The router strips it."""

COPY_AGE_TRAILER = "mesh-copy-age-ms"
"""Beside `ABSENT`, for a sequence: `UnknownSequence.copy_age_s`. The router strips it."""

DIED_TRAILER = "mesh-died"
"""On a failed answer of a node: the request was running when its process (a worker, not the node) ended. Set for every
error whose class has `died`. The router strips it."""

MODEL_HEADER = "mesh-model"
VERSION_HEADER = "mesh-version"
PIPELINE_HEADER = "mesh-pipeline"
"""What the router resolved the request to. On a node they win over the name and version in the message, which the
router forwards as it came. The router drops every ``mesh-`` key that a client sends."""


CALLER_HEADER = "mesh-caller"
"""On a step of a sequence, from the router: whose it is, as the router names its connections. A node shares the places
of sequences between callers, and has one connection with the router for all of them."""

FORWARD_HEADER = "mesh-forward"
"""From the router: a header of the caller's that the model reads as a parameter (`wire.forward`)."""

UNORDERED_HEADER = "mesh-unordered"
"""From a client, "true": answers of this stream may come in any order; every request then has an id."""

Engine = Literal["mesh", "grpcio"]
"""What carries calls: our own wire, or grpcio for comparison and as a way out. Both pass the same tests."""
ENGINES: tuple[Engine, ...] = ("mesh", "grpcio")


@dataclass(slots=True)
class Call:
    """One call as its server sees it."""

    method: str
    metadata: Metadata
    deadline_s: float | None
    """On the clock of `time.monotonic`; None without a deadline."""
    peer: str
    trailers: list[tuple[str, str | bytes]] = field(default_factory=list)
    """Trailing metadata to send with the status. Append; never replace the list."""
    headers: Metadata = ()
    """Initial metadata, sent ahead of the first message, or of the status where none comes. Set it before that."""
    forwarded: Mapping[str, str] | None = None
    """Headers that models read as parameters (`core.forwarding`); None while nobody looked."""

    def meta(self, key: str) -> str | None:
        """Return the first value of text metadata `key` (lower case), or None. O(entries)."""
        for name, value in self.metadata:
            if name == key:
                return value if isinstance(value, str) else value.decode("latin-1")
        return None


UnaryHandler = Callable[[Call, bytes], Awaitable[bytes]]
"""Answers one message with one message, or raises a `MeshError`."""
StreamHandler = Callable[[Call, AsyncIterator[bytes]], AsyncIterator[bytes]]
"""Answers a stream of messages with a stream; the iterator ends at the caller's half-close. Raises a `MeshError`."""


Direct = Callable[..., Any]
"""A `wire.server_call.Direct`; this file knows no engine."""


@dataclass(frozen=True, slots=True)
class HotMethods:
    """The methods an engine carries as bytes, by full path. Everything else on the port is a plain grpcio service."""

    unary: Mapping[str, UnaryHandler]
    stream: Mapping[str, StreamHandler]
    direct: Mapping[str, Direct] = field(default_factory=dict)
    """Faster ways through the wire for methods that are above as well. Other
    engines do not look at them."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A successful answer."""

    message: bytes
    trailers: Metadata


Leaves = Callable[[bool], bool]
"""Asked again and again while the peer of a call does not answer: whether the call ends now, as if its connection were
lost, because another can have it. True as the argument: it has been long. (`mesh.wire.alive`)"""


def at_once(long: bool) -> bool:
    """End the call as soon as its peer does not answer (a `Leaves`)."""
    del long
    return True


class Duplex(Protocol):
    """A two-way stream as its client sees it. Not safe for several senders at once."""

    async def send(self, message: bytes) -> None:
        """Send one message; waits for flow control. Raises `RemoteError` when the stream is over."""

    def post(self, message: bytes) -> bool:
        """Send one message at once; False when that would have to wait, and nothing was sent."""

    async def half_close(self) -> None:
        """Say that no more messages follow."""

    async def receive(self) -> bytes | None:
        """Return the next message, None after the last one of a stream that ended OK. Raises `RemoteError`."""

    def cancel(self) -> None:
        """Give the stream up; idempotent."""


class Channel(Protocol):
    """Connections to one address. Reconnects by itself."""

    async def unary(
        self, method: str, message: bytes, *, metadata: Metadata, timeout_s: float | None, leaves: Leaves | None = None
    ) -> Reply:
        """Call `method`. Raises `RemoteError`. Cancelling the task cancels the call at the peer."""

    def stream(
        self, method: str, *, metadata: Metadata, timeout_s: float | None, leaves: Leaves | None = None
    ) -> Duplex:
        """Open a two-way stream."""

    async def close(self, grace_s: float) -> None:
        """Take no more calls, wait at most `grace_s` seconds for those in flight, then close the connections."""


class Server(Protocol):
    """A listening engine."""

    @property
    def address(self) -> str:
        """host:port it listens on."""

    async def start(self) -> None:
        """Listen. Raises OSError when the address is taken."""

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, wait at most `grace_s` seconds for those in flight, then cut."""


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """TLS for a server or a client. Paths of PEM files."""

    cert: str | None = None
    """This side's certificate chain."""
    key: str | None = None
    """The key of `cert`."""
    ca: str | None = None
    """Roots the peer must chain to. On a server its presence asks for client certificates (mTLS)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds every engine enforces."""

    max_message_bytes: int = 256 * 1024 * 1024
    """Largest message taken in. Above it: RESOURCE_EXHAUSTED. The default leaves room for a batch of images; Triton's
    clients send up to 2 GiB."""
    max_connection_age_s: float = 0.0
    """Seconds after which a connection is asked to go (calls in flight finish), with 10% jitter; 0: never. Behind a
    plain TCP balancer, this spreads long-lived clients over routers that came later."""
    held_bytes: int = 0
    """What callers may make a process hold: messages that arrive or wait, inflated ones, answers that nobody reads, of
    those from 64 KiB on. 0: an eighth of the memory, at least 1 GiB. Beyond it RESOURCE_EXHAUSTED."""
    max_connections: int = 0
    """Connections to the gRPC port at a time; 0: what the limit of open files leaves beside a reserve for the process
    itself. When all are taken, one that is idle makes way for a new one."""
