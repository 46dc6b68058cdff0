"""gRPC's own interop client, one process a case, against its service on either engine."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.wire.grpcio_server import GrpcioServer
from mesh.wire.server import WireServer
from mesh.wire.transport import ENGINES, Limits, Server
from tests.conformance.interop.service import SERVICE
from tests.fixtures.tools import need

SOURCE = Path(__file__).parent / "interop"
CLIENT = "google.golang.org/grpc/interop/client"
CASES = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "pick_first_unary",
    "rpc_soak",
    "channel_soak",
]
"""All but those that need an account with a cloud, or the load reports of ORCA."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built."""
    program = tmp_path_factory.mktemp("interop") / "client"
    command = [need("go"), "build", "-o", str(program), CLIENT]
    done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(params=ENGINES)
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    make = WireServer if request.param == "mesh" else GrpcioServer
    listening: Server = make("127.0.0.1", 0, SERVICE, [], limits=Limits())
    await listening.start()
    yield listening
    await listening.stop(0)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES)
async def test_the_interop_client_finds_nothing_wrong(client: Path, server: Server, case: str) -> None:
    host, _, port = server.address.rpartition(":")
    # The soak cases bound how long a call may take, which a busy machine would exceed.
    flags = [f"--server_host={host}", f"--server_port={port}", "--soak_per_iteration_max_acceptable_latency_ms=60000"]
    flags += ["--soak_overall_timeout_seconds=300", f"--test_case={case}"]
    process = await asyncio.create_subprocess_exec(
        client, *flags, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 400)
    assert process.returncode == 0, output.decode()
