"""What is measured: kinds of traffic, and which peers meet each. Two stages, by where the node is.

In `server-*` shapes the measured servers have their core for themselves. In `proxy-*` shapes the node is on the load's
core, every proxy stands before that same node, and only the proxy's CPU counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import models
from benchmarks.calls import Job
from benchmarks.load import INFER, STREAM
from benchmarks.models import Case

PROXIES = ("router", "envoy", "aio-proxy", "threads-proxy")
SERVERS = ("mesh", "node", "worker", "hosted", "echo", "threads-echo", "mlserver", "triton")
ECHOES = ("node", "echo", "threads-echo")


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of traffic."""

    key: str
    title: str
    case: Case
    peers: tuple[str, ...]
    """Keys, in the order of the table."""
    connections: int
    streams: int
    """On each connection."""
    window: int = 1
    """Messages in flight on each stream that carries messages."""
    streaming: bool = False
    unique: bool = False
    """Whether each call has headers of its own, as calls of real clients have."""
    own_client: bool = False
    """Whether our client must send it even where h2load could."""
    latency: bool = False
    """Whether a call's time is what counts."""
    memory: bool = False
    """Whether memory is what counts."""

    @property
    def proxies(self) -> bool:
        """Whether proxies before the node are measured."""
        return self.key.startswith("proxy-")

    @property
    def base(self) -> str:
        """The key of the peer that ratios are to."""
        if self.proxies:
            return "envoy"
        return "mlserver" if "mlserver" in self.peers else "echo"

    @property
    def method(self) -> str:
        """The gRPC method."""
        return STREAM if self.streaming else INFER

    @property
    def in_flight(self) -> int:
        """Requests or messages in flight, in all."""
        return self.connections * self.streams * self.window

    def job(self, address: str, answer_bytes: int, count: int) -> Job:
        """Return the load for one server."""
        return Job(
            address=address,
            method=self.method,
            body=self.case.request(),
            answer_bytes=answer_bytes,
            count=count,
            connections=self.connections,
            streams=self.streams,
            window=self.window,
            streaming=self.streaming,
            unique=self.unique,
        )


def shapes() -> list[Shape]:
    """Return everything that can be measured."""
    return [*_proxies(models.small(), models.large()), *_servers(models.small(), models.large())]


def _proxies(small: Case, large: Case) -> list[Shape]:
    return [
        Shape(
            "proxy-memory", "Proxies: memory with 32 requests of 600 KB in flight", large, PROXIES, 4, 8, memory=True
        ),
        Shape("proxy-small", "Proxies: small unary, 4 connections x 8 streams, equal headers", small, PROXIES, 4, 8),
        Shape(
            "proxy-fair",
            "Proxies: small unary, 32 connections x 1 stream, timeout, traceparent and request id new in each call",
            small,
            PROXIES,
            32,
            1,
            unique=True,
        ),
        Shape("proxy-large", "Proxies: 600 KB tensors, 4 connections x 2 streams", large, PROXIES, 4, 2),
        Shape(
            "proxy-stream",
            "Proxies: messages of one stream, 32 in flight",
            small,
            PROXIES,
            1,
            1,
            window=32,
            streaming=True,
        ),
        Shape(
            "proxy-streams",
            "Proxies: messages of 8 streams on 4 connections, 4 in flight on each",
            small,
            PROXIES,
            4,
            2,
            window=4,
            streaming=True,
        ),
        Shape(
            "proxy-latency",
            "Proxies: one small request at a time",
            small,
            (*PROXIES, "node"),
            1,
            1,
            own_client=True,
            latency=True,
        ),
    ]


def _servers(small: Case, large: Case) -> list[Shape]:
    return [
        Shape("server-small", "Servers: small unary, 4 connections x 8 streams, equal headers", small, SERVERS, 4, 8),
        Shape(
            "server-fair",
            "Servers: small unary, 32 connections x 1 stream, timeout, traceparent and request id new in each call",
            small,
            ECHOES,
            32,
            1,
            unique=True,
        ),
        Shape(
            "server-memory", "Servers: memory with 32 requests of 600 KB in flight", large, ECHOES, 4, 8, memory=True
        ),
        Shape("server-large", "Servers: 600 KB tensors, 4 connections x 2 streams", large, SERVERS, 4, 2),
        Shape(
            "server-latency",
            "Servers: one small request at a time",
            small,
            ("node", "worker", "hosted", "triton"),
            1,
            1,
            own_client=True,
            latency=True,
        ),
        Shape(
            "server-stream",
            "Servers: messages of one stream, 32 in flight",
            small,
            ("mesh", *ECHOES, "mlserver"),
            1,
            1,
            window=32,
            streaming=True,
        ),
        Shape(
            "server-streams",
            "Servers: messages of 8 streams on 4 connections, 4 in flight on each",
            small,
            ECHOES,
            4,
            2,
            window=4,
            streaming=True,
        ),
    ]
