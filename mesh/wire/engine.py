"""Which engine carries the calls: our own wire, or grpcio for comparison and as a way out.

Both stand behind `transport.Server` and `transport.Channel` and pass the same tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import grpc

from mesh.core.traffic.clients import Clients
from mesh.core.traffic.held import HeldBytes
from mesh.wire.client import CLIENT_BOUNDS, WireChannel
from mesh.wire.deadlines import Deadlines
from mesh.wire.endpoint import Flusher
from mesh.wire.flow import Bounds
from mesh.wire.grpcio_client import GrpcioChannel
from mesh.wire.grpcio_server import GrpcioServer
from mesh.wire.memory import default_held_bytes
from mesh.wire.server import WireServer
from mesh.wire.transport import Channel, Engine, HotMethods, Limits, Server, TlsConfig


class Carrier:
    """Makes the servers and channels of one process and loop, all of one engine. They share one flush per turn."""

    def __init__(self, engine: Engine, limits: Limits, loop: Any) -> None:
        self.engine = engine
        self.limits = limits
        self.flusher = Flusher(loop)
        self.deadlines = Deadlines(loop)
        self.held = HeldBytes(limits.held_bytes or default_held_bytes())
        """What callers make this process hold. The grpcio engine counts nothing."""
        self.clients = Clients()
        """The connections of callers. The grpcio engine counts none."""

    def server(
        self,
        host: str,
        port: int,
        hot: HotMethods,
        services: Sequence[grpc.GenericRpcHandler[Any, Any]],
        *,
        tls: TlsConfig | None,
        bounds: Bounds | None = None,
        reuse_port: bool = False,
    ) -> Server:
        """Return a server that is not started."""
        if self.engine == "grpcio":
            return GrpcioServer(host, port, hot, services, limits=self.limits, tls=tls, reuse_port=reuse_port)
        return WireServer(
            host,
            port,
            hot,
            services,
            limits=self.limits,
            tls=tls,
            bounds=bounds,
            reuse_port=reuse_port,
            flusher=self.flusher,
            deadlines=self.deadlines,
            held=self.held,
            clients=self.clients,
        )

    def connector(
        self,
        tls: TlsConfig | None,
        *,
        bounds: Bounds | None = None,
        on_silence: Callable[[str, bool], None] | None = None,
    ) -> Callable[[str], Channel]:
        """Return what makes a channel for an address, without I/O.

        `on_silence` is called with an address where nothing answers any more (True), and when something does again. It
        is for channels among a mesh's own processes. The grpcio engine does not call it.
        """

        def connect(address: str) -> Channel:
            if self.engine == "grpcio":
                return GrpcioChannel(address, limits=self.limits, tls=tls)
            return WireChannel(
                address,
                limits=self.limits,
                tls=tls,
                bounds=bounds or CLIENT_BOUNDS,
                flusher=self.flusher,
                deadlines=self.deadlines,
                on_silence=None if on_silence is None else partial(on_silence, address),
            )

        return connect
