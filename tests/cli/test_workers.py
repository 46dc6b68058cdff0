"""`mesh router --workers`: several processes of one router behind one port."""

from __future__ import annotations

import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mesh_client import Client
from tests.fixtures.mesh import MODELS, Process, free_port, mesh_up, until


@pytest.fixture(scope="module")
def mesh() -> Iterator[Process]:
    with mesh_up(MODELS / "triton-examples") as process:
        yield process


PAIR = {"INPUT0": np.ones((1, 16), np.int32), "INPUT1": np.ones((1, 16), np.int32)}


def start(mesh: Process) -> Process:
    flags = ["--workers", "2", "--registry", mesh.ready["registry"], "--grpc-port", "0", "--http-port", "0"]
    return Process("router", *flags, "--settle-s", "0", "--json-ready").wait_ready()


def answered(http: str) -> int:
    """Return how many calls the worker with this HTTP address has answered."""
    with urllib.request.urlopen(f"http://{http}/metrics", timeout=30) as page:
        lines = page.read().decode().splitlines()
    return sum(
        int(float(line.split()[-1])) for line in lines if line.startswith('mesh_router_requests_total{code="OK"')
    )


def test_the_workers_share_one_port_and_the_calls(mesh: Process) -> None:
    process = start(mesh)
    try:
        ready = process.ready
        web = ready["http"].split(",")
        assert len(web) == 2

        def both_answered() -> bool:
            with Client(ready["grpc"], timeout_s=60) as client:
                client.infer("simple", PAIR)
            return all(answered(each) for each in web)

        until(both_answered, what="both workers took a connection")
    finally:
        assert process.stop() == 0


def test_a_worker_that_dies_is_started_again_on_the_same_port(mesh: Process) -> None:
    process = start(mesh)
    try:
        web = process.ready["http"].split(",")
        victim = worker_pids(process.pid)[0]
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in (now := worker_pids(process.pid)) and len(now) == 2, what="two workers again")
        with Client(process.ready["grpc"], timeout_s=60) as client:
            np.testing.assert_array_equal(client.infer("simple", PAIR)["OUTPUT0"], PAIR["INPUT0"] * 2)
        assert len(web) == 2
    finally:
        assert process.stop() == 0


def worker_pids(parent: int) -> list[int]:
    """Return the processes that `parent` started."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def test_a_port_that_another_server_has_is_an_error(mesh: Process) -> None:
    port = mesh.grpc.rpartition(":")[2]
    process = Process("router", "--workers", "2", "--grpc-port", port, "--registry", mesh.ready["registry"])
    with pytest.raises(AssertionError, match="ended with 1 before it was ready"):
        process.wait_ready()


def test_no_worker_outlives_its_parent(mesh: Process) -> None:
    process = start(mesh)
    workers = worker_pids(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), what="the workers are gone")
    process.stop()
    assert free_port()
