"""Requests over real sockets: bodies, codings, deadlines, callers who leave, and what each is told."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import zlib
from typing import Any

import pytest

from mesh.api.messages import ModelInferRequest, ModelInferResponse
from mesh.core.errors import DeadlineExceeded, NoCapacity, UnknownModel
from mesh.core.traffic.held import HeldBytes
from mesh.wire.transport import Call
from tests.gateway.served import MAX_BODY_BYTES, exchange, gateway, post

REQUEST = json.dumps({"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}]}).encode()
PATH = "/v2/models/m/infer"


async def doubled(_call: Call, message: bytes) -> bytes:
    request = ModelInferRequest.FromString(message)
    (x,) = request.inputs
    output = ModelInferResponse.InferOutputTensor(name="y", datatype=x.datatype, shape=x.shape)
    raws = request.raw_input_contents
    return ModelInferResponse(model_name="m", outputs=[output], raw_output_contents=raws).SerializeToString()


@pytest.mark.parametrize(
    ("coding", "pack"),
    [("identity", bytes), ("gzip", gzip.compress), ("deflate", zlib.compress), ("x-gzip", gzip.compress)],
)
async def test_a_body_may_be_compressed(coding: str, pack: Any) -> None:
    async with gateway(doubled) as address:
        status, headers, body = await exchange(address, post(PATH, pack(REQUEST), f"content-encoding: {coding}"))
    assert (status, headers["content-type"]) == (200, "application/json")
    assert json.loads(body)["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [2], "data": [1, 2]}]


@pytest.mark.parametrize(("accepted", "unpack"), [("br, gzip;q=0.5", gzip.decompress), ("deflate", zlib.decompress)])
async def test_a_long_answer_is_compressed_for_who_accepts_it(accepted: str, unpack: Any) -> None:
    data = [0.5] * 1000
    long = json.dumps({"inputs": [{"name": "x", "shape": [1000], "datatype": "FP32", "data": data}]}).encode()
    async with gateway(doubled) as address:
        _, headers, body = await exchange(address, post(PATH, long, f"accept-encoding: {accepted}"))
        assert headers["content-encoding"] in accepted
        assert json.loads(unpack(body))["outputs"][0]["data"] == data
        _, headers, _ = await exchange(address, post(PATH, REQUEST, f"accept-encoding: {accepted}"))
        assert "content-encoding" not in headers
        _, headers, _ = await exchange(address, post(PATH, long, "accept-encoding: gzip;q=0"))
        assert "content-encoding" not in headers


BOMB = gzip.compress(bytes(8 * MAX_BODY_BYTES))
REFUSED = [
    (post(PATH, b"x" * (MAX_BODY_BYTES + 1)), 413, "a body of at most 1048576 bytes, got one of 1048577"),
    (post(PATH, BOMB, "content-encoding: gzip"), 413, "more than 1048576 bytes after decompression"),
    (post(PATH, gzip.compress(REQUEST)[:-9], "content-encoding: gzip"), 400, "cut off"),
    (post(PATH, b"nonsense", "content-encoding: gzip"), 400, "cannot decompress"),
    (post(PATH, b"", "content-encoding: gzip"), 400, "got an empty one"),
    (post(PATH, REQUEST, "content-encoding: br"), 501, "expected Content-Encoding gzip, deflate or identity, got 'br'"),
    (post(PATH, REQUEST, "inference-header-content-length: x"), 400, "in Inference-Header-Content-Length, got 'x'"),
    (post(PATH, REQUEST, "inference-header-content-length: 9999"), 400, "Inference-Header-Content-Length of 0 to"),
    (post(PATH, REQUEST, "x-request-timeout-ms: 0"), 400, "whole milliseconds from 1 up in X-Request-Timeout-Ms"),
    (post(PATH, REQUEST, "x-request-timeout-ms: 1e3"), 400, "whole milliseconds"),
    (post("/v2/models/m/infers", REQUEST), 404, "Not Found: POST /v2/models/m/infers"),
    (b"GET /v2/models/m/infer HTTP/1.1\r\nhost: here\r\n\r\n", 405, "Method Not Allowed"),
]


@pytest.mark.parametrize(("request_", "status", "why"), REFUSED, ids=[why[:30] for _, _, why in REFUSED])
async def test_a_bad_request_has_a_status_and_a_sentence(request_: bytes, status: int, why: str) -> None:
    async with gateway(doubled) as address:
        got, headers, body = await exchange(address, request_)
        assert (got, headers["content-type"]) == (status, "application/json")
        assert why in json.loads(body)["error"]
        assert (await exchange(address, post(PATH, REQUEST)))[0] == 200


async def test_a_body_in_chunks_counts_as_any_other() -> None:
    async with gateway(doubled) as address:
        head = f"POST {PATH} HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (REQUEST[:9], REQUEST[9:])) + b"0\r\n\r\n"
        assert (await exchange(address, head + chunks))[0] == 200
        large = b"%x\r\n%b\r\n" % (1 << 16, bytes(1 << 16))
        status, _, body = await exchange(address, head + large * 20)
    assert (status, json.loads(body)["error"]) == (413, "expected a body of at most 1048576 bytes, got more")


async def test_errors_have_grpcs_text_and_the_status_that_fits() -> None:
    error: Exception = UnknownModel("no such model")

    async def fail(_call: Call, _message: bytes) -> bytes:
        raise error

    async with gateway(fail) as address:
        status, _, body = await exchange(address, post(PATH, REQUEST))
        assert (status, json.loads(body)) == (404, {"error": "no such model"})
        error = NoCapacity("full", retry_after_s=1.2)
        status, headers, _ = await exchange(address, post(PATH, REQUEST))
        assert (status, headers["retry-after"]) == (429, "2")
        error = DeadlineExceeded("late")
        assert (await exchange(address, post(PATH, REQUEST)))[0] == 504
        error = ValueError("ours")
        status, _, body = await exchange(address, post(PATH, REQUEST))
        assert (status, json.loads(body)) == (500, {"error": "internal error: ValueError: ours"})


async def test_headers_go_along_as_metadata_and_set_the_deadline() -> None:
    seen: list[Call] = []

    async def keep(call: Call, message: bytes) -> bytes:
        seen.append(call)
        return await doubled(call, message)

    told = ("x-request-timeout-ms: 5000", "X-Tenant: a", "traceparent: 00-1-2-01", "mesh-model: b", "grpc-timeout: 1n")
    async with gateway(keep) as address:
        before_s = time.monotonic()
        await exchange(address, post(PATH, REQUEST, *told))
    (call,) = seen
    assert call.metadata == (("x-tenant", "a"), ("traceparent", "00-1-2-01"))
    assert call.deadline_s is not None
    assert before_s + 5 <= call.deadline_s <= time.monotonic() + 5


async def test_a_caller_who_leaves_cancels_the_work() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def wait(_call: Call, _message: bytes) -> bytes:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async with gateway(wait) as address:
        host, _, port = address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(post(PATH, REQUEST))
        await asyncio.wait_for(began.wait(), 60)
        writer.transport.abort()
        await asyncio.wait_for(ended.wait(), 60)


async def test_bodies_are_in_the_account_until_they_are_answered() -> None:
    held = HeldBytes(1 << 20)
    inside: list[int] = []

    async def look(call: Call, message: bytes) -> bytes:
        inside.append(held.held)
        return await doubled(call, message)

    head = {
        "inputs": [{"name": "x", "shape": [1 << 17], "datatype": "UINT8", "parameters": {"binary_data_size": 1 << 17}}]
    }
    start = json.dumps(head).encode()
    request = post(PATH, start + bytes(1 << 17), f"inference-header-content-length: {len(start)}")
    async with gateway(look, held) as address:
        assert (await exchange(address, request))[0] == 200
        assert inside[0] >= 1 << 17
        assert held.held == 0
        held.limit = 1 << 17
        status, headers, body = await exchange(address, request)
    assert (status, headers["retry-after"]) == (429, "1")
    assert "takes no" in json.loads(body)["error"]
    assert held.held == 0
