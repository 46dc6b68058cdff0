"""Models that end node processes, on real ones: how far one call reaches, and what is remembered of whom."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesh.core import suspects
from mesh.core.suspects import Death
from mesh.core.types import ModelName, ModelVersion, NodeId, Version
from mesh.registry import records
from mesh.registry.config import RegistryConfig
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.keys import model_key, suspect_key
from mesh_client import Client, MeshClientError
from tests.fixtures.cluster import cluster, copies
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import until
from tests.fixtures.repositories import add_echo, add_python
from tests.fixtures.scrape import value

IN_THE_NODE = """\
isolation: none
inputs: [{name: x, dtype: FP32, shape: [-1, 1]}]
outputs: [{name: y, dtype: FP32, shape: [-1, 1]}]
"""
"""Models that an operator trusts with the node's own process: in one of its own, each would end that alone."""
FINE, POISON = np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32)
ENDS = {
    "a segmentation fault": "ctypes.string_at(0)",
    "an exit": "os._exit(3)",
}


def add_culprit(repository: Path, end: str, *, copies: int) -> None:
    """Write `culprit`, which gives back a zero and ends its process at anything else."""
    add_python(
        repository,
        "culprit",
        f"scaling: {{min_copies: {copies}}}\n" + IN_THE_NODE,
        f"""\
        import ctypes, os

        class Model:
            def infer(self, inputs):
                if inputs["x"].any():
                    {end}
                return {{"y": inputs["x"]}}
        """,
    )


def suspected(client: Client, model: str) -> str:
    (found,) = client.explain(model)
    return str(found.suspected)


@pytest.mark.parametrize("end", list(ENDS))
def test_one_call_ends_two_nodes_at_most_and_the_next_one_none(etcd: EtcdServer, tmp_path: Path, end: str) -> None:
    add_culprit(tmp_path, ENDS[end], copies=4)
    add_echo(tmp_path)
    with cluster(etcd.address, tmp_path, "abcd") as (mesh, client):
        until(lambda: len(copies(client, "culprit")) == 4, what="every node holds the culprit")
        assert client.infer("culprit", {"x": FINE}, timeout_s=60)["y"].tolist() == [[0.0]]
        with pytest.raises(MeshClientError):
            client.infer("culprit", {"x": POISON}, timeout_s=60)
        until(lambda: len(mesh.dead) == 2, what="the nodes that were asked are gone")
        for _ in range(20):
            assert client.infer("echo", {"x": FINE}, timeout_s=60)["y"].tolist() == [[0.0]]
        assert len(mesh.dead) == 2
        crashed_s = time.time()
        mesh.restart_dead()
        until(lambda: suspected(client, "culprit"), what="the mesh knows what the nodes died of")
        until(
            lambda: all(copy.changed_s > crashed_s for copy in copies(client, "culprit")),
            what="no node holds it in its own process any more",
        )
        pids = mesh.pids
        for _ in range(3):
            with pytest.raises(MeshClientError):
                client.infer("culprit", {"x": POISON}, timeout_s=60)
        assert mesh.dead == []
        assert mesh.pids == pids
        assert client.infer("echo", {"x": FINE}, timeout_s=60)["y"].tolist() == [[0.0]]


def test_a_model_that_ends_its_node_in_its_load_does_so_once(etcd: EtcdServer, tmp_path: Path) -> None:
    """The placement survives, and the load is not begun again in the node's own process."""
    add_python(
        tmp_path,
        "culprit",
        IN_THE_NODE,
        """\
        import os

        class Model:
            def load(self, context):
                os._exit(3)

            def infer(self, inputs):
                return inputs
        """,
    )
    add_echo(tmp_path)
    with cluster(etcd.address, tmp_path, "a") as (mesh, client):
        with pytest.raises(MeshClientError):
            client.infer("culprit", {"x": FINE}, timeout_s=5)
        until(lambda: mesh.dead, what="its node is gone")
        mesh.restart_dead()
        assert "exited with code 3" in until(
            lambda: suspected(client, "culprit"), what="the mesh knows what the node died of"
        )
        for _ in range(25):
            assert client.infer("echo", {"x": FINE}, timeout_s=60)["y"].tolist() == [[0.0]]
            with pytest.raises(MeshClientError):
                client.infer("culprit", {"x": FINE}, timeout_s=0.2)
        assert mesh.dead == []


