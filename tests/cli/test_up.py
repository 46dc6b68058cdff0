"""`mesh up` as a user starts it: real processes, real signals, and nothing left behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mesh.api.messages import ServerReadyRequest, ServerReadyResponse, control
from mesh_client import Client, MeshClientError
from tests.cli.running import DEADLINE_S, Up, gone, marked, until, up
from tests.fixtures.repositories import add_python

pytestmark = pytest.mark.timeout(600)


def nodes_of(running: Up) -> list[Any]:
    found = running.ask("/mesh.v1.MeshControl/ListNodes", control.ListNodesRequest(), control.ListNodesResponse)
    return list(found.nodes)


def test_up_is_ready_when_it_says_so_and_sigterm_leaves_nothing(tmp_path: Path) -> None:
    with up(tmp_path, "--nodes", "2") as running:
        ready = running.ready
        assert ready["ready"] is True
        assert [node["id"] for node in ready["nodes"]] == ["a", "b"]
        answer = running.ask("/inference.GRPCInferenceService/ServerReady", ServerReadyRequest(), ServerReadyResponse)
        assert answer.ready
        assert sorted(node.id for node in nodes_of(running)) == ["a", "b"]
        with urllib.request.urlopen(f"http://{ready['router']['http']}/v2/health/ready", timeout=60) as health:
            assert health.status == 200
        family = running.family()
        pids = {each.pid for each in family}
        assert {ready["router"]["pid"], *(node["pid"] for node in ready["nodes"])} <= pids
        running.process.terminate()
        assert running.process.wait(DEADLINE_S) == 0
        assert gone(family)
        assert running.process.stdout is not None
        assert running.process.stdout.read() == "", "one JSON line and nothing else"


def test_a_killed_up_leaves_nothing(tmp_path: Path) -> None:
    with up(tmp_path, "--nodes", "1") as running:
        family = running.family()
        assert family
        running.process.kill()
        running.process.wait()
        until(lambda: gone(family), lambda: f"still there: {[each for each in family if each.is_running()]}")


def test_ctrl_c_in_a_terminal_stops_it_in_order(tmp_path: Path) -> None:
    with up(tmp_path, "--nodes", "1") as running:
        family = running.family()
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(DEADLINE_S) == 0
        assert gone(family)
        assert "again" not in running.said()


def test_a_killed_node_comes_back(tmp_path: Path) -> None:
    with up(tmp_path, "--nodes", "2") as running:
        started = {node.id: node.started_s for node in nodes_of(running)}
        os.kill(running.ready["nodes"][0]["pid"], signal.SIGKILL)
        until(lambda: "node a runs again" in running.said(), running.said)
        assert "node a was ended by SIGKILL; starting it again in 0.5 s" in running.said()

        def back() -> bool:
            return any(node.id == "a" and node.started_s > started["a"] for node in nodes_of(running))

        until(back, running.said)


def test_a_node_that_a_model_ended_in_c_comes_back_and_knows_which(tmp_path: Path) -> None:
    """C's exit leaves no word in the process; the supervisor knows the code, and the node is told."""
    add_python(
        tmp_path / "models",
        "culprit",
        """\
        isolation: none
        inputs: [{name: x, dtype: FP32, shape: [-1, 1]}]
        outputs: [{name: y, dtype: FP32, shape: [-1, 1]}]
        """,
        """\
        import ctypes

        class Model:
            def infer(self, inputs):
                ctypes.CDLL(None)._exit(5)
        """,
    )
    with (
        up(tmp_path, "--nodes", "1", "--models", str(tmp_path / "models")) as running,
        Client(running.address) as client,
    ):
        with pytest.raises(MeshClientError):
            client.infer("culprit", {"x": np.zeros((1, 1), np.float32)}, timeout_s=30)
        until(lambda: bool(client.explain("culprit")[0].suspected), running.said)
        # Its call may have been sent once more by then, to the worker that it runs in now.
        suspected = client.explain("culprit")[0].suspected
        assert re.search(r"the last on node 'a' \((it exited with|ended itself with exit) code 5\)", suspected)


def test_a_killed_router_comes_back_on_its_port(tmp_path: Path) -> None:
    with up(tmp_path, "--nodes", "1") as running:
        os.kill(running.ready["router"]["pid"], signal.SIGKILL)
        until(lambda: "router runs again" in running.said(), running.said)
        assert [node.id for node in nodes_of(running)] == ["a"]


