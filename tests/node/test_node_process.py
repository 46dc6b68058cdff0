"""A real node behind a real router: models come, change, are evicted and go, while requests run."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from mesh.api import messages as m
from mesh.api.details import read_details
from mesh.core.placement.cold import CHURN_AFTER_S
from mesh_client import Client, DeadlineExceeded
from tests.fixtures import raw
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import Process, start_node, start_router, until
from tests.fixtures.tools import need

PYTHON = """\
import pathlib
import time

class Model:
    def load(self, context):
        ballast = context.path / "ballast"
        self.held = ballast.read_bytes() if ballast.exists() else b""

    def infer(self, inputs, request):
        time.sleep(float(request.parameters.get("sleep_s", 0)))
        return {"y": inputs["x"] + VALUE}
"""
YAML = """\
runtime: python
inputs: [{name: x, dtype: FP32, shape: [-1, 4]}]
outputs: [{name: y, dtype: FP32, shape: [-1, 4]}]
"""
MIB = 1024 * 1024

SLOW = """
while not (pathlib.Path(__file__).parents[2] / "go").exists():
    time.sleep(0.02)
"""


def write_model(root: Path, name: str, value: float, *, ballast: int = 0) -> None:
    folder = root / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "model.yaml").write_text(YAML)
    if ballast:
        with (folder / "ballast").open("wb") as file:
            file.truncate(ballast)
    # Replaced in one step, so that no scan sees half a file.
    scratch = root / f".{name}.py"
    scratch.write_text(PYTHON.replace("VALUE", str(value)))
    scratch.replace(folder / "model.py")


class Mesh:
    """A router and one node over a repository that the test writes."""

    def __init__(self, etcd: EtcdServer, repository: Path) -> None:
        self.etcd = etcd
        self.repository = repository
        self.node: Process
        self.router: Process
        self.started: list[Process] = []

    def start(self, *flags: str) -> Client:
        self.node = start_node(self.etcd.address, "a", "--repository-poll-s", "0.2", *flags, models=self.repository)
        self.started.append(self.node)
        self.router = start_router(self.etcd.address)
        self.started.append(self.router)
        self.node.wait_ready()
        self.router.wait_ready()
        client = Client(self.router.grpc, timeout_s=60)
        until(client.server_ready, what="the router has heard of the node")
        folders = {each.name for each in self.repository.iterdir() if each.is_dir()}
        until(lambda: folders <= {each.name for each in client.models()}, what="the router has heard of the models")
        return client

    def ask(self, name: str, **kwargs: object) -> float:
        """Return what the model adds to 0."""
        with raw.channel_to(self.router.grpc) as channel:
            message = raw.request(name, raw.floats(0, 0, 0, 0))
            for key, value in kwargs.items():
                message.parameters[key].double_param = float(str(value))
            answer = raw.infer(channel, message)
        return float(memoryview(answer.raw_output_contents[0]).cast("f")[0])

    def state(self, client: Client, name: str) -> str:
        """Return a model's state; "absent" when the mesh does not know it."""
        return next((each.state for each in client.models() if each.name == name), "absent")


@pytest.fixture
def mesh(new_etcd: Callable[..., EtcdServer], tmp_path: Path) -> Iterator[Mesh]:
    need("etcd")
    server = new_etcd()
    server.launch_and_wait()
    repository = tmp_path / "repository"
    repository.mkdir()
    mesh = Mesh(server, repository)
    yield mesh
    for process in mesh.started:
        process.kill()


def test_files_that_change_are_loaded_again_and_no_request_fails(mesh: Mesh) -> None:
    write_model(mesh.repository, "adds", 1)
    client = mesh.start()
    seen: list[float] = []
    failed: list[Exception] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            try:
                seen.append(mesh.ask("adds"))
            except grpc.RpcError as error:
                failed.append(error)

    caller = threading.Thread(target=load)
    caller.start()
    until(lambda: len(seen) > 5, what="requests are answered")
    write_model(mesh.repository, "adds", 2)
    until(lambda: seen and seen[-1] == 2.0, what="the new files answer")
    stop.set()
    caller.join()
    assert failed == []
    assert sorted(seen) == seen
    client.close()


def test_a_model_whose_folder_comes_and_goes(mesh: Mesh) -> None:
    client = mesh.start()
    assert mesh.state(client, "late") == "absent"
    write_model(mesh.repository, "late", 3)
    until(lambda: mesh.state(client, "late") == "cold", what="the new model is known")
    assert mesh.ask("late") == 3.0
    shutil.rmtree(mesh.repository / "late")
    until(lambda: mesh.state(client, "late") == "absent", what="the removed model is forgotten")
    until(lambda: not any(copy.model == "late" for copy in client.nodes()[0].copies), what="its copy is unloaded")
    client.close()


