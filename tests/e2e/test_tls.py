"""TLS and mTLS on every hop: client to router, router to node, both to etcd."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mesh_client import Client, Tls, Unavailable
from tests.e2e.test_spread import chain, write
from tests.fixtures.certs import Certs, make_certs
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import Process, start_node, start_router, until
from tests.fixtures.tools import need

ROW = np.array([[5.1, 3.5, 1.4, 0.2]], dtype=np.float32)


@dataclass
class Secured:
    router: Process
    certs: Certs

    def client(self, *, shown: bool = True, ca: Path | None = None) -> Client:
        """Return a client that trusts the test's root and shows its certificate if `shown`."""
        own = {"cert": str(self.certs.client_cert), "key": str(self.certs.client_key)} if shown else {}
        return Client(self.router.grpc, tls=Tls(ca=str(ca or self.certs.ca), **own), timeout_s=60)


@pytest.fixture
def secured(new_etcd: Callable[..., EtcdServer], tmp_path: Path) -> Iterator[Secured]:
    """Yield a mesh in which every connection is TLS with certificates on both sides."""
    need("etcd")
    need("openssl")
    certs = make_certs(tmp_path / "certs")
    etcd = new_etcd(certs=certs, client_certs=True)
    etcd.launch_and_wait()
    to_registry = (
        *("--registry-ca", str(certs.ca), "--registry-cert", str(certs.client_cert)),
        *("--registry-key", str(certs.client_key)),
    )
    own = ("--tls-cert", str(certs.server_cert), "--tls-key", str(certs.server_key), "--tls-ca", str(certs.ca))
    to_nodes = (
        *("--node-tls-ca", str(certs.ca), "--node-tls-cert", str(certs.client_cert)),
        *("--node-tls-key", str(certs.client_key)),
    )
    registry = f"https://{etcd.address}"
    write(tmp_path / "models")
    models = ("--models", str(tmp_path / "models"))
    with (
        start_node(registry, "a", "--label", "first=yes", *models, *to_registry, *own) as node,
        start_node(registry, "b", "--label", "second=yes", *models, *to_registry, *own, *to_nodes) as other,
        start_router(registry, *to_registry, *own, *to_nodes) as router,
    ):
        secured = Secured(router.wait_ready(), certs)
        for each in (node, other):
            each.wait_ready()
        with secured.client() as client:
            until(client.server_ready, what="the router has heard of the node")
            until(lambda: any(each.name == "iris" for each in client.models()), what="the router has heard of iris")
        yield secured


def test_a_call_goes_through_three_secured_hops(secured: Secured) -> None:
    with secured.client() as client:
        assert client.infer("iris", {"x": ROW})["label"].tolist() == [0]
        with client.stream() as stream:
            assert stream.infer("iris", {"x": ROW})["label"].tolist() == [0]


def test_a_caller_without_a_certificate_is_refused(secured: Secured) -> None:
    with secured.client(shown=False) as client, pytest.raises(Unavailable):
        client.infer("iris", {"x": ROW}, timeout_s=10)


def test_a_caller_who_trusts_another_root_refuses_the_server(secured: Secured, tmp_path: Path) -> None:
    other = make_certs(tmp_path / "other")
    with secured.client(ca=other.ca) as client, pytest.raises(Unavailable):
        client.infer("iris", {"x": ROW}, timeout_s=10)


def test_plaintext_is_refused(secured: Secured) -> None:
    with Client(secured.router.grpc) as client, pytest.raises(Unavailable):
        client.infer("iris", {"x": ROW}, timeout_s=10)


def test_grpcurl_speaks_tls(secured: Secured) -> None:
    certs = secured.certs
    command = [
        need("grpcurl"),
        "-cacert",
        str(certs.ca),
        "-cert",
        str(certs.client_cert),
        "-key",
        str(certs.client_key),
    ]
    done = subprocess.run(
        [*command, secured.router.grpc, "grpc.health.v1.Health/Check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "SERVING" in done.stdout, done.stderr


def test_nodes_tell_each_other_over_tls(secured: Secured) -> None:
    with secured.client() as client:
        name = chain(client, "over-both", "begin", "end", "begin")
        for number in range(3):
            assert client.infer(name, {"x": np.array([number], np.float32)})["y"].tolist() == [(number + 1) * 2.0 + 1]