def test_without_an_etcd_binary_the_embedded_registry_serves(tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    with up(tmp_path, "--nodes", "1", env={"PATH": str(empty)}) as running:
        names = {each.name() for each in running.family()}
        assert "etcd" not in names
        assert len(nodes_of(running)) == 1
        running.process.terminate()
        assert running.process.wait(DEADLINE_S) == 0


class Ended:
    """A `mesh up` that ended by itself."""

    def __init__(self, *words: str) -> None:
        self._mark = uuid.uuid4().hex
        done = subprocess.run(
            [sys.executable, "-m", "mesh.cli.main", "up", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE_S,
            env={**os.environ, "MESH_TEST_MARK": self._mark},
        )
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    def left_over(self) -> list[psutil.Process]:
        """Return the processes it started that still run: they inherited the mark."""
        return marked(self._mark)


@pytest.mark.parametrize("flag", ["--grpc-port", "--http-port"])
def test_a_taken_port_is_one_sentence_and_everything_is_stopped(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        other = "--http-port" if flag == "--grpc-port" else "--grpc-port"
        ended = Ended("--nodes", "1", flag, str(port), other, "0")
    assert (ended.code, ended.out) == (1, "")
    assert [line for line in ended.err.splitlines() if line.startswith("error: ")] == [ended.err.splitlines()[-1]]
    assert f"127.0.0.1:{port}" in ended.err.splitlines()[-1]
    assert not ended.left_over()


def test_a_folder_that_is_not_there_or_has_no_model_is_one_sentence(tmp_path: Path) -> None:
    for folder, sentence in ((tmp_path, "there is no model in"), (tmp_path / "absent", "found none at")):
        ended = Ended("--models", str(folder))
        assert (ended.code, ended.out) == (1, "")
        assert sentence in ended.err
        assert len(ended.err.splitlines()) == 1


def test_folders_whose_models_cannot_be_served_are_one_sentence_after_a_while(tmp_path: Path) -> None:
    (tmp_path / "nothing" / "inside").mkdir(parents=True)
    ended = Ended(
        "--nodes", "1", "--models", str(tmp_path), "--grpc-port", "0", "--http-port", "0", "--start-timeout-s", "15"
    )
    assert (ended.code, ended.out) == (1, "")
    assert "error: the mesh is not ready after 15 s: the router" in ended.err.splitlines()[-1]
    assert not ended.left_over()


def test_a_registry_that_does_not_answer_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    ended = Ended("--nodes", "1", "--registry", f"127.0.0.1:{port}", "--grpc-port", "0", "--http-port", "0")
    assert (ended.code, ended.out) == (1, "")
    assert f"127.0.0.1:{port}" in ended.err
    assert len(ended.err.splitlines()) == 1


def test_two_meshes_may_share_a_registry(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with (
        up(first, "--nodes", "1") as one,
        up(second, "--nodes", "1", "--registry", one.ready["registry"], "--node-prefix", "x-") as two,
    ):
        assert two.ready["registry"] == one.ready["registry"]
        until(lambda: sorted(node.id for node in nodes_of(one)) == ["a", "x-a"], one.said)
        assert sorted(node.id for node in nodes_of(two)) == ["a", "x-a"]
        two.process.terminate()
        assert two.process.wait(DEADLINE_S) == 0
        until(lambda: [node.id for node in nodes_of(one)] == ["a"], one.said)


def test_a_second_node_with_a_live_id_exits_1_with_one_sentence(tmp_path: Path) -> None:
    with up(tmp_path, "--nodes", "1") as running:
        words = ("--id", "a", "--registry", running.ready["registry"], "--models", str(tmp_path), "--lease-ttl-s", "2")
        done = subprocess.run(
            [sys.executable, "-m", "mesh.cli.main", "node", *words, "--log-level", "error"],
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE_S,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: node id 'a' is taken")
        assert done.stderr.count("\n") == 1
        assert [node.id for node in nodes_of(running)] == ["a"]


def test_models_may_be_added_while_it_runs_and_survive_with_a_data_dir(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    demo = Path(__file__).parents[2] / "models" / "demo"
    shutil.copytree(demo / "iris", folder / "iris")
    flags = ("--nodes", "1", "--models", str(folder), "--data-dir", str(tmp_path / "etcd"))

    def names(running: Up) -> list[str]:
        found = running.ask("/mesh.v1.MeshControl/ListModels", control.ListModelsRequest(), control.ListModelsResponse)
        return sorted(model.name for model in found.models)

    if shutil.which("etcd") is None:
        pytest.skip("needs an etcd binary")
    with up(tmp_path, *flags) as running:
        assert names(running) == ["iris"]
        shutil.copytree(demo / "digits", folder / "digits")
        until(lambda: names(running) == ["digits", "iris"], running.said)
        running.process.terminate()
        assert running.process.wait(DEADLINE_S) == 0
    with up(tmp_path, *flags) as running:
        assert names(running) == ["digits", "iris"]
