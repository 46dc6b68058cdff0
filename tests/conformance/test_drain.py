"""A router that is told to end while calls are in flight: what it began it finishes, the rest it refuses."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from mesh.api import messages as m
from mesh.api import service
from mesh.wire.transport import MODEL_INFER, MODEL_STREAM_INFER
from tests.fixtures import raw
from tests.fixtures.engines import has_wire
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import Process, start_node, start_router, until
from tests.fixtures.repositories import add_gate, add_patient
from tests.fixtures.tools import need

CALLS = 8
LOADERS = 4
REFUSALS = {grpc.StatusCode.UNAVAILABLE} if has_wire() else {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
"""How new calls are refused: as what another router may be asked. grpcio's server drops a call that comes in the very
moment in which it stops."""


@dataclass
class Mesh:
    registry: str
    router: Process
    node: Process
    gate: Path


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    need("etcd")
    repository, gate = tmp_path / "models", tmp_path / "gate"
    add_patient(repository)
    add_gate(repository, gate)
    etcd = EtcdServer(tmp_path / "etcd")
    etcd.launch_and_wait()
    try:
        with start_node(etcd.address, "a", models=repository) as node, start_router(etcd.address) as router:
            node.wait_ready()
            router.wait_ready()
            try:
                yield Mesh(etcd.address, router, node, gate)
            finally:
                (gate / "open").touch()
    finally:
        etcd.kill()


@dataclass
class Loader:
    """Calls iris on a connection of its own until it is refused."""

    address: str
    answered: int = 0
    refused: list[grpc.RpcError] = field(default_factory=list)

    def run(self) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self.address, options=options) as channel:
            while not self.refused:
                try:
                    assert raw.infer(channel, raw.request("iris")).model_name == "iris"
                    self.answered += 1
                except grpc.RpcError as error:
                    self.refused.append(error)


def inferences(node: Process) -> int:
    """Return how many inferences of iris a node answered."""
    with raw.channel_to(node.grpc) as channel:
        request = m.ModelStatisticsRequest(name="iris")
        stats = raw.ask(channel, "ModelStatistics", request, m.ModelStatisticsResponse).model_stats
    return sum(each.inference_count for each in stats)


def test_a_router_told_to_end_under_load_loses_no_call_that_it_began(mesh: Mesh) -> None:
    gate_row: dict[str, Any] = {"raw": raw.floats(7), "shape": (1, 1)}
    loaders = [Loader(mesh.router.grpc) for _ in range(LOADERS)]
    threads = [threading.Thread(target=loader.run) for loader in loaders]
    with ExitStack() as stack:
        channel = stack.enter_context(raw.channel_to(mesh.router.grpc))
        for model in ("gate", "iris"):
            raw.wait_known(channel, model)
            request = m.RepositoryModelLoadRequest(model_name=model)
            raw.ask(channel, "RepositoryModelLoad", request, m.RepositoryModelLoadResponse)
        infer: Any = service.unary(channel, MODEL_INFER, m.ModelInferRequest, m.ModelInferResponse)
        stream = service.stream(channel, MODEL_STREAM_INFER, m.ModelInferRequest, m.ModelStreamInferResponse)
        waiting = [infer.future(raw.request("gate", id=str(index), **gate_row)) for index in range(CALLS)]
        streamed = stream(iter([raw.request("gate", id=f"s{index}", **gate_row) for index in range(CALLS)]))
        until((mesh.gate / "entered").exists, what="a call has come to the model")
        # Calls of a connection begin in order: once this is answered, the router has those before it.
        raw.infer(channel, raw.request("iris"))
        for thread in threads:
            thread.start()
        until(lambda: all(loader.answered >= 20 for loader in loaders), what="the load is on")

        mesh.router.send(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        refused = [(error.code(), error.details()) for loader in loaders for error in loader.refused]
        assert [each for each in refused if each[0] not in REFUSALS] == []
        assert len(refused) == LOADERS
        # From here on the router takes nothing new. What it began waits for the gate.
        assert mesh.router.running
        assert not any(call.done() for call in waiting)
        (mesh.gate / "open").touch()
        assert [call.result(timeout=60).id for call in waiting] == [str(index) for index in range(CALLS)]
        assert [each.infer_response.id for each in streamed] == [f"s{index}" for index in range(CALLS)]
        assert mesh.router.wait() == 0
    # Every inference of the load was answered to its caller: none ran in vain.
    assert inferences(mesh.node) == 1 + sum(loader.answered for loader in loaders)


def test_a_router_cuts_what_does_not_end_in_its_time(mesh: Mesh) -> None:
    requests: queue.SimpleQueue[m.ModelInferRequest] = queue.SimpleQueue()
    with start_router(mesh.registry, "--drain-s", "1") as router, raw.channel_to(router.wait_ready().grpc) as channel:
        stream = service.stream(channel, MODEL_STREAM_INFER, m.ModelInferRequest, m.ModelStreamInferResponse)
        answers = stream(iter(requests.get, None), wait_for_ready=True)
        requests.put(raw.request("iris"))
        assert not next(answers).error_message
        router.send(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert router.wait() == 0