def test_broken_files_leave_the_old_ones_serving(mesh: Mesh) -> None:
    write_model(mesh.repository, "adds", 1)
    client = mesh.start()
    assert mesh.ask("adds") == 1.0
    (mesh.repository / "adds" / "1" / "model.py").write_text("raise OSError('half written')")

    def told() -> bool:
        return any("half written" in copy.error for copy in client.models("adds")[0].copies)

    until(told, what="the failed load is told")
    assert mesh.ask("adds") == 1.0
    write_model(mesh.repository, "adds", 2)
    until(lambda: mesh.ask("adds") == 2.0, what="mended files answer")
    client.close()


def test_the_copy_used_longest_ago_makes_room(mesh: Mesh) -> None:
    for index, name in enumerate(("old", "recent", "new")):
        write_model(mesh.repository, name, index, ballast=100 * MIB)
    # Each is predicted to take 200 MiB and then found to take 100: two leave too little room for a third. What else the
    # process allocates during a load is measured with it, and stays far below these sizes.
    client = mesh.start("--memory-bytes", str(350 * MIB))
    # Asked far more often, so that how long each load happened to take does not decide.
    assert [mesh.ask(name) for name in ("old", *["recent"] * 8, "new")] == [0.0, *[1.0] * 8, 2.0]
    until(lambda: mesh.state(client, "old") == "cold", what="the copy used longest ago was evicted")
    assert mesh.state(client, "recent") == "ready"
    assert mesh.ask("old") == 0.0
    client.close()


def test_an_open_stream_keeps_its_copy_and_a_closed_one_does_not(mesh: Mesh) -> None:
    for index, name in enumerate(("streamed", "recent", "new", "newer")):
        write_model(mesh.repository, name, index, ballast=100 * MIB)
    client = mesh.start("--memory-bytes", str(350 * MIB))
    row = {"x": np.zeros((1, 4), np.float32)}
    with client.stream() as stream:
        for _ in range(2):
            assert stream.infer("streamed", row)["y"].tolist() == [[0.0] * 4]
        # The copy of the open stream is the one used longest ago, and the other one goes.
        assert [mesh.ask(name) for name in ("recent", "recent", "new")] == [1.0, 1.0, 2.0]
        until(lambda: mesh.state(client, "recent") == "cold", what="another copy was evicted")
        assert mesh.state(client, "streamed") == "ready"
        assert stream.infer("streamed", row)["y"].tolist() == [[0.0] * 4]
    assert [mesh.ask(name) for name in (*["new"] * 12, "newer")] == [*[2.0] * 12, 3.0]
    until(lambda: mesh.state(client, "streamed") == "cold", what="nothing keeps it any more")
    client.close()


def test_a_load_tells_how_far_it_is_and_what_it_waits_for(mesh: Mesh) -> None:
    names = ("first", "second", "third", "fourth")
    for name in names:
        write_model(mesh.repository, name, 1)
        file = mesh.repository / name / "1" / "model.py"
        file.write_text(file.read_text() + f"\n\nimport time, pathlib\n{SLOW}")
    client = mesh.start()
    callers = [threading.Thread(target=mesh.ask, args=(name,)) for name in names]
    try:
        for caller in callers:
            caller.start()
        until(lambda: _loads_before(client, names) == [0, 1, 2, 3], what="four loads are told in their order")
        waiting = max(client.models(), key=lambda each: sum(copy.loads_before for copy in each.copies))
        assert re.fullmatch(r"loading on node 'a' behind 3 others", waiting.reason)
        with pytest.raises(
            DeadlineExceeded, match=r"in time: loading on node 'a' behind 3 others, for \d+\.\d s by now; "
        ):
            client.infer(waiting.name, {"x": np.zeros((1, 4), np.float32)}, timeout_s=1)
    finally:
        (mesh.repository / "go").touch()
        for caller in callers:
            caller.join()
    client.close()


def _loads_before(client: Client, names: Collection[str]) -> list[int]:
    found = [copy for each in client.models() if each.name in names for copy in each.copies]
    return sorted(copy.loads_before for copy in found if copy.state == "loading")


def test_a_model_that_can_never_fit_is_refused_with_the_numbers(mesh: Mesh) -> None:
    write_model(mesh.repository, "large", 1, ballast=60 * MIB)
    client = mesh.start("--memory-bytes", str(100 * MIB))
    with pytest.raises(grpc.RpcError, match=r"it needs \d+ bytes and its largest device has 104857600") as caught:
        mesh.ask("large")
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    client.close()


def test_grpcurl_reads_why_a_call_was_refused(mesh: Mesh) -> None:
    need("grpcurl")
    write_model(mesh.repository, "large", 1, ballast=60 * MIB)
    client = mesh.start("--memory-bytes", str(100 * MIB))
    until(lambda: mesh.state(client, "large") == "cold", what="the model is known")
    row = '{"model_name": "large", "inputs": [{"name": "x", "datatype": "FP32", "shape": [0, 4]}]}'
    call = ("-d", row, mesh.router.grpc, "inference.GRPCInferenceService/ModelInfer")
    done = subprocess.run(["grpcurl", "-plaintext", *call], capture_output=True, text=True, timeout=60, check=False)
    assert '"reason": "NO_CAPACITY"' in done.stderr
    assert '"domain": "mesh"' in done.stderr
    described = ("grpcurl", "-plaintext", mesh.router.grpc, "describe", "google.rpc.RetryInfo")
    done = subprocess.run(described, capture_output=True, text=True, timeout=60, check=False)
    assert ".google.protobuf.Duration retry_delay = 1;" in done.stdout
    client.close()


