"""A pipeline over several nodes: tensors go straight from node to node, and nodes may die, leave and be slow."""

from __future__ import annotations

import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from mesh.api.messages import ModelInferRequest, ModelStreamInferResponse, control, notes
from mesh.wire.transport import MODEL_STREAM_INFER, PARTS_EXCHANGE, UNORDERED_HEADER
from mesh_client import Client, MeshClientError, Pipeline, StreamError
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import Process, start_node, start_router, until
from tests.fixtures.models import onnx_model, python_model
from tests.fixtures.tools import need
from tests.telemetry.receiver import attributes, receiving

pytestmark = pytest.mark.timeout(180)

FLOAT = "inputs: [{name: x, dtype: FP32, shape: [-1]}]\noutputs: [{name: y, dtype: FP32, shape: [-1]}]\n"
LARGE = 1_000_000
"""Elements of 4 bytes between two steps."""
MODELS = {
    "grow": (FLOAT, "first", f"return {{'y': numpy.full({LARGE}, inputs['x'][0], numpy.float32)}}"),
    "shrink": (FLOAT, "second", "return {'y': inputs['x'][:1] + inputs['x'].size}"),
    "begin": (FLOAT, "first", "return {'y': inputs['x'] + 1}"),
    "end": (FLOAT, "second", "return {'y': inputs['x'] * 2}"),
    "slow": (FLOAT, "second", "time.sleep(0.02); return {'y': inputs['x'] * 2}"),
    "stuck": (FLOAT, "second", "time.sleep(1.0); return {'y': inputs['x']}"),
    "twice": (FLOAT + "min_copies: 2\n", "both", "time.sleep(0.002); return {'y': inputs['x'] * 10}"),
}
"""By name: signature, pool of nodes, and what it does."""


def write(repository: Path) -> None:
    for name, (yaml, pool, body) in MODELS.items():
        python_model(repository, name, f"node_labels: {{{pool}: 'yes'}}\n{yaml}", body)
    for name, pool in (("dense-a", "first"), ("dense-b", "second"), ("dense-c", "first")):
        onnx_model(repository, name, f"node_labels: {{{pool}: 'yes'}}\nmax_batch_size: 8\n", "Add", ["x", "x"])


POOLS = {"a": ("first",), "b": ("second", "both"), "c": ("both",)}


class Mesh:
    """A router, a node for first steps, one for second steps and copies of `twice`, and one for more of those."""

    def __init__(self, etcd: EtcdServer, repository: Path) -> None:
        self._etcd = etcd
        self._repository = repository
        self.router = start_router(etcd.address)
        self.nodes = {name: self.start(name) for name in POOLS}
        for process in (self.router, *self.nodes.values()):
            process.wait_ready()

    def start(self, name: str) -> Process:
        labels = [part for pool in POOLS[name] for part in ("--label", f"{pool}=yes")]
        return start_node(self._etcd.address, name, *labels, "--settle-s", "0.2", models=self._repository)

    def restart(self, name: str, client: Client) -> None:
        """Start a node anew and wait until it holds all that is asked of it."""
        self.nodes[name] = self.start(name).wait_ready()
        self.load(client)

    def load(self, client: Client) -> None:
        for name in (*MODELS, "dense-a", "dense-b", "dense-c"):
            client.load(name)
        until(lambda: len(where(client, "twice")) == 2, what="both copies of 'twice' are there")

    def read_and_written(self) -> tuple[int, int]:
        """Return the bytes that the router has read and written in all, as the kernel counts them."""
        counts = dict(re.findall(r"(\w+): (\d+)", Path(f"/proc/{self.router.pid}/io").read_text()))
        return int(counts["rchar"]), int(counts["wchar"])


def where(client: Client, name: str) -> list[str]:
    (model,) = [each for each in client.models() if each.name == name]
    return [copy.node for copy in model.copies if copy.state == "ready"]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    need("etcd")
    folder = tmp_path_factory.mktemp("mesh")
    write(folder / "models")
    etcd = EtcdServer(folder / "etcd")
    etcd.launch_and_wait()
    mesh = Mesh(etcd, folder / "models")
    with Client(mesh.router.grpc, timeout_s=60) as client:
        until(lambda: len(client.models()) == len(MODELS) + 3, what="the models are known")
        mesh.load(client)
    yield mesh
    for process in (mesh.router, *mesh.nodes.values()):
        process.kill()
    etcd.kill()


