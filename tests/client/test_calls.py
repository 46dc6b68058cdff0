"""What a single call carries and how it fails, sync and async, against a plain gRPC server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mesh_client import AsyncClient, Cancelled, Client, Code, InvalidInput, Tensor, Tls, Unavailable
from tests.client.conftest import Echo, server_credentials, serving
from tests.fixtures.certs import Certs

ROW = np.zeros((1, 4), dtype=np.float32)

ARRAYS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "empty": lambda: (np.zeros((0, 4), dtype=np.float32), []),
    "empty bytes": lambda: (np.zeros((0,), dtype=object), []),
    "a single value": lambda: (np.array(7, dtype=np.int64), 7),
    "transposed": lambda: (np.arange(6).reshape(2, 3).T, [[0, 3], [1, 4], [2, 5]]),
    "with steps": lambda: (np.arange(10)[::-3], [9, 6, 3, 0]),
    "big-endian": lambda: (np.arange(3, dtype=">i4"), [0, 1, 2]),
    "read-only": lambda: (np.frombuffer(b"\1\2", np.uint8), [1, 2]),
    "str": lambda: (np.array(["é", "b"]), ["é".encode(), b"b"]),
    "objects of str and bytes": lambda: (np.array(["a\0b", b"\0\0"], dtype=object), [b"a\0b", b"\0\0"]),
    "half": lambda: (np.array([1.5, np.inf], dtype=np.float16), [1.5, np.inf]),
    "bfloat": lambda: (Tensor(np.array([1.0, 1.00390625], dtype=np.float32), "BF16"), [1.0, 1.0]),
}


@pytest.mark.parametrize("case", ARRAYS)
async def test_arrays_of_every_layout_arrive_as_values(echo: Echo, case: str) -> None:
    given, expected = ARRAYS[case]()
    with Client(echo.address, timeout_s=60) as client:
        assert client.infer("m", {"x": given})["x"].tolist() == expected
    async with AsyncClient(echo.address, timeout_s=60) as client:
        assert (await client.infer("m", {"x": given}))["x"].tolist() == expected


def test_token_and_metadata_arrive_with_calls_and_streams(echo: Echo) -> None:
    with Client(echo.address, token="secret", metadata=[("tenant", "a")], timeout_s=60) as client:
        client.infer("m", {"x": ROW}, metadata=[("call", "1"), ("raw-bin", b"\xff\0")])
        with client.stream(metadata=[("call", "2")]) as stream:
            stream.infer("m", {"x": ROW})
    one, two = echo.metadata
    assert (one["authorization"], one["tenant"], one["call"], one["raw-bin"]) == ("Bearer secret", "a", "1", b"\xff\0")
    assert (two["authorization"], two["tenant"], two["call"]) == ("Bearer secret", "a", "2")


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (("Bad Key", "x"), "expected a metadata key of lower-case letters"),
        (("key", "two\nlines"), "expected printable ASCII as the value of metadata 'key'"),
        (("key", 1), "expected printable ASCII"),
        (("key-bin", "text"), "expected bytes as the value of metadata 'key-bin', got str"),
    ],
)
async def test_metadata_that_grpc_cannot_carry_is_told_before_it_is_sent(pair: Any, words: str) -> None:
    with Client() as client:
        for call in (lambda: client.infer("m", {"x": ROW}, metadata=[pair]), lambda: client.stream(metadata=[pair])):
            with pytest.raises(InvalidInput, match=words):
                call()
    async with AsyncClient() as client:
        with pytest.raises(InvalidInput, match=words):
            await client.infer("m", {"x": ROW}, metadata=[pair])
        with pytest.raises(InvalidInput, match=words):
            client.stream(metadata=[pair])


def test_a_token_with_a_line_end_is_refused_and_not_shown() -> None:
    with Client(token="secret\n") as client, pytest.raises(InvalidInput, match="'authorization'") as caught:
        client.server_live()
    assert "secret" not in str(caught.value)


def test_inputs_that_are_no_dict_are_told() -> None:
    with Client() as client, pytest.raises(InvalidInput, match="inputs must be a dict of arrays") as caught:
        client.infer("m", [ROW])  # type: ignore[arg-type] # the mistake under test
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_elements_of_a_wrong_kind_are_told() -> None:
    with Client() as client, pytest.raises(InvalidInput, match="expected str or bytes elements for BYTES, got int"):
        client.infer("m", {"x": np.array([b"a", 1], dtype=object)})
    with Client() as client, pytest.raises(InvalidInput, match=r"input 'x': expected one of BOOL, .* got 'FP8'"):
        client.infer("m", {"x": Tensor(ROW, "FP8")})


async def test_a_closed_client_opens_no_stream() -> None:
    client = Client()
    client.close()
    with pytest.raises(Cancelled, match="was closed"):
        client.stream()
    other = AsyncClient()
    await other.close()
    with pytest.raises(Cancelled, match="was closed"):
        other.stream()


async def test_a_call_cancelled_while_it_waits_ends_at_the_server_too(echo: Echo) -> None:
    async with AsyncClient(echo.address) as client:
        call = asyncio.create_task(client.infer("slow", {"x": ROW}))
        assert await asyncio.to_thread(echo.waiting.wait, 60)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(echo.ended.wait, 60)
        assert (await client.infer("m", {"x": ROW}, timeout_s=60))["x"].shape == (1, 4)


def test_tls_with_and_without_a_certificate_of_the_client(certs: Certs) -> None:
    ca = str(certs.ca)
    with serving(server_credentials(certs, ask=False)) as echo, Client(echo.address, tls=Tls(ca=ca)) as client:
        assert client.infer("m", {"x": ROW}, timeout_s=60).id == ""
    mutual = Tls(ca=ca, cert=str(certs.client_cert), key=str(certs.client_key))
    with serving(server_credentials(certs, ask=True)) as echo, Client(echo.address, tls=mutual) as client:
        assert client.infer("m", {"x": ROW}, timeout_s=60).id == ""


async def test_a_server_of_another_root_is_told_as_such(certs: Certs, other_certs: Certs) -> None:
    tls = Tls(ca=str(other_certs.ca))
    with serving(server_credentials(certs, ask=False)) as echo:
        words = rf"no TLS connection to {echo.address}: check .*Tls\(ca=\.\.\.\)"
        with Client(echo.address, tls=tls) as client, pytest.raises(Unavailable, match=words):
            client.infer("m", {"x": ROW}, timeout_s=60)
        async with AsyncClient(echo.address, tls=tls) as client:
            with pytest.raises(Unavailable, match=words):
                await client.infer("m", {"x": ROW}, timeout_s=60)


def test_tls_to_a_plaintext_server_is_told_as_such(echo: Echo, certs: Certs) -> None:
    with (
        Client(echo.address, tls=Tls(ca=str(certs.ca))) as client,
        pytest.raises(Unavailable, match="no TLS connection to"),
    ):
        client.infer("m", {"x": ROW}, timeout_s=60)


TRACED = """\
import sys
import numpy as np
from mesh_client import Client

def call(**more):
    with Client(sys.argv[1], timeout_s=60) as client:
        client.infer("m", {"x": np.zeros(1)}, **more)

call()
assert "opentelemetry" not in sys.modules
from opentelemetry.sdk.trace import TracerProvider
call()
with TracerProvider().get_tracer("test").start_as_current_span("outer") as span:
    call()
    call(metadata=[("traceparent", "mine")])
print(format(span.get_span_context().trace_id, "032x"), format(span.get_span_context().span_id, "016x"))
"""


def test_the_current_trace_goes_along_and_nothing_otherwise(echo: Echo) -> None:
    command = [sys.executable, "-c", TRACED, echo.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    trace, span = done.stdout.split()
    seen = [str(each.get("traceparent")) for each in echo.metadata]
    assert [each.rpartition("-")[0] or each for each in seen] == ["None", "None", f"00-{trace}-{span}", "mine"]
