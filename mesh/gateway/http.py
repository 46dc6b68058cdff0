"""The HTTP port of a process: /metrics, liveness and readiness, beside its gRPC port and on the same event loop.

It reads what others count and know; it decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterator

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from mesh.gateway.patient import Patient

INDEX = """<!doctype html><title>mesh</title><p>A model mesh. \
<a href="/metrics">/metrics</a> <a href="/v2/health/live">/v2/health/live</a> \
<a href="/v2/health/ready">/v2/health/ready</a></p>
"""
BACKLOG = 128
"""Connections that may wait to be accepted: scrapers and probes are few."""
GRACE_S = 2
"""How long `stop` waits for answers under way."""


class HttpServer:
    """Serves one process's metrics and health. Port 0 takes any free one; read it from `address` after `start`."""

    def __init__(self, host: str, port: int, metrics: CollectorRegistry, is_ready: Callable[[], bool]) -> None:
        self._host = host
        self._port = port
        self._metrics = metrics
        self._is_ready = is_ready
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._address = ""

    @property
    def address(self) -> str:
        """host:port it listens on; empty before `start`."""
        return self._address

    async def start(self) -> None:
        """Listen. Raises OSError with a sentence when the address cannot be taken. Cancelled, it listens no more."""
        listener = _bind(self._host, self._port)
        self._address = _name(listener)
        config = uvicorn.Config(
            self._app(),
            http=Patient,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve([listener]), name="http")
        started = asyncio.create_task(self._server.listening.wait(), name="http-started")
        try:
            await asyncio.wait({self._serving, started}, return_when=asyncio.FIRST_COMPLETED)
            if self._serving.done():
                self._serving.result()
        except BaseException:
            await self.stop()
            raise
        finally:
            started.cancel()

    async def stop(self) -> None:
        """Stop listening and wait at most `GRACE_S` seconds for answers under way. Idempotent."""
        if self._server is None or self._serving is None:
            return
        self._server.should_exit = True
        await asyncio.wait({self._serving})
        self._server = None

    def _app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", self._index),
                Route("/metrics", self._scrape),
                Route("/v2/health/live", self._live),
                Route("/v2/health/ready", self._ready),
            ]
        )

    async def _index(self, _request: Request) -> Response:
        return HTMLResponse(INDEX)

    async def _scrape(self, _request: Request) -> Response:
        # Thousands of series take many milliseconds to write out: not on the loop that carries requests.
        body = await asyncio.to_thread(generate_latest, self._metrics)
        return Response(body, headers={"content-type": CONTENT_TYPE_LATEST})

    async def _live(self, _request: Request) -> Response:
        return PlainTextResponse("live\n")

    async def _ready(self, _request: Request) -> Response:
        return PlainTextResponse("ready\n") if self._is_ready() else PlainTextResponse("not ready\n", 503)

    def __repr__(self) -> str:
        """Show where it listens."""
        return f"<HttpServer {self._address or 'not started'}>"


class _Server(uvicorn.Server):
    """A uvicorn server that leaves the process's signals alone and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror or error})"
        raise OSError(error.errno, f"the HTTP address {host}:{port} {why}: choose another HTTP port") from error


def _name(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
