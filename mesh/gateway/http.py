"""The HTTP port of a process: /metrics, liveness and readiness, beside its gRPC port and on the same event loop.

A router's has the gateway's routes too (`mesh.gateway.routes`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterator

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from mesh.gateway.patient import KEEP_ALIVE_S, Patient
from mesh.gateway.routes import front, routes
from mesh.gateway.seam import GrpcCalls
from mesh.telemetry.exposition import written

INDEX = """<!doctype html><title>mesh</title><p>A model mesh. \
<a href="/metrics">/metrics</a> <a href="/v2/health/live">/v2/health/live</a> \
<a href="/v2/health/ready">/v2/health/ready</a></p>
"""
ROUTER_INDEX = """<p>Models: <a href="/v2">/v2</a>, <a href="/v2/models/stats">/v2/models/stats</a>, \
POST /v2/models/&lt;model&gt;/infer; docs/http.md has every route.</p>
"""
BACKLOG = 128
"""Connections that may wait to be accepted: scrapers and probes are few."""
GRACE_S = 2
"""How long `stop` waits for answers under way."""


class HttpServer:
    """Serves one process's metrics and health. Port 0 takes any free one; read it from `address` after `start`."""

    def __init__(
        self,
        host: str,
        port: int,
        metrics: CollectorRegistry,
        is_ready: Callable[[], bool],
        calls: GrpcCalls | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._metrics = metrics
        self._is_ready = is_ready
        self._calls = calls
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
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
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

    def _app(self) -> ASGIApp:
        table = Starlette(
            routes=[
                Route("/", self._index),
                Route("/metrics", self._scrape),
                Route("/v2/health/live", self._live),
                Route("/v2/health/ready", self._ready),
                *(routes(self._calls) if self._calls is not None else ()),
            ],
            exception_handlers={HTTPException: _no_such},
        )
        return table if self._calls is None else front(self._calls, table)

    async def _index(self, _request: Request) -> Response:
        return HTMLResponse(INDEX if self._calls is None else INDEX + ROUTER_INDEX)

    async def _scrape(self, _request: Request) -> Response:
        return StreamingResponse(written(self._metrics), headers={"content-type": CONTENT_TYPE_LATEST})

    async def _live(self, _request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, _request: Request) -> Response:
        ready = self._is_ready()
        return JSONResponse({"ready": ready}, 200 if ready else 503)

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


def _no_such(request: Request, error: Exception) -> Response:
    """Answer a path or a method that no route has, as every other error."""
    assert isinstance(error, HTTPException)
    text = f"{error.detail}: {request.method} {request.url.path}; GET / shows what there is"
    return JSONResponse({"error": text}, error.status_code, headers=error.headers)


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
