"""Connections and files: whoever opens many takes none that a process needs itself, and none of other callers."""

from __future__ import annotations

import resource
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import grpc
import pytest

from tests.fixtures import raw
from tests.fixtures.mesh import MODELS, Process, mesh_up, start_node, start_router, until


def connect(address: str, said: bytes) -> socket.socket:
    host, _, port = address.rpartition(":")
    found = socket.create_connection((host, int(port)), timeout=10)
    found.sendall(said)
    return found


def open_files(process: Process) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


@pytest.fixture(scope="module")
def mesh() -> Iterator[Process]:
    with mesh_up(MODELS / "demo") as process:
        yield process


@pytest.mark.parametrize("said", [b"", b"P"])
def test_idle_connections_leave_a_node_and_a_router_what_they_need_and_new_callers_get_in(
    mesh: Process, said: bytes
) -> None:
    registry = mesh.ready["registry"]
    router, node = start_router(registry, files=256), start_node(registry, "crowded", files=256)
    with router, node, ExitStack() as stack:
        router.wait_ready()
        node.wait_ready()
        for address in (router.grpc, node.grpc):
            for _ in range(300):
                stack.enter_context(closing(connect(address, said)))
        for address in (router.grpc, node.grpc):
            with raw.channel_to(address) as channel:
                assert until(partial(answered, channel), what="a new caller is answered")
        assert router.running
        assert node.running


def answered(channel: grpc.Channel) -> bool:
    try:
        return raw.infer(channel, raw.request("iris"), timeout_s=10).model_name == "iris"
    except grpc.RpcError as error:
        # A node that holds no copy says so: that is an answer, too.
        return error.code() is grpc.StatusCode.UNAVAILABLE and "not at ready state" in (error.details() or "")


def test_a_node_without_any_file_left_goes_on_and_is_well_again_when_there_are_some(
    mesh: Process, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with start_node(mesh.ready["registry"], "starved", "--http-port", "0", log=log) as node:
        node.wait_ready()
        before = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)
        with ExitStack() as stack:
            resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (open_files(node), before[1]))
            for _ in range(8):
                stack.enter_context(closing(connect(node.grpc, b"P")))
            until(lambda: "begins again" in log.read_text(), what="some background work met it")
            assert node.running
            resource.prlimit(node.pid, resource.RLIMIT_NOFILE, before)
        with raw.channel_to(node.grpc) as channel:
            assert until(lambda: answered(channel), what="the node answers again")


@pytest.mark.parametrize("said", [b"", b"G"])
def test_connections_to_the_http_port_take_nothing_of_the_grpc_port(mesh: Process, said: bytes) -> None:
    with start_router(mesh.ready["registry"], files=400) as router, ExitStack() as stack:
        router.wait_ready()
        for _ in range(500):
            stack.enter_context(closing(connect(router.http, said)))
        with raw.channel_to(router.grpc) as channel:
            raw.wait_known(channel, "iris")
            assert answered(channel)
        with urllib.request.urlopen(f"http://{router.http}/v2/health/live", timeout=10) as response:
            assert response.read() == b'{"live":true}'
