"""A server counts its clients' connections, and those that it ended itself by the code of their GOAWAY."""

from __future__ import annotations

import asyncio

from mesh.core.traffic.clients import Clients
from mesh.wire.client import WireChannel
from mesh.wire.server import WireServer
from tests.wire import engines as e
from tests.wire.test_chaos import until


async def test_connections_are_counted_by_how_they_ended() -> None:
    clients = Clients()
    server = WireServer("127.0.0.1", 0, e.HOT, [], limits=e.LIMITS, clients=clients)
    await server.start()
    host, _, port = server.address.rpartition(":")
    leaving = WireChannel(server.address, limits=e.LIMITS)
    assert (await leaving.unary(e.ECHO, b"x", metadata=(), timeout_s=60)).message == b"x"
    assert (clients.open, clients.opened) == (1, 1)
    await leaving.close(0)
    await until(lambda: clients.open == 0, "the client that left is gone")
    assert dict(clients.ended) == {}

    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    await until(lambda: clients.ended["PROTOCOL_ERROR"] == 1, "the one that speaks no HTTP/2 was cut off")
    writer.close()

    staying = WireChannel(server.address, limits=e.LIMITS)
    assert (await staying.unary(e.ECHO, b"x", metadata=(), timeout_s=60)).message == b"x"
    await server.stop(1)
    await until(lambda: clients.open == 0, "the last one was asked to go")
    assert (clients.opened, dict(clients.ended)) == (3, {"PROTOCOL_ERROR": 1, "NO_ERROR": 1})
    await staying.close(0)
