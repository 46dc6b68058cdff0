"""A program with grpc-go (go/ beside this file) against routers in plaintext, TLS and mTLS, and against a node."""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mesh.api import messages as m
from tests.fixtures import raw
from tests.fixtures.certs import Certs, make_certs
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import Process, start_node, start_router, until
from tests.fixtures.repositories import add_echo, add_gate, add_patient
from tests.fixtures.scrape import value
from tests.fixtures.tools import need

SOURCE = Path(__file__).parent / "go"
CASES = 16


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built."""
    program = tmp_path_factory.mktemp("judge") / "judge"
    command = [need("go"), "build", "-trimpath", "-o", str(program), "."]
    done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return program


@dataclass
class Targets:
    """One node behind three routers; iris, echo and gate are loaded."""

    node: Process
    routers: dict[str, Process]
    certs: Certs

    def flags(self, name: str) -> list[str]:
        """Return how the program reaches a target."""
        process = self.routers.get(name, self.node)
        flags = ["-address", process.grpc]
        if name in {"tls", "mtls"}:
            flags += ["-ca", str(self.certs.ca)]
        if name == "mtls":
            flags += ["-cert", str(self.certs.client_cert), "-key", str(self.certs.client_key)]
        return flags


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Targets]:
    need("etcd")
    need("openssl")
    folder = tmp_path_factory.mktemp("go")
    add_patient(folder / "models")
    add_echo(folder / "models")
    # Runs whose callers have left are over long before they are taken for hung.
    add_gate(folder / "models", folder / "gate", patience_s=5)
    certs = make_certs(folder / "certs")
    tls = ("--tls-cert", str(certs.server_cert), "--tls-key", str(certs.server_key))
    etcd = EtcdServer(folder / "etcd")
    etcd.launch_and_wait()
    try:
        with (
            start_node(etcd.address, "a", models=folder / "models") as node,
            start_router(etcd.address) as plain,
            start_router(etcd.address, *tls) as secret,
            start_router(etcd.address, *tls, "--tls-ca", str(certs.ca)) as mutual,
        ):
            routers = {"plain": plain, "tls": secret, "mtls": mutual}
            for process in (node, *routers.values()):
                process.wait_ready()
            load(plain)
            until(lambda: all(map(holds_all, routers.values())), what="every router has heard of the copies")
            yield Targets(node, routers, certs)
            (folder / "gate" / "open").touch()
    finally:
        etcd.kill()


def load(router: Process) -> None:
    with raw.channel_to(router.grpc) as channel:
        for model in ("iris", "echo", "gate"):
            raw.wait_known(channel, model)
            request = m.RepositoryModelLoadRequest(model_name=model)
            raw.ask(channel, "RepositoryModelLoad", request, m.RepositoryModelLoadResponse)


def holds_all(router: Process) -> bool:
    """Tell whether a router is ready, by the port that needs no certificate."""
    try:
        with urllib.request.urlopen(f"http://{router.http}/v2/health/ready", timeout=60) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError:
        return False


def ended_early(router: Process) -> bool:
    """Tell whether a router counted both calls to the gate: the cancelled one, and the one that ran out of time.

    Its client cancels that one too when it is the first to see it.
    """
    cancelled, late = (
        value(router, "mesh_router_requests_total", model="gate", code=code)
        for code in ("CANCELLED", "DEADLINE_EXCEEDED")
    )
    return cancelled >= 1 and cancelled + late == 2


@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", ["plain", "tls", "mtls", "node"])
def test_grpc_go_finds_nothing_wrong(judge: Path, targets: Targets, target: str) -> None:
    done = subprocess.run(
        [str(judge), *targets.flags(target)], capture_output=True, text=True, timeout=800, check=False
    )
    assert [line for line in done.stdout.splitlines() if not line.startswith("PASS ")] == [], done.stdout
    assert (done.returncode, done.stdout.count("PASS ")) == (0, CASES), done.stdout + done.stderr
    if target in targets.routers:
        until(lambda: ended_early(targets.routers[target]), what="the router knows how the calls to the gate ended")


def test_a_client_without_a_certificate_is_refused(judge: Path, targets: Targets) -> None:
    flags = [*targets.flags("tls"), "-address", targets.routers["mtls"].grpc]
    done = subprocess.run([str(judge), *flags], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 1
    assert "Unavailable" in done.stdout


def test_the_program_is_formatted_and_vetted() -> None:
    go = need("go")
    done = subprocess.run(
        [need("gofmt"), "-l", "."], cwd=SOURCE, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == ""
    vetted = subprocess.run([go, "vet", "."], cwd=SOURCE, capture_output=True, text=True, timeout=100, check=False)
    assert vetted.returncode == 0, vetted.stderr
