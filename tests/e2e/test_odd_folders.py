"""Repositories in which somebody left something odd: the nodes live, the other models serve, and it is said why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from mesh_client import Client, MeshClientError, ModelNotFound
from tests.fixtures import raw
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import START_S, Process, start_node, start_router, until
from tests.fixtures.repositories import add_echo
from tests.fixtures.tools import need

ODD = ("dated", "bomb", os.fsdecode(b"caf\xe9"), "piped", "line\nfeed")
DATE = "model.yaml: day is out of range for month"


def add_odd(repository: Path) -> None:
    for name in ODD:
        folder = repository / name / "1"
        folder.mkdir(parents=True)
        (folder / "model.py").write_text("class Model: ...")
    (repository / "dated" / "model.yaml").write_text("parameters: {trained: 2026-02-30}")
    bomb = ", ".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12))
    (repository / "bomb" / "model.yaml").write_text(f"scaling: {{l0: &l0 [1], {bomb}}}")
    os.mkfifo(repository / "piped" / "model.yaml")
    (repository / "echo" / "1" / os.fsdecode(b"na\xefve.txt")).write_text("a file of the model that serves")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    repository = tmp_path / "repository"
    repository.mkdir()
    add_echo(repository)
    return repository


@pytest.fixture
def mesh(new_etcd: Callable[..., EtcdServer], repository: Path, tmp_path: Path) -> Iterator[tuple[Client, str, Path]]:
    """Two nodes that read the repository, the first with its log in a file."""
    need("etcd")
    etcd = new_etcd()
    etcd.launch_and_wait()
    log = tmp_path / "node.log"
    flags = ("--repository-poll-s", "0.2")
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(start_node(etcd.address, "a", *flags, models=repository, log=log)),
            stack.enter_context(start_node(etcd.address, "b", *flags, models=repository)),
        ]
        router: Process = stack.enter_context(start_router(etcd.address))
        for process in (*nodes, router):
            process.wait_ready()
        client = stack.enter_context(Client(router.grpc, timeout_s=60))
        until(client.server_ready, what="the router has heard of the nodes")
        until(lambda: any(each.name == "echo" for each in client.models()), what="the router has heard of the models")
        yield client, router.grpc, log
        assert all(process.running for process in (*nodes, router))


def ask(address: str) -> None:
    with raw.channel_to(address) as channel:
        answer = raw.infer(channel, raw.request("echo", raw.floats(1, 2, 3, 4)))
    assert answer.raw_output_contents


def mesh_models(address: str, *words: str) -> str:
    command = [sys.executable, "-m", "mesh.cli.main", "models", *words, "--address", address]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=START_S).stdout


def said(client: Client) -> dict[str, str]:
    return {each.name: each.reason for each in client.models() if each.state == "refused"}


def test_odd_folders_that_come_while_nodes_run(mesh: tuple[Client, str, Path], repository: Path) -> None:
    client, address, log = mesh
    ask(address)
    add_odd(repository)
    until(lambda: len(said(client)) == len(ODD), what="what cannot be served is listed")
    until(lambda: said(client)["dated"] == f"{DATE} (node a, b)", what="both nodes say why")
    reasons = said(client)
    assert set(reasons) == {"dated", "bomb", "caf\\udce9", "piped", "line\\nfeed"}
    assert "counted as often as aliases repeat them" in reasons["bomb"]
    assert "model.yaml is no regular file" in reasons["piped"]
    assert "its name cannot be a model's" in reasons["line\\nfeed"]
    ask(address)
    assert DATE in next(line for line in mesh_models(address).splitlines() if line.startswith("dated"))
    listed = json.loads(mesh_models(address, "dated", "--json"))
    assert [(each["state"], each["reason"]) for each in listed] == [("refused", f"{DATE} (node a, b)")]
    assert DATE in log.read_text()


def test_a_call_for_a_folder_that_cannot_be_served_says_why(mesh: tuple[Client, str, Path], repository: Path) -> None:
    client, _, _ = mesh
    add_odd(repository)
    until(lambda: said(client).get("dated") == f"{DATE} (node a, b)", what="both nodes say why")
    text = f"Request for unknown model: 'dated' is not found: its folder cannot be served: {DATE} (node a, b)"
    with pytest.raises(ModelNotFound, match="Request for unknown model") as caught:
        client.model_metadata("dated")
    assert caught.value.message == text
    with pytest.raises(ModelNotFound, match="'datd' is not found; did you mean 'dated'"):
        client.model_metadata("datd")
    with pytest.raises(MeshClientError, match=r"failed to poll from model repository: .* day is out of range"):
        client.load("dated")
    index = {each.name: (each.state, each.reason) for each in client.repository_index()}
    assert index["dated"] == ("UNAVAILABLE", f"{DATE} (node a, b)")


def test_a_mistake_in_a_model_that_serves_is_said_beside_it(mesh: tuple[Client, str, Path], repository: Path) -> None:
    client, address, _ = mesh
    ask(address)
    config = (repository / "echo" / "model.yaml").read_text()
    (repository / "echo" / "model.yaml").write_text(f"{config}parameters: {{trained: 2026-02-30}}\n")
    until(lambda: client.models("echo")[0].reason == f"{DATE} (node a, b)", what="the mistake is told")
    ask(address)
    assert client.models("echo")[0].state == "ready"
    (repository / "echo" / "model.yaml").write_text(config)
    until(lambda: client.models("echo")[0].reason == "", what="it is mended")


def test_nodes_that_find_odd_folders_when_they_start(new_etcd: Callable[..., EtcdServer], repository: Path) -> None:
    need("etcd")
    add_odd(repository)
    etcd = new_etcd()
    etcd.launch_and_wait()
    with start_node(etcd.address, "a", models=repository) as node, start_router(etcd.address) as router:
        node.wait_ready()
        router.wait_ready()
        with Client(router.grpc, timeout_s=60) as client:
            until(client.server_ready, what="the router has heard of the node")
            until(lambda: len(said(client)) == len(ODD), what="what cannot be served is listed")
        ask(router.grpc)
        with raw.channel_to(router.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
            raw.infer(channel, raw.request("piped", raw.floats(1)))
        assert "model.yaml is no regular file" in str(caught.value.details())
