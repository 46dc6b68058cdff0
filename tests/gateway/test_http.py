"""The HTTP port over real sockets."""

from __future__ import annotations

import asyncio
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from mesh.core.errors import Code
from mesh.core.files import HTTP
from mesh.gateway import patient
from mesh.gateway.http import HttpServer
from mesh.telemetry.metrics import NodeMetrics
from tests.gateway.served import gateway


class Served:
    """A running server with a readiness to switch."""

    def __init__(self) -> None:
        self.ready = False
        self.metrics = NodeMetrics()
        self.server = HttpServer("127.0.0.1", 0, self.metrics.registry, lambda: self.ready)

    async def get(self, path: str) -> tuple[int, str, str]:
        return await asyncio.to_thread(fetch, f"http://{self.server.address}{path}")


def fetch(url: str) -> tuple[int, str, str]:
    """Return (status, content type, body)."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.headers["content-type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["content-type"], error.read().decode()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    one = Served()
    await one.server.start()
    yield one
    await one.server.stop()


async def test_metrics_are_prometheus_text_of_the_given_registry(served: Served) -> None:
    served.metrics.load_done("iris", "1", ok=True, seconds=0.5)
    served.metrics.request_done("iris", "1", Code.OK, queue_s=0.0, compute_s=0.1, total_s=0.1)
    status, kind, body = await served.get("/metrics")
    assert status == 200
    assert kind.startswith("text/plain; version=")
    assert 'mesh_node_requests_total{code="OK",model="iris",version="1"} 1.0' in body
    assert 'nv_inference_request_success{model="iris",version="1"} 1.0' in body


async def test_live_is_200_and_ready_follows_the_process(served: Served) -> None:
    assert (await served.get("/v2/health/live"))[0] == 200
    assert (await served.get("/v2/health/ready"))[0] == 503
    served.ready = True
    assert (await served.get("/v2/health/ready"))[0] == 200


async def test_the_root_names_the_routes_and_other_paths_are_404(served: Served) -> None:
    status, kind, body = await served.get("/")
    assert status == 200
    assert kind.startswith("text/html")
    for path in ("/metrics", "/v2/health/live", "/v2/health/ready"):
        assert path in body
    assert (await served.get("/nothing"))[0] == 404


async def test_a_taken_port_is_one_clear_sentence(served: Served) -> None:
    port = int(served.server.address.rsplit(":", 1)[1])
    second = HttpServer("127.0.0.1", port, served.metrics.registry, lambda: True)
    with pytest.raises(OSError, match=f"the HTTP address 127.0.0.1:{port} is taken: choose another HTTP port"):
        await second.start()
    await second.stop()
    assert (await served.get("/v2/health/live"))[0] == 200


async def test_it_leaves_the_signal_handlers_alone() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    one = Served()
    await one.server.start()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    await one.server.stop()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


async def test_after_stop_the_port_is_free_and_stop_again_is_fine() -> None:
    one = Served()
    assert one.server.address == ""
    await one.server.start()
    address = one.server.address
    await one.server.stop()
    await one.server.stop()
    host, port = address.split(":")
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(socket.create_connection, (host, int(port)))


async def test_cancelled_while_starting_it_listens_no_more() -> None:
    one = Served()
    starting = asyncio.create_task(one.server.start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    host, port = one.server.address.split(":")
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(socket.create_connection, (host, int(port)))


async def test_stop_does_not_wait_for_an_idle_keep_alive_connection(served: Served) -> None:
    host, port = served.server.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    async with asyncio.timeout(60):
        await served.server.stop()
    writer.close()


async def closed(address: str, *said: bytes) -> bytes:
    """Say something at intervals, and return what came until the other side closed."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for each in said:
            writer.write(each)
            await asyncio.sleep(0.01)
        return await asyncio.wait_for(reader.read(), 60)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


REQUEST = b"GET /v2/health/live HTTP/1.1\r\nhost: here\r\n\r\n"


@pytest.mark.parametrize("said", [[], [b"G"], [b"GET / HTTP/1.1\r\n", b"a: b\r\n", b"c: d\r\n"], [REQUEST, b"GET"]])
async def test_who_never_asks_to_the_end_is_cut_off(
    served: Served, said: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patient, "HEADER_S", 0.2)
    answer = await closed(served.server.address, *said)
    assert answer.count(b"200 OK") == (said[:1] == [REQUEST])


async def test_a_connection_that_asks_for_nothing_makes_way_for_one_that_does(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patient, "http_connections", lambda _limit: HTTP)
    host, _, port = served.server.address.rpartition(":")
    idle = [await asyncio.open_connection(host, int(port)) for _ in range(2 * HTTP)]
    assert (await served.get("/v2/health/live"))[0] == 200
    assert (
        b"".join(await asyncio.gather(*[reader.read(1) for reader, _ in idle[:HTTP]], return_exceptions=False)) == b""
    )
    for _, writer in idle:
        writer.close()


async def test_headers_without_an_end_are_refused(served: Served) -> None:
    host, _, port = served.server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\n")
    with suppress(ConnectionError):
        while not reader.at_eof() and writer.transport.get_write_buffer_size() < 1 << 22:
            writer.write(b"a: %b\r\n" % (b"b" * 1000))
            await writer.drain()
            await asyncio.sleep(0)
            if reader._buffer:  # type: ignore[attr-defined] # an answer is there
                break
    with suppress(ConnectionError):
        assert (await asyncio.wait_for(reader.read(), 60)).startswith(b"HTTP/1.1 431 ")
    writer.close()


async def test_a_body_that_stops_coming_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient, "HEADER_S", 0.2)
    async with gateway() as address:
        head = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: here\r\ncontent-length: 1000\r\n\r\n"
        assert await closed(address, head, b"{") == b""