@pytest.mark.parametrize("busy_s", [1, 12], ids=["for a moment", "for long"])
def test_a_model_in_use_is_not_evicted(mesh: Mesh, busy_s: int) -> None:
    write_model(mesh.repository, "busy", 1, ballast=30 * MIB)
    write_model(mesh.repository, "other", 2, ballast=30 * MIB)
    client = mesh.start("--memory-bytes", str(80 * MIB))
    assert mesh.ask("busy") == 1.0
    answers: list[float] = []
    caller = threading.Thread(target=lambda: answers.append(mesh.ask("busy", sleep_s=busy_s)))
    caller.start()
    until(lambda: _outstanding(mesh) == 1, what="the busy model is in use")
    if busy_s > 2 * CHURN_AFTER_S:
        with pytest.raises(grpc.RpcError, match=r"cannot be loaded now, all memory .* is in use") as refused:
            mesh.ask("other")
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        details = read_details(refused.value.trailing_metadata())
        assert (details.reason, details.facts["model"]) == ("CHURN", "other")
        assert details.retry_after_s
    else:
        assert mesh.ask("other") == 2.0
    caller.join()
    assert answers == [1.0]
    client.close()


def test_a_lost_lease_is_taken_again_with_everything(mesh: Mesh) -> None:
    need("etcdctl")
    write_model(mesh.repository, "adds", 1)
    client = mesh.start()
    assert mesh.ask("adds") == 1.0
    etcdctl = ["etcdctl", "--endpoints", mesh.etcd.address]
    environment = {"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin:/usr/local/bin"}
    listed = subprocess.run([*etcdctl, "lease", "list"], capture_output=True, text=True, env=environment, check=True)
    (lease,) = listed.stdout.split()[-1:]
    subprocess.run([*etcdctl, "lease", "revoke", lease], env=environment, check=True, capture_output=True)

    def back() -> bool:
        return any(copy.model == "adds" and copy.state == "ready" for node in client.nodes() for copy in node.copies)

    until(back, what="the node is registered again with its copy")
    assert mesh.ask("adds") == 1.0
    client.close()


def test_sigterm_lets_a_request_in_flight_finish(mesh: Mesh) -> None:
    write_model(mesh.repository, "slow", 1)
    client = mesh.start()
    assert mesh.ask("slow") == 1.0
    answers: list[float] = []
    caller = threading.Thread(target=lambda: answers.append(mesh.ask("slow", sleep_s=3)))
    caller.start()
    until(lambda: _outstanding(mesh) == 1, what="the request is in flight")
    mesh.node.send(signal.SIGTERM)
    assert mesh.node.wait() == 0
    caller.join()
    assert answers == [1.0]
    assert client.nodes() == []
    client.close()


def test_a_model_that_never_returns_does_not_keep_the_node_from_ending(mesh: Mesh) -> None:
    write_model(mesh.repository, "stuck", 1)
    client = mesh.start("--drain-s", "1")

    def ask() -> None:
        with pytest.raises(grpc.RpcError):
            mesh.ask("stuck", sleep_s=10_000)

    caller = threading.Thread(target=ask)
    caller.start()
    until(lambda: _outstanding(mesh) == 1, what="the model is at it")
    mesh.node.send(signal.SIGTERM)
    assert mesh.node.wait() == 0
    mesh.router.kill()
    caller.join()
    client.close()


def test_a_node_answers_the_protocol_by_itself(mesh: Mesh) -> None:
    write_model(mesh.repository, "adds", 1)
    client = mesh.start()
    mesh.ask("adds")
    with raw.channel_to(mesh.node.grpc) as channel:
        assert raw.infer(channel, raw.request("adds")).model_name == "adds"
        config = raw.ask(channel, "ModelConfig", m.ModelConfigRequest(name="adds"), m.ModelConfigResponse).config
        assert config.backend == "python"
        with pytest.raises(grpc.RpcError, match="is not at ready state") as caught:
            raw.infer(channel, raw.request("nothing"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        answers = raw.stream(channel, [raw.request("adds", id="1"), raw.request("nothing", id="2")])
        assert [bool(answer.error_message) for answer in answers] == [False, True]
    client.close()


def _outstanding(mesh: Mesh) -> int:
    from mesh.api import service
    from mesh.api.messages import node_control as n

    with raw.channel_to(mesh.node.grpc) as channel:
        describe = service.unary(channel, "/mesh.v1.NodeControl/Describe", n.DescribeRequest, n.DescribeResponse)
        return int(describe(n.DescribeRequest(), timeout=60).outstanding)