@pytest.fixture
def client(mesh: Mesh) -> Iterator[Client]:
    with Client(mesh.router.grpc, timeout_s=60) as client:
        yield client


def chain(client: Client, name: str, *models: str) -> str:
    """Apply a pipeline of models one after another."""
    steps = [
        control.Step(name=f"s{at}", model=model, inputs={"x": f"s{at - 1}.y" if at else "$x"})
        for at, model in enumerate(models)
    ]
    answer = client.apply_pipeline(control.Pipeline(name=name, steps=steps, outputs={"y": f"s{len(models) - 1}.y"}))
    assert [each.message for each in answer.problems] == []
    return name


def x(value: float) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {"x": np.array([value], np.float32)}


def test_a_large_tensor_between_two_nodes_never_comes_to_the_router(mesh: Mesh, client: Client) -> None:
    name = chain(client, "large", "grow", "shrink")
    assert client.infer(name, x(1.0))["y"].tolist() == [LARGE + 1.0]
    before = mesh.read_and_written()
    for _ in range(10):
        assert client.infer(name, x(1.0))["y"].tolist() == [LARGE + 1.0]
    read, written = (after - before for before, after in zip(before, mesh.read_and_written(), strict=True))
    assert 0 < read < LARGE, "less than one of the tensors of 4 MB, of ten"
    assert 0 < written < LARGE


def test_a_pipeline_goes_back_and_forth_between_nodes(client: Client) -> None:
    name = chain(client, "back-and-forth", "begin", "end", "begin", "twice", "begin", "end")
    assert client.infer(name, x(1.0))["y"].tolist() == [((1.0 + 1) * 2 + 1) * 10 * 2 + 2]


def test_chains_of_tiny_steps_give_the_same_in_parts(client: Client) -> None:
    name = chain(client, "tiny", "dense-a", "dense-c", "dense-b", "dense-a")
    for rows in (1, 3, 8):
        given = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
        assert client.infer(name, {"x": given})["y"].tolist() == (given * 16).tolist()
    with client.stream() as stream:
        for number in range(300):
            stream.send(name, {"x": np.full((1, 2), number, np.float32)}, id=str(number))
        stream.half_close()
        found = [(result.id, float(result["y"][0, 0])) for result in stream]
    assert found == [(str(number), number * 16.0) for number in range(300)]
    with pytest.raises(MeshClientError, match="batch-size must be <= 8"):
        client.infer(name, {"x": np.zeros((9, 2), np.float32)})


def test_streams_keep_order_and_stages_work_side_by_side(client: Client) -> None:
    name = chain(client, "stages", "begin", "slow", "begin")
    client.infer(name, x(0.0))
    with client.stream() as stream:
        for number in range(40):
            stream.send(name, x(number), id=str(number))
        stream.half_close()
        found = [(result.id, float(result["y"][0])) for result in stream]
    assert found == [(str(number), (number + 1) * 2.0 + 1) for number in range(40)]


def test_a_deadline_ends_what_waits_on_nodes(client: Client) -> None:
    name = chain(client, "waiting", "begin", "stuck", "begin")
    assert client.infer(name, x(1.0))["y"].tolist() == [3.0]

    def count() -> int:
        (found,) = client.model_statistics("begin").model_stats
        return int(found.inference_count)

    before = count()
    with pytest.raises(MeshClientError, match=r"in time|the deadline passed"):
        client.infer(name, x(1.0), timeout_s=0.3)
    assert client.infer(name, x(1.0))["y"].tolist() == [3.0]
    assert count() == before + 3, "the last step of the request that was given up never ran"


def send_all(client: Client, name: str, count: int, half: threading.Event) -> list[tuple[str, object]]:
    """Send messages one after the other's heels and return what came back; `half` is set when half came back."""
    found: list[tuple[str, object]] = []
    with client.stream() as stream:

        def send() -> None:
            for number in range(count):
                stream.send(name, x(number), id=str(number))
            stream.half_close()

        sending = threading.Thread(target=send)
        sending.start()
        while True:
            try:
                result = stream.receive()
            except StreamError as error:
                found.append((error.id, error.message))
            else:
                if result is None:
                    break
                found.append((result.id, float(result["y"][0])))
            if len(found) == count // 2:
                half.set()
        sending.join()
    return found


