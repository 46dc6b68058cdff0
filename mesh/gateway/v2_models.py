"""The rest of KServe v2's and Triton's REST routes: health, metadata, config, statistics, repository, settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from mesh.api import messages as m
from mesh.api.gen.inference import grpc_service_pb2 as pb
from mesh.core.errors import InvalidRequest
from mesh.gateway.elements import BAD_JSON
from mesh.gateway.exchange import Exchange
from mesh.gateway.plain import plain, settings_plain
from mesh.gateway.seam import GrpcCalls

MAX_SMALL_BYTES: Final = 4 * 1024 * 1024
"""A body of these routes: a model's configuration at most."""


class Models:
    """Answers everything about the server and its models that is no inference."""

    def __init__(self, calls: GrpcCalls) -> None:
        self._calls = calls

    async def server(self, exchange: Exchange) -> None:
        """GET /v2."""
        await self._tell(exchange, plain(await self._ask(exchange, "ServerMetadata", m.ServerMetadataRequest())))

    async def ready(self, exchange: Exchange) -> None:
        """GET /v2/models/{model}[/versions/{version}]/ready: 200, or 503 for one that no request could use."""
        answer = await self._ask(exchange, "ModelReady", m.ModelReadyRequest(**_named(exchange)))
        told = {"name": exchange.path["model"], "ready": answer.ready}
        await exchange.answer(200 if answer.ready else 503, msgspec.json.encode(told))

    async def metadata(self, exchange: Exchange) -> None:
        """GET /v2/models/{model}[/versions/{version}]."""
        answer = plain(await self._ask(exchange, "ModelMetadata", m.ModelMetadataRequest(**_named(exchange))))
        answer.pop("properties", None)
        await self._tell(exchange, answer)

    async def config(self, exchange: Exchange) -> None:
        """GET /v2/models/{model}[/versions/{version}]/config."""
        answer = await self._ask(exchange, "ModelConfig", m.ModelConfigRequest(**_named(exchange)))
        await self._tell(exchange, plain(answer.config))

    async def statistics(self, exchange: Exchange) -> None:
        """GET /v2/models/stats, /v2/models/{model}[/versions/{version}]/stats."""
        request = m.ModelStatisticsRequest(**_named(exchange))
        await self._tell(exchange, plain(await self._ask(exchange, "ModelStatistics", request)))

    async def index(self, exchange: Exchange) -> None:
        """POST /v2/repository/index."""
        asked = await self._json(exchange)
        ready = asked.get("ready", False)
        if not isinstance(ready, bool):
            raise InvalidRequest(f"expected true or false as ready, got {ready!r}")
        answer = await self._ask(exchange, "RepositoryIndex", m.RepositoryIndexRequest(ready=ready))
        await exchange.answer(200, msgspec.json.encode([plain(each) for each in answer.models]))

    async def load(self, exchange: Exchange) -> None:
        """POST /v2/repository/models/{model}/load."""
        request = m.RepositoryModelLoadRequest(model_name=exchange.path["model"])
        for name, value in _parameters(await self._json(exchange)).items():
            if not isinstance(value, str):
                raise InvalidRequest(f"expected a text as load parameter '{name}', got {value!r}")
            request.parameters[name].string_param = value
        await self._ask(exchange, "RepositoryModelLoad", request)
        await exchange.answer(200, b"{}")

    async def unload(self, exchange: Exchange) -> None:
        """POST /v2/repository/models/{model}/unload."""
        request = m.RepositoryModelUnloadRequest(model_name=exchange.path["model"])
        for name, value in _parameters(await self._json(exchange)).items():
            if not isinstance(value, bool):
                raise InvalidRequest(f"expected true or false as unload parameter '{name}', got {value!r}")
            request.parameters[name].bool_param = value
        await self._ask(exchange, "RepositoryModelUnload", request)
        await exchange.answer(200, b"{}")

    async def trace(self, exchange: Exchange) -> None:
        """GET and POST /v2/trace/setting, /v2/models/{model}/trace/setting."""
        request = pb.TraceSettingRequest(model_name=exchange.path.get("model", ""))
        for name, value in (await self._json(exchange)).items():
            values = [] if value is None else value if isinstance(value, list) else [value]
            request.settings[name].value.extend(str(each) for each in values)
        await self._tell(exchange, settings_plain((await self._ask(exchange, "TraceSetting", request)).settings))

    async def logging(self, exchange: Exchange) -> None:
        """GET and POST /v2/logging."""
        request = pb.LogSettingsRequest()
        for name, value in (await self._json(exchange)).items():
            match value:
                case bool():
                    request.settings[name].bool_param = value
                case int() if 0 <= value < 1 << 32:
                    request.settings[name].uint32_param = value
                case str():
                    request.settings[name].string_param = value
                case _:
                    raise InvalidRequest(f"expected a bool, a number of 32 bits or a text as '{name}', got {value!r}")
        await self._tell(exchange, settings_plain((await self._ask(exchange, "LogSettings", request)).settings))

    async def _ask(self, exchange: Exchange, method: str, request: Any) -> Any:
        return await self._calls.ask(method, request, exchange.deadline_s())

    async def _tell(self, exchange: Exchange, told: Mapping[str, Any]) -> None:
        await exchange.answer(200, msgspec.json.encode(told))

    async def _json(self, exchange: Exchange) -> dict[str, Any]:
        """Return the body, an object; an empty one where there is none."""
        body = await exchange.body(MAX_SMALL_BYTES)
        return json_object(body) if body.strip() else {}


def json_object(body: bytes) -> dict[str, Any]:
    """Return a body that is a JSON object. Raises `InvalidRequest`."""
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except RecursionError:
        raise InvalidRequest("expected a JSON object, got one that is nested too deeply") from None
    except BAD_JSON as error:
        raise InvalidRequest(f"expected a JSON object: {error}") from error


def _named(exchange: Exchange) -> dict[str, str]:
    return {"name": exchange.path.get("model", ""), "version": exchange.path.get("version", "")}


def _parameters(asked: Mapping[str, Any]) -> dict[str, Any]:
    found = asked.get("parameters", {})
    if not isinstance(found, dict):
        raise InvalidRequest(f"expected an object as parameters, got {found!r}")
    return found
