"""Servers and proxies on grpcio, the library that a Python service would use: on asyncio and with threads."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.machine import free_port
from benchmarks.models import Case
from benchmarks.peers.base import SERVERS, Peer
from benchmarks.peers.mesh import Mesh


class Grpcio(Peer):
    """One of the scripts in benchmarks/servers."""

    script = ""

    def start_before(self, folder: Path, cases: list[Case], *upstream: str) -> None:
        """Start the script, a proxy when there is an upstream."""
        self.address = f"127.0.0.1:{free_port()}"
        process = self.run(folder, [sys.executable, str(SERVERS / self.script), self.address, *upstream])
        self.parts = {"server": process.pid}
        self.check_all(cases)


class Echo(Grpcio):
    """A grpc.aio server that returns the request's bytes: what its transport costs without any inference."""

    key, name, script = "echo", "grpc.aio echo (no model)", "aio.py"

    def start(self, folder: Path, cases: list[Case]) -> None:
        """Start it."""
        self.start_before(folder, cases)

    def check(self, case: Case, answer: bytes) -> None:
        """Raise AssertionError unless the request came back."""
        assert answer == case.request(), "expected the request's own bytes"

    def unwrap(self, message: bytes) -> bytes:
        """Return the message: it is the request, as in a single call."""
        return message


class ThreadsEcho(Echo):
    """The same with grpcio's threads."""

    key, name, script = "threads-echo", "grpcio threads echo (no model)", "threads.py"


class Proxy(Grpcio):
    """A grpc.aio server and client that pass bytes on: what a proxy costs that a Python program would be."""

    key, name, script = "aio-proxy", "grpc.aio proxy", "aio.py"

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        self._mesh = mesh

    def start(self, folder: Path, cases: list[Case]) -> None:
        """Start it before the node."""
        self.start_before(folder, cases, self._mesh.node_address)


class ThreadsProxy(Proxy):
    """The same with grpcio's threads."""

    key, name, script = "threads-proxy", "grpcio threads proxy", "threads.py"