class InBackground:
    """A stream of `count` messages that goes on beside the test."""

    def __init__(self, client: Client, name: str, count: int) -> None:
        self.half = threading.Event()
        self.found: list[tuple[str, object]] = []
        self._thread = threading.Thread(target=lambda: self.found.extend(send_all(client, name, count, self.half)))
        self._thread.start()

    def result(self) -> list[tuple[str, object]]:
        self._thread.join(120)
        assert not self._thread.is_alive()
        return self.found


def test_a_node_dies_in_the_middle_of_a_stream_and_its_requests_go_to_another_copy(mesh: Mesh, client: Client) -> None:
    name = chain(client, "outliving", "begin", "twice", "begin")
    client.infer(name, x(0.0))
    running = InBackground(client, name, 2000)
    assert running.half.wait(60)
    mesh.nodes["c"].kill()
    try:
        assert running.result() == [(str(number), (number + 1) * 10.0 + 1) for number in range(2000)]
    finally:
        mesh.restart("c", client)


def test_a_node_dies_that_ran_whole_requests_and_they_go_to_the_other(mesh: Mesh, client: Client) -> None:
    name = chain(client, "whole", "twice", "twice")
    client.infer(name, x(0.0))
    running = InBackground(client, name, 2000)
    assert running.half.wait(60)
    mesh.nodes["c"].kill()
    try:
        assert running.result() == [(str(number), number * 100.0) for number in range(2000)]
    finally:
        mesh.restart("c", client)


def test_a_node_dies_that_holds_the_only_copy(mesh: Mesh, client: Client) -> None:
    name = chain(client, "ending", "begin", "slow", "begin")
    client.infer(name, x(0.0))
    with Client(mesh.router.grpc, timeout_s=3) as hasty:
        running = InBackground(hasty, name, 100)
        assert running.half.wait(60)
        mesh.nodes["b"].kill()
        try:
            found = running.result()
        finally:
            mesh.restart("b", client)
    assert len(found) == 100, "every message is answered, with what it came to"
    assert [each[0] for each in found] == [str(number) for number in range(100)], "in their order"
    right = [(str(number), (number + 1) * 2.0 + 1) for number in range(100)]
    failed = [str(got[1]) for got, wanted in zip(found, right, strict=True) if got != wanted]
    assert 0 < len(failed) <= 50
    assert all("step 's1' of pipeline 'ending'" in message for message in failed), failed
    assert any("node 'b'" in message for message in failed), failed


def test_a_node_leaves_in_the_middle_of_a_stream_and_nobody_notices(mesh: Mesh, client: Client) -> None:
    name = chain(client, "leaving", "begin", "twice", "begin")
    client.infer(name, x(0.0))
    running = InBackground(client, name, 3000)
    assert running.half.wait(60)
    began_s = time.monotonic()
    assert mesh.nodes["c"].stop() == 0
    lasted_s = time.monotonic() - began_s
    try:
        assert running.result() == [(str(number), (number + 1) * 10.0 + 1) for number in range(3000)]
        assert lasted_s < 25, "the streams between nodes do not hold it up"
    finally:
        mesh.restart("c", client)


def test_a_copy_that_goes_is_not_asked_any_more(mesh: Mesh, client: Client) -> None:
    name = chain(client, "going", "begin", "end")
    assert client.infer(name, x(1.0))["y"].tolist() == [4.0]
    client.unload("end")
    with pytest.raises(MeshClientError, match=r"step 's1'.*'end'"):
        client.infer(name, x(1.0))
    client.load("end")
    assert client.infer(name, x(1.0))["y"].tolist() == [4.0]


def test_a_changed_pipeline_is_agreed_on_anew(client: Client) -> None:
    name = chain(client, "changing", "begin", "end")
    for _ in range(5):
        assert client.infer(name, x(1.0))["y"].tolist() == [4.0]
        chain(client, name, "end", "begin")
        assert client.infer(name, x(1.0))["y"].tolist() == [3.0]
        chain(client, name, "begin", "end")


