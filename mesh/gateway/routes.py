"""The table of the gateway's routes: which path is answered by what."""

from __future__ import annotations

from urllib.parse import unquote

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mesh.gateway.exchange import Handler, Way
from mesh.gateway.generate import Generate
from mesh.gateway.seam import GrpcCalls
from mesh.gateway.v2_infer import Infer
from mesh.gateway.v2_models import Models


class Front:
    """The application: inference at once, everything else by the table of `others`.

    Starlette looks at routes one by one, behind middleware: 25 µs that the most asked route need not pay.
    """

    def __init__(self, infer: Way, others: ASGIApp) -> None:
        self._infer = infer
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["method"] == "POST":
            # The path as it was sent: a name may hold an encoded slash.
            parts = scope["raw_path"].split(b"/")
            if len(parts) == 5 and parts[4] == b"infer" and parts[1] == b"v2" and parts[2] == b"models" and parts[3]:
                scope["path_params"] = {"model": unquote(parts[3].decode("latin-1"))}
                await self._infer(scope, receive, send)
                return
        await self._others(scope, receive, send)


def front(calls: GrpcCalls, others: ASGIApp) -> Front:
    """Return the application of a router, in front of its table of routes."""
    return Front(Way(Infer(calls), calls.held), others)


def routes(calls: GrpcCalls) -> list[BaseRoute]:
    """Return the routes of a router. The first that fits answers, so the most asked come first."""
    models, generate = Models(calls), Generate(calls)

    def way(path: str, handler: Handler, *methods: str) -> Route:
        return Route(path, Way(handler, calls.held), methods=methods)

    def of_model(tail: str, handler: Handler, *methods: str) -> list[BaseRoute]:
        model = "/v2/models/{model}"
        return [way(f"{model}{tail}", handler, *methods), way(f"{model}/versions/{{version}}{tail}", handler, *methods)]

    return [
        *of_model("/infer", Infer(calls), "POST"),
        *of_model("/generate", generate.whole, "POST"),
        *of_model("/generate_stream", generate.stream, "POST"),
        way("/v2", models.server, "GET"),
        way("/v2/models/stats", models.statistics, "GET"),
        *of_model("/ready", models.ready, "GET"),
        *of_model("/config", models.config, "GET"),
        *of_model("/stats", models.statistics, "GET"),
        way("/v2/models/{model}/trace/setting", models.trace, "GET", "POST"),
        *of_model("", models.metadata, "GET"),
        way("/v2/repository/index", models.index, "POST"),
        way("/v2/repository/models/{model}/load", models.load, "POST"),
        way("/v2/repository/models/{model}/unload", models.unload, "POST"),
        way("/v2/trace/setting", models.trace, "GET", "POST"),
        way("/v2/logging", models.logging, "GET", "POST"),
    ]
