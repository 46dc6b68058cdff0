"""Callers who share the places of one model's sequences, through a router and at its node: real processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import numpy as np
import pytest

from mesh_client import Client, MeshClientError
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import start_node, start_router, until
from tests.fixtures.sessions import folded, folding_model
from tests.fixtures.tools import need

pytestmark = pytest.mark.timeout(180)

PLACES = 20


@pytest.fixture(scope="module", params=["router", "node"])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models = tmp_path_factory.mktemp("callers")
    folding_model(models, "fold", f"{{max_live: {PLACES}, idle_s: 600}}")
    need("etcd")
    etcd = EtcdServer(tmp_path_factory.mktemp("etcd"))
    etcd.launch_and_wait()
    with start_router(etcd.address) as router, start_node(etcd.address, "a", models=models) as node:
        addresses = {"router": router.wait_ready().grpc, "node": node.wait_ready().grpc}
        with Client(addresses["router"], timeout_s=60) as client:
            until(partial(client.model_ready, "fold"), what="fold is known")
            client.load("fold")
        yield addresses[request.param]
    etcd.kill()


def step(client: Client, id_: str, at: int, *, start: bool = False, timeout_s: float = 30.0) -> int:
    parameters: dict[str, str | bool] = {"sequence_id": id_, "sequence_start": start}
    answer = client.infer("fold", {"x": np.array([[at]], np.int64)}, parameters=parameters, timeout_s=timeout_s)
    return int(answer["y"][0, 0])


def test_made_up_ids_of_one_connection_keep_no_other_out(address: str) -> None:
    # Channels of one process to one name share a connection.
    other = address.replace("127.0.0.1", "localhost")
    with Client(address, timeout_s=60) as many, Client(other, timeout_s=60) as few:
        for n in range(PLACES):
            step(many, f"made up {n}", 1, start=True)
        with suppress(MeshClientError):  # Alone it waits for its own.
            step(many, "one more", 1, start=True, timeout_s=0.2)
        expected = folded([1, 2])
        for n in range(5):
            assert step(few, f"honest {n}", 1, start=True) == expected[0]
        for n in range(5):
            assert step(few, f"honest {n}", 2) == expected[1]
        with pytest.raises(MeshClientError, match="must specify the START flag"):
            step(many, "made up 0", 2)
        assert step(many, f"made up {PLACES - 1}", 2) == expected[1]
