"""Where a sequence ends, for routers that know it, or part of it, and for its copy: real processes, two routers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from mesh_client import Client, InvalidInput
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import Process, start_node, start_router, until
from tests.fixtures.scrape import value
from tests.fixtures.sessions import folded, folding_model
from tests.fixtures.tools import need

pytestmark = pytest.mark.timeout(180)

MODELS = ("fold", "short", "rare")


@dataclass
class Mesh:
    """Two routers, as their clients, and a node."""

    first: Client
    second: Client
    node: Process


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    models = tmp_path_factory.mktemp("ends")
    folding_model(models, "fold", "{idle_s: 60}")
    folding_model(models, "short", "{idle_s: 0.5}")
    folding_model(models, "rare", "{idle_s: 60, snapshot_messages: 50}")
    need("etcd")
    etcd = EtcdServer(tmp_path_factory.mktemp("etcd"))
    etcd.launch_and_wait()
    registry = etcd.address
    with (
        start_router(registry) as one,
        start_router(registry) as other,
        start_node(registry, "a", "--http-port", "0", models=models) as node,
    ):
        node.wait_ready()
        addresses = one.wait_ready().grpc, other.wait_ready().grpc
        with Client(addresses[0], timeout_s=60) as first, Client(addresses[1], timeout_s=60) as second:
            for client in (first, second):
                for name in MODELS:
                    until(partial(client.model_ready, name), what=f"{name} is known")
                    client.load(name)
            yield Mesh(first, second, node)
    etcd.kill()


def step(client: Client, model: str, id_: str, at: int, *, start: bool = False, end: bool = False) -> int:
    parameters: dict[str, str | bool] = {"sequence_id": id_, "sequence_start": start, "sequence_end": end}
    return int(client.infer(model, {"x": np.array([[at]], np.int64)}, parameters=parameters)["y"][0, 0])


@pytest.mark.parametrize("model", ["fold", "rare"])
def test_what_another_router_ended_goes_on_through_none(mesh: Mesh, model: str) -> None:
    first, second = mesh.first, mesh.second
    expected = folded([1, 2, 3])
    assert step(first, model, "ended", 1, start=True) == expected[0]
    assert step(second, model, "ended", 2) == expected[1]
    assert step(second, model, "ended", 3, end=True) == expected[2]
    for client in (first, second, first):
        with pytest.raises(InvalidInput, match="must specify the START flag"):
            step(client, model, "ended", 4)
    assert step(first, model, "ended", 1, start=True) == expected[0]


def test_what_was_idle_for_too_long_is_no_more(mesh: Mesh) -> None:
    first = mesh.first
    assert step(first, "short", "idle", 1, start=True) == folded([1])[0]
    until(lambda: value(mesh.node, "mesh_node_sequences_live", model="short") == 0, what="the node forgets it")
    with pytest.raises(InvalidInput, match="must specify the START flag"):
        step(first, "short", "idle", 2)


def test_what_another_router_keeps_alive_goes_on(mesh: Mesh) -> None:
    first, second = mesh.first, mesh.second
    expected = folded(range(8))
    assert step(first, "short", "kept", 0, start=True) == expected[0]
    began_s = time.monotonic()
    for at in range(1, 7):
        until(lambda: time.monotonic() - began_s > 0.12 * at, what="a pause")  # noqa: B023 - called now
        assert step(second, "short", "kept", at) == expected[at]
    assert step(first, "short", "kept", 7) == expected[7]


def test_what_failed_to_start_has_not_begun(mesh: Mesh) -> None:
    first, second = mesh.first, mesh.second
    with pytest.raises(Exception, match="a step that cannot be run"):
        step(first, "fold", "failed", -1, start=True)
    for client in (first, second):
        with pytest.raises(InvalidInput, match="must specify the START flag"):
            step(client, "fold", "failed", 2)
    assert step(first, "fold", "anew", 1, start=True) == folded([1])[0]
    with pytest.raises(Exception, match="a step that cannot be run"):
        step(first, "fold", "anew", -1, start=True)
    for client in (first, second):
        with pytest.raises(InvalidInput, match="must specify the START flag"):
            step(client, "fold", "anew", 2)