class Exchange:
    """A router that is none: speaks mesh.v1.Parts with a node by plain grpcio."""

    def __init__(self, address: str) -> None:
        channel: Any = grpc.insecure_channel(address)
        self._channel = channel
        self._notes: queue.Queue[bytes | None] = queue.Queue()
        call = self._channel.stream_stream(PARTS_EXCHANGE)
        self.answers: Any = call(iter(self._notes.get, None), timeout=60)

    def send(self, **note: object) -> None:
        self._notes.put(notes.Note(**note).SerializeToString())  # type: ignore[arg-type] # fields of Note

    def send_bytes(self, note: bytes) -> None:
        self._notes.put(note)

    def next(self) -> notes.Note:
        return notes.Note.FromString(next(self.answers))

    def close(self) -> None:
        self._notes.put(None)
        self._channel.close()


@pytest.fixture
def exchange(mesh: Mesh) -> Iterator[Exchange]:
    exchange = Exchange(mesh.nodes["a"].grpc)
    yield exchange
    exchange.close()


def ended(run: int, step: str, value: float | None, plan: int = 1, name: str = "x") -> notes.StepEnded:
    said = notes.StepEnded(run=notes.Run(router="r", id=run, plan=plan), step=step, skipped=value is None)
    if value is not None:
        said.tensors.add(name=name, datatype="FP32", shape=[1], raw=np.array([value], np.float32).tobytes())
    return said


def plan(id_: int, name: str, revision: int, **places: str) -> notes.Plan:
    return notes.Plan(id=id_, pipeline=name, revision=revision, places=places)


def revision(client: Client, name: str) -> int:
    (found,) = client.pipelines(name)
    return int(found.revision)


def test_a_node_says_what_it_runs_for_a_plan_it_agreed_to(client: Client, exchange: Exchange) -> None:
    name = chain(client, "agreed", "begin", "end", "begin")
    exchange.send(hello=notes.Hello(router="r"))
    exchange.send(plan=plan(1, name, revision(client, name), s0="a", s1="", s2="a"))
    assert exchange.next().agreed == notes.Agreed(plan=1)
    exchange.send(ended=ended(7, "", 1.0))
    first = exchange.next().ended
    assert (first.run.id, first.step, np.frombuffer(first.tensors[0].raw, np.float32).tolist()) == (7, "s0", [2.0])
    exchange.send(ended=ended(7, "s1", 5.0, name="y"))
    last = exchange.next().ended
    assert (last.run.id, last.step, np.frombuffer(last.tensors[0].raw, np.float32).tolist()) == (7, "s2", [6.0])


def test_a_skipped_step_is_passed_on(client: Client, exchange: Exchange) -> None:
    name = chain(client, "skipped", "end", "begin")
    exchange.send(hello=notes.Hello(router="r"))
    exchange.send(plan=plan(1, name, revision(client, name), s0="", s1="a"))
    assert not exchange.next().agreed.problem
    exchange.send(ended=ended(1, "s0", None))
    answer = exchange.next().ended
    assert (answer.step, answer.skipped) == ("s1", True)


@pytest.mark.parametrize(
    ("plan_", "problem"),
    [
        (plan(1, "nobody-knows-it", 1, s0="a"), "'nobody-knows-it' revision 1 is not known here"),
        (plan(1, "agreed-on", 99, s0="a", s1="a"), "revision 99 is not known here"),
        (plan(1, "agreed-on", 1, s0="a"), "expected a place for each step of 'agreed-on', got ['s0']"),
        (plan(1, "agreed-on", 1, s0="b", s1="b"), "no step of this plan runs on node 'a'"),
    ],
    ids=["name", "revision", "steps", "node"],
)
def test_a_node_does_not_agree_to_what_it_cannot_do(
    client: Client, exchange: Exchange, plan_: notes.Plan, problem: str
) -> None:
    chain(client, "agreed-on", "begin", "begin")
    exchange.send(hello=notes.Hello(router="r"))
    exchange.send(plan=plan_)
    assert problem in exchange.next().agreed.problem


