"""etcd comes back empty: its data was deleted, and every process still knows what was in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesh.api.messages import control
from mesh_client import Client
from tests.fixtures.calls import ROW, Calls
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.etcd_raw import Raw
from tests.fixtures.mesh import Process, start_node, start_router, until
from tests.fixtures.repositories import add_echo, add_patient

FINE = np.ones((1, 1), np.float32)


class Machines:
    """A router and two nodes that hold a model each, an unloaded model, and a pipeline, over an etcd that is wiped."""

    def __init__(self, etcd: EtcdServer, folder: Path, poll_s: str, ending: ExitStack) -> None:
        self.etcd = etcd
        self._folder, self._poll_s, self._ending = folder, poll_s, ending
        self.repository = folder / "repository"
        self.repository.mkdir()
        add_echo(self.repository)
        for name in ("iris", "digits"):
            add_patient(self.repository, name)
        self.router, self.client = self.route("router")
        self.nodes = [self.node(name) for name in "ab"]
        for name, rows in (("iris", ROW), ("digits", np.zeros((1, 8, 8), np.float32))):
            self.client.infer(name, {("x" if name == "iris" else "image"): rows}, timeout_s=60)
        self.client.unload("digits")
        step = control.Step(name="only", model="echo", inputs={"x": "$x"})
        self.client.apply_pipeline(control.Pipeline(name="graph", steps=[step], outputs={"y": "only.y"}))
        assert self.client.infer("graph", {"x": FINE}, timeout_s=60)["y"].tolist() == [[1.0]]
        self.loads = self.loaded()

    def route(self, name: str) -> tuple[Process, Client]:
        router = start_router(self.etcd.address, log=self._folder / f"{name}.log")
        router = self._ending.enter_context(router).wait_ready()
        return router, self._ending.enter_context(Client(router.grpc))

    def node(self, name: str) -> Process:
        poll = ("--repository-poll-s", self._poll_s)
        started = start_node(self.etcd.address, name, *poll, models=self.repository, log=self._folder / f"{name}.log")
        return self._ending.enter_context(started).wait_ready()

    def loaded(self) -> int:
        """Return how many loads the nodes finished."""
        return sum((self._folder / f"{name}.log").read_text().count(" loaded model=") for name in "ab")

    def wipe(self) -> None:
        """Stop etcd, delete its data, and start it: it has its old name, and with that its old cluster id."""
        self.etcd.kill()
        shutil.rmtree(self.etcd.folder / "data")
        self.etcd.launch_and_wait()

    def keys(self) -> list[str]:
        """Return the keys of records that no lease keeps."""
        api = Raw(self.etcd.address)
        try:
            found = [pair.key.decode() for pair in api.range(key=b"/mesh/v1/", range_end=b"/mesh/v10").kvs]
        finally:
            api.close()
        kinds = ("models", "placements", "pipelines", "suspects")
        return [key for key in found if key.split("/")[3] in kinds]

    def assert_all_is_back(self, client: Client) -> None:
        """Assert that a process which knows only what the registry says knows everything, and that nothing was lost."""
        until(lambda: {each.id for each in client.nodes()} == {"a", "b"}, what="both nodes are registered")
        until(lambda: states(client)["iris"] == "ready", what="the copy of iris is known")
        assert states(client) == {"iris": "ready", "digits": "unloaded", "echo": "ready"}
        assert [each.name for each in client.pipelines()] == ["graph"]
        assert client.infer("graph", {"x": FINE}, timeout_s=60)["y"].tolist() == [[1.0]]
        assert client.infer("iris", {"x": ROW}, timeout_s=60)
        assert self.loaded() == self.loads


def states(client: Client) -> dict[str, Any]:
    return {each.name: each.state for each in client.models()}


@pytest.fixture(params=["0", "30"], ids=["no poll", "a slow poll"])
def machines(request: pytest.FixtureRequest, etcd: EtcdServer, tmp_path: Path) -> Iterator[Machines]:
    with ExitStack() as ending:
        yield Machines(etcd, tmp_path, request.param, ending)


def test_everything_is_put_back_and_nothing_loaded_again(machines: Machines) -> None:
    before = machines.keys()
    with Calls(machines.router.grpc, "iris") as calls:
        calls.more(5)
        machines.wipe()
        calls.more(100)
        until(lambda: machines.keys() == before, what="the records are there again", deadline_s=20)
        _, fresh = machines.route("fresh")
        machines.assert_all_is_back(fresh)
        machines.assert_all_is_back(machines.client)
        # Longer than nodes are waited for after the registry was away.
        calls.more(500)
        machines.assert_all_is_back(fresh)
        assert not calls.failed


def test_nodes_put_back_what_no_router_was_there_to_keep(machines: Machines) -> None:
    before = machines.keys()
    assert machines.router.stop() == 0
    machines.wipe()
    until(lambda: machines.keys() == before, what="the records are there again", deadline_s=20)
    _, fresh = machines.route("fresh")
    machines.assert_all_is_back(fresh)