def test_killing_nodes_puts_no_model_under_suspicion(etcd: EtcdServer, tmp_path: Path) -> None:
    """The same model runs in every process that is killed, four times in a row, and is trusted all the same."""
    add_python(
        tmp_path,
        "slow",
        "scaling: {min_copies: 2}\n" + IN_THE_NODE,
        """\
        import time

        class Model:
            def infer(self, inputs):
                time.sleep(0.05)
                return {"y": inputs["x"]}
        """,
    )
    with cluster(etcd.address, tmp_path, "ab") as (mesh, client):
        stop, answered = threading.Event(), list[Any]()

        def call() -> None:
            while not stop.is_set():
                try:
                    answered.append(client.infer("slow", {"x": FINE}, timeout_s=60))
                except MeshClientError:
                    continue

        callers = [threading.Thread(target=call) for _ in range(4)]
        for each in callers:
            each.start()
        try:
            for name in "abab":
                until(lambda: len(copies(client, "slow")) == 2, what="both nodes hold it")
                answered.clear()
                until(lambda: len(answered) > 10, what="calls are answered")
                mesh.nodes[name].send(signal.SIGKILL)
                mesh.nodes[name].wait()
                mesh.restart_dead()
            until(lambda: len(copies(client, "slow")) == 2, what="both nodes hold it again")
        finally:
            stop.set()
            for each in callers:
                each.join()
        assert suspected(client, "slow") == ""
        assert client.models("slow")[0].state == "ready"


def command(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mesh.cli.main", *words], capture_output=True, text=True, check=True, timeout=100
    )
    return done.stdout


async def accuse(etcd: EtcdServer, name: str) -> None:
    """Write into the registry that a model ended three processes, as nodes do."""
    store = EtcdClient(RegistryConfig(endpoints=(etcd.address,)))
    key = ModelName(name), Version("1")
    entry = await store.get(model_key(*key))
    assert entry is not None
    model: ModelVersion = records.decode_model(entry.value)
    suspect = None
    for _ in range(3):
        suspect = suspects.died(suspect, model, Death.WORKER, "segmentation fault", NodeId("a"), time.time())
    assert suspect is not None
    await store.put(suspect_key(*key), records.encode(suspect))
    await store.close()


async def test_a_quarantine_is_shown_everywhere_and_an_operator_lifts_it(etcd: EtcdServer, tmp_path: Path) -> None:
    add_echo(tmp_path)
    with cluster(etcd.address, tmp_path, "a") as (mesh, client):
        address = ("--address", mesh.router.grpc)
        assert client.infer("echo", {"x": FINE}, timeout_s=60)["y"].tolist() == [[0.0]]
        await accuse(etcd, "echo")
        until(lambda: client.models("echo")[0].state == "quarantined", what="the router knows")
        with pytest.raises(MeshClientError, match="segmentation fault") as caught:
            client.infer("echo", {"x": FINE}, timeout_s=60)
        assert caught.value.reason == "QUARANTINED"
        assert caught.value.retry_after_s
        assert not client.model_ready("echo")
        (listed,) = json.loads(command("models", "--json", *address))
        assert listed["state"] == "quarantined"
        assert "it ended 3 processes, the last on node 'a' (segmentation fault)" in listed["reason"]
        (indexed,) = client.repository_index()
        assert indexed.state == "UNAVAILABLE"
        assert re.fullmatch(r"quarantined for \d+ s more: it ended 3 processes, .*", indexed.reason)
        assert "it is under suspicion: it ended 3 processes" in command("explain", "echo", *address)
        assert value(mesh.router, "mesh_router_quarantined_models") == 1
        assert command("models", "release", "echo", *address) == (
            "released echo version 1: it is loaded and called like any other\n"
        )
        until(lambda: client.model_ready("echo"), what="the router knows that it is released")
        assert client.infer("echo", {"x": FINE}, timeout_s=60)["y"].tolist() == [[0.0]]
        assert command("models", "release", "echo", *address) == "nothing is held against echo\n"
        (listed,) = json.loads(command("models", "echo", "--json", *address))
        assert listed["state"] == "ready"