def test_notes_that_make_no_sense_fail_their_request_alone(client: Client, exchange: Exchange) -> None:
    name = chain(client, "sensible", "begin", "end", "begin")
    exchange.send(hello=notes.Hello(router="r"))
    exchange.send(plan=plan(1, name, revision(client, name), s0="", s1="", s2="a"))
    assert not exchange.next().agreed.problem
    exchange.send(ended=ended(1, "", 1.0, plan=9))
    failed = exchange.next().failed
    assert (failed.run, failed.not_run, failed.step) == (1, True, "")
    assert "plan 9 is not known to node 'a'" in failed.message
    exchange.send(ended=ended(2, "s0", 1.0))
    assert "of step 's0', got: x" in exchange.next().failed.message
    exchange.send(ended=ended(3, "s1", 1.0, name="z"))
    assert "expected the tensors ['y'] of step 's1', got: z" in exchange.next().failed.message
    wrong = ended(4, "s1", 1.0, name="y")
    wrong.tensors[0].datatype = "FP31"
    exchange.send(ended=wrong)
    assert "unknown data-type 'FP31'" in exchange.next().failed.message
    short = ended(5, "s1", 1.0, name="y")
    short.tensors[0].raw = b"abc"
    exchange.send(ended=short)
    assert exchange.next().failed.run == 5
    exchange.send(give_up=notes.GiveUp(run=6))
    exchange.send(ended=ended(6, "s1", 1.0, name="y"))
    exchange.send(ended=ended(7, "s1", 1.0, name="y"))
    assert exchange.next().ended.run.id == 7, "a request that was given up is not begun by a late note"


@pytest.mark.parametrize("first", [b"", b"\xff\xff", notes.Note(give_up=notes.GiveUp(run=1)).SerializeToString()])
def test_who_does_not_say_who_it_is_is_refused(exchange: Exchange, first: bytes) -> None:
    exchange.send_bytes(first)
    with pytest.raises(grpc.RpcError) as refused:
        exchange.next()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_stream_may_ask_for_answers_in_any_order(client: Client) -> None:
    quick, slow = chain(client, "quick", "begin", "end"), chain(client, "slower", "begin", "stuck")
    client.infer(quick, x(0.0))
    with client.stream(unordered=True) as stream:
        stream.send(slow, x(1.0), id="slow")
        for number in range(10):
            stream.send(quick, x(number), id=str(number))
        stream.half_close()
        found = [result.id for result in stream]
    assert sorted(found) == sorted(["slow", *map(str, range(10))])
    assert found[-1] == "slow", "what waits holds up nothing else"
    nameless = ModelInferRequest(model_name=quick, raw_input_contents=[x(1.0)["x"].tobytes()])
    nameless.inputs.add(name="x", datatype="FP32", shape=[1])
    with grpc.insecure_channel(client.address) as channel:
        stream_infer: Any = channel
        call = stream_infer.stream_stream(MODEL_STREAM_INFER)
        (answer,) = call(iter([nameless.SerializeToString()]), metadata=((UNORDERED_HEADER, "true"),), timeout=60)
    told = ModelStreamInferResponse.FromString(answer).error_message
    assert "expected an id in each request of a stream with mesh-unordered" in told


