"""`/v2/models/{model}[/versions/{version}]/infer`: KServe v2's REST inference, with Triton's binary tensors."""

from __future__ import annotations

import asyncio
from typing import Final

from mesh.api.messages import ModelInferResponse
from mesh.core.errors import InvalidRequest
from mesh.core.traffic.held import COUNTED
from mesh.gateway.elements import read_long_json
from mesh.gateway.exchange import JSON, Exchange
from mesh.gateway.seam import GrpcCalls
from mesh.gateway.v2_json import Asked, read_request, write_response
from mesh.wire.transport import MODEL_INFER

HEADER_LENGTH: Final = b"inference-header-content-length"
BINARY_KIND: Final = b"application/octet-stream"

JSON_COST: Final = 12
"""Bytes that one byte of JSON can become while it is read: "0," is a Python object and an element."""
LONG: Final = 128 * 1024
"""Bytes of JSON from which on a body is read, and an answer written, in a thread: some two milliseconds."""


class Infer:
    """Answers inference requests."""

    def __init__(self, calls: GrpcCalls) -> None:
        self._calls = calls

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        deadline_s = exchange.deadline_s()
        body = await exchange.body(self._calls.max_body_bytes)
        asked = await self._read(exchange, body)
        call = exchange.call(MODEL_INFER, deadline_s, self._calls.forwards)
        answer = await self._calls.infer(call, asked.message.SerializeToString())
        response = ModelInferResponse.FromString(answer)
        if len(answer) < LONG or asked.binary:
            told, json_bytes = write_response(response, asked)
        else:
            told, json_bytes = await asyncio.to_thread(write_response, response, asked)
        if json_bytes is None:
            await exchange.answer(200, told, JSON)
        else:
            await exchange.answer(200, told, BINARY_KIND, {"inference-header-content-length": str(json_bytes)})

    async def _read(self, exchange: Exchange, body: bytes) -> Asked:
        said = exchange.headers.get(HEADER_LENGTH)
        if said is not None and (not said.isdigit() or len(said) > 18):
            raise InvalidRequest(
                f"expected a number of bytes in Inference-Header-Content-Length, got {said.decode('latin-1')[:40]!r}"
            )
        json_bytes = None if said is None else int(said)
        model, version = exchange.path["model"], exchange.path.get("version", "")
        size = len(body) if json_bytes is None else min(json_bytes, len(body))
        if size < LONG:
            return read_request(body, json_bytes, model, version)
        if size >= COUNTED:
            exchange.count(JSON_COST * size)
        return await asyncio.to_thread(read_request, body, json_bytes, model, version, read_long_json)
