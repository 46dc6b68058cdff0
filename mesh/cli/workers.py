"""Several processes of one router behind one port: each takes the connections that the kernel gives it.

A router is stateless, so the workers know nothing of each other. This process serves nothing: it holds the port, starts
the workers, starts again what dies, and drains them at the end. (SO_REUSEPORT, Linux 3.9 and later)
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Final

from mesh.cli.children import Child, Ready

MARGIN_S: Final = 5.0
"""Beyond its own limits, what a worker may take to end before it is killed."""


def reserve(host: str, port: int) -> socket.socket:
    """Return a socket that holds the port for the workers, the real one where 0 is asked for. It does not listen.

    Raises OSError when another server has the port, or on a system that cannot share one.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise OSError("this system cannot share a port between processes: run one worker each on ports of their own")
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, proto) as probe:
        # Without the option first: another server on this port must be an error, not a silent share of its calls.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise OSError(f"cannot listen on {host}:{port}: is another server there? ({error.strerror})") from error
    held = socket.socket(family, kind, proto)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(address)
    return held


def ports(http_port: int | None, count: int) -> list[int | None]:
    """Return the HTTP port of each worker: one after the other, since each has numbers of its own."""
    if not http_port:
        return [http_port] * count
    return [http_port + number for number in range(count)]


class Workers:
    """The workers of one router. `flags` are those of the command line that this process was started with."""

    def __init__(
        self, flags: Sequence[str], grpc_port: int, http: Sequence[int | None], say: Callable[[str], None], end_s: float
    ) -> None:
        self._flags = list(flags)
        self._grpc_port = grpc_port
        self._end_s = end_s
        self._children = [
            Child(f"worker {number}", self._argv(http_port), say=say, relay=_relay)
            for number, http_port in enumerate(http)
        ]

    def _argv(self, http_port: int | None) -> Callable[[Ready | None], Sequence[str]]:
        def argv(last: Ready | None) -> Sequence[str]:
            port = http_port
            if port == 0 and last is not None and last.http:
                port = int(last.http.rpartition(":")[2])
            shared = [sys.executable, "-m", "mesh.cli.main", "router", *self._flags, "--workers", "1", "--reuse-port"]
            web = [] if port is None else ["--http-port", str(port)]
            return [*shared, "--grpc-port", str(self._grpc_port), *web, "--json-ready", "--exit-with-stdin"]

        return argv

    async def run(self, stop: asyncio.Event, on_started: Callable[[str, str], None]) -> None:
        """Serve until `stop` is set, then drain all at once. Raises `ChildFailed` when a worker does not start."""
        try:
            ready = await asyncio.gather(*(child.start() for child in self._children))
            on_started(ready[0].grpc, ",".join(each.http for each in ready if each.http))
            keeping = [asyncio.create_task(child.keep()) for child in self._children]
            await stop.wait()
            for task in keeping:
                task.cancel()
        finally:
            await asyncio.gather(*(child.stop(self._end_s + MARGIN_S) for child in self._children))

    def __repr__(self) -> str:
        """Show the workers."""
        return f"<Workers {self._children!r}>"


def _relay(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