def test_a_pipeline_is_explained_and_drawn_with_what_goes_on(mesh: Mesh, client: Client) -> None:
    name = chain(client, "shown", "begin", "grow", "shrink")
    cut = client.explain_pipeline(name)
    assert [(each.step, each.node, each.why) for each in cut.steps] == [
        ("s0", "a", "the only node that holds 'begin'"),
        ("s1", "a", "the only node that holds 'grow'"),
        ("s2", "b", "the only node that holds 'shrink'"),
    ]
    ways = [(each.tensor, each.origin, each.to) for each in cut.journeys]
    assert ways == [("$x", "", "a"), ("s1.y", "a", "b"), ("s2.y", "b", "")]
    before = {each.name: each.inference_stats.success.count for each in client.model_statistics(name).model_stats}
    for _ in range(5):
        client.infer(name, x(1.0))
    after = {each.name: each.inference_stats.success.count for each in client.model_statistics(name).model_stats}
    assert set(after) == {name, f"{name}.s0", f"{name}.s1", f"{name}.s2"}
    assert all(after[each] - before.get(each, 0) == 5 for each in after), (before, after)
    command = [sys.executable, "-m", "mesh.cli.main"]
    words = {"explain": [name], "pipelines": ["show", name, "--interval-s", "0.2"]}
    said = {}
    for first, rest in words.items():
        done = subprocess.run(
            [*command, first, *rest, "--address", mesh.router.grpc],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        said[first] = done.stdout
    assert "shown, revision 1: over 2 nodes" in said["explain"]
    assert re.search(r"s2 +shrink +b +the only node that holds 'shrink'", said["explain"])
    assert re.search(r"s1\.y +a +b", said["explain"])
    assert re.search(r"└▶ s2 +shrink +x <- s1\.y +b", said["pipelines"])


def test_the_sdks_builder_makes_what_a_file_does(client: Client) -> None:
    pipeline = Pipeline("built")
    start = pipeline.input("x", "FP32 [-1]")
    first = pipeline.step("first", "begin", {"x": start})
    second = pipeline.step("second", "end", {"x": first["y"]}, when="first.y > 2", retries=1, parameters={"by": 2})
    pipeline.output("y", second["y"] | first["y"])
    answer = client.apply_pipeline(pipeline)
    assert [each.message for each in answer.problems] == []
    assert client.infer("built", x(1.0))["y"].tolist() == [2.0]
    assert client.infer("built", x(2.0))["y"].tolist() == [6.0]


def test_steps_have_spans_with_node_queue_compute_and_bytes(tmp_path: Path) -> None:
    etcd = EtcdServer(tmp_path / "etcd")
    etcd.launch_and_wait()
    write(tmp_path / "models")
    flags = ("--registry", etcd.address, "--grpc-port", "0", "--json-ready")
    models = ("--models", str(tmp_path / "models"))
    with receiving() as (receiver, endpoint):
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        nodes = [
            Process("node", "--id", id_, "--label", f"{pool}=yes", *models, *flags, env=env)
            for id_, pool in (("a", "first"), ("b", "second"))
        ]
        router = Process("router", "--no-http", *flags, env=env)
        for process in (router, *nodes):
            process.wait_ready()
        with Client(router.grpc, timeout_s=60) as client:
            until(lambda: len(client.models()) == len(MODELS) + 3, what="the models are known")
            name = chain(client, "traced", "begin", "end")
            client.load("begin")
            client.load("end")
            client.infer(name, x(1.0), metadata=(("traceparent", f"00-{'ab' * 16}-{'cd' * 8}-01"),))
        assert [process.stop() for process in (router, *nodes)] == [0, 0, 0]
        spans = {span.name: (names, span) for names, span in receiver.spans if span.trace_id.hex() == "ab" * 16}
    etcd.kill()
    assert set(spans) == {"inference.GRPCInferenceService/ModelInfer", "step s0", "step s1"}
    _, whole = spans["inference.GRPCInferenceService/ModelInfer"]
    assert attributes(whole)["mesh.model"] == "traced"
    for at, (node, model) in enumerate((("a", "begin"), ("b", "end"))):
        names, span = spans[f"step s{at}"]
        found = attributes(span)
        assert span.parent_span_id == whole.span_id
        assert names["service.instance.id"] == node
        assert (found["mesh.step"], found["mesh.model"]) == (f"s{at}", model)
        assert (found["mesh.input_bytes"], found["mesh.output_bytes"]) == (4, 4)
        assert found["mesh.queue_s"] >= 0
        assert found["mesh.compute_s"] > 0


def test_a_slow_last_step_slows_its_caller_and_nothing_else(client: Client) -> None:
    name, other = chain(client, "slow-end", "begin", "slow"), chain(client, "beside", "begin", "end")
    assert client.infer(name, x(1.0))["y"].tolist() == [4.0]

    def began() -> int:
        (found,) = [each for each in client.model_statistics(name).model_stats if each.name == f"{name}.s0"]
        return int(found.inference_count)

    before = began()
    with client.stream() as stream:
        for number in range(400):
            stream.send(name, x(number), id=str(number))
        stream.half_close()
        for number in range(50):
            result = stream.receive()
            assert result is not None
            assert result.id == str(number)
        assert began() - before <= 50 + 64 + 64, "as many as were answered, are in the graph and wait for their turn"
        assert client.infer(other, x(1.0))["y"].tolist() == [4.0]
    # The stream was left: what is on its way is given up.
    assert client.infer(name, x(1.0))["y"].tolist() == [4.0]
