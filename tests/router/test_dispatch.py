"""The router's parts on an embedded registry, with real grpcio peers that speak the node's protocol."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mesh.api.messages import InferParameter, ModelInferRequest
from mesh.core.errors import Code, DeadlineExceeded, ModelFailed, NotReady, RemoteError
from mesh.core.traffic.balance import Balancer
from mesh.core.types import Copy, CopyState, ModelName, ModelVersion, Node, NodeId, Version
from mesh.registry import records
from mesh.registry.config import RegistryConfig
from mesh.registry.embedded import EmbeddedRegistry
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.keys import copy_key, model_key, node_key
from mesh.registry.mirror import Mirror
from mesh.router.channels import Channels
from mesh.router.cold import Cold
from mesh.router.dispatch import Dispatch
from mesh.telemetry.metrics import RouterMetrics
from mesh.telemetry.tracing import OFF
from mesh.wire.grpcio_client import GrpcioChannel
from mesh.wire.grpcio_server import GrpcioServer
from mesh.wire.transport import LOAD_TRAILER, MODEL_INFER, NOT_RUN_TRAILER, Call, HotMethods, Limits

MODEL = ModelVersion(ModelName("m"), Version("1"), "onnx", "file:///r/m/1", "d", 1)


class PeerNode:
    """A gRPC server that answers as a node does: its own name, or what the test tells it to."""

    def __init__(self, name: str, arrivals: asyncio.Queue[str]) -> None:
        self.name = name
        self._arrivals = arrivals
        self.calls: list[Call] = []
        self.refuse: Exception | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self.cancelled = asyncio.Event()
        hot = HotMethods({MODEL_INFER: self._infer}, {})
        self.server = GrpcioServer("127.0.0.1", 0, hot, [], limits=Limits())

    async def _infer(self, call: Call, message: bytes) -> bytes:
        self.calls.append(call)
        self._arrivals.put_nowait(self.name)
        call.trailers.append((LOAD_TRAILER, "1"))
        try:
            await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.refuse is not None:
            if isinstance(self.refuse, NotReady):
                call.trailers.append((NOT_RUN_TRAILER, "1"))
            raise self.refuse
        return self.name.encode()

    async def register(self, store: EtcdClient) -> None:
        id_, copy = NodeId(self.name), Copy(MODEL.name, MODEL.version, CopyState.READY, digest="d")
        await store.put(node_key(id_), records.encode(Node(id_, self.server.address, "i")))
        await store.put(copy_key(id_, (MODEL.name, MODEL.version)), records.encode(copy))


class Bench:
    """A dispatch over two peers."""

    def __init__(
        self, arrivals: asyncio.Queue[str], dispatch: Dispatch, balancer: Balancer, a: PeerNode, b: PeerNode
    ) -> None:
        self._arrivals = arrivals
        self.dispatch = dispatch
        self.balancer = balancer
        self.a = a
        self.b = b

    async def arrived(self, count: int = 1) -> list[str]:
        """Return the nodes that the next `count` calls arrived at."""
        return [await self._arrivals.get() for _ in range(count)]

    async def infer(self, *, timeout_s: float | None = 60, metadata: Any = (), **parameters: InferParameter) -> str:
        call = Call(MODEL_INFER, metadata, None if timeout_s is None else time.monotonic() + timeout_s, "test")
        request = ModelInferRequest(model_name="m", parameters=parameters)
        return (await self.dispatch.infer(call, request.SerializeToString())).decode()

    @property
    def calls(self) -> int:
        return len(self.a.calls) + len(self.b.calls)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    registry = EmbeddedRegistry()
    await registry.start()
    store = EtcdClient(RegistryConfig(endpoints=(registry.address,)))
    arrivals: asyncio.Queue[str] = asyncio.Queue()
    peers = [PeerNode("a", arrivals), PeerNode("b", arrivals)]
    for peer in peers:
        await peer.server.start()
        await peer.register(store)
    await store.put(model_key(MODEL.name, MODEL.version), records.encode(MODEL))
    mirror = Mirror(store)
    following = asyncio.create_task(mirror.run())
    await mirror.wait_synced()
    balancer = Balancer()
    channels = Channels(lambda address: GrpcioChannel(address, limits=Limits()))
    cold = Cold(mirror, store, avoided=lambda _: (), max_waiting=2)
    dispatch = Dispatch(
        mirror=mirror,
        balancer=balancer,
        channels=channels,
        cold=cold,
        metrics=RouterMetrics(),
        tracing=OFF,
        cold_wait_s=60,
        max_attempts=3,
        session_bytes=1_000_000,
    )
    yield Bench(arrivals, dispatch, balancer, *peers)
    await cold.close()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await channels.close()
    for peer in peers:
        await peer.server.stop(0)
    await store.close()
    await registry.stop()


async def test_load_spreads_to_the_copy_with_less_outstanding(bench: Bench) -> None:
    bench.a.hold.clear()
    bench.b.hold.clear()
    calls = [asyncio.create_task(bench.infer()) for _ in range(20)]
    assert sorted(await bench.arrived(20)) == ["a"] * 10 + ["b"] * 10
    bench.a.hold.set()
    bench.b.hold.set()
    assert sorted(await asyncio.gather(*calls)) == ["a"] * 10 + ["b"] * 10
    assert repr(bench.balancer) == "<Balancer a=0 b=0 suspects=[]>"


async def test_a_lost_connection_is_retried_on_the_other_copy(bench: Bench) -> None:
    await bench.a.server.stop(0)
    assert [await bench.infer() for _ in range(6)] == ["b"] * 6


async def test_a_request_that_was_cut_is_sent_again_but_not_in_a_sequence(bench: Bench) -> None:
    bench.a.hold.clear()
    bench.b.hold.clear()
    plain = asyncio.create_task(bench.infer())
    first, second = (bench.a, bench.b) if await bench.arrived() == ["a"] else (bench.b, bench.a)
    second.hold.set()
    await first.server.stop(0)
    assert await plain == second.name
    await bench.arrived()

    second.hold.clear()
    sequence = asyncio.create_task(bench.infer(sequence_id=InferParameter(int64_param=7)))
    await bench.arrived()
    await second.server.stop(0)
    with pytest.raises(RemoteError, match=f"node '{second.name}' went away"):
        await sequence


async def test_what_certainly_did_not_run_is_asked_elsewhere(bench: Bench) -> None:
    bench.a.refuse = NotReady("not here")
    assert {await bench.infer() for _ in range(10)} == {"b"}


async def test_a_models_own_failure_is_not_repeated_and_keeps_its_text(bench: Bench) -> None:
    bench.a.refuse = bench.b.refuse = ModelFailed("it broke")
    with pytest.raises(RemoteError, match="it broke") as caught:
        await bench.infer()
    assert caught.value.status is Code.INTERNAL
    assert bench.calls == 1


async def test_the_callers_deadline_goes_to_the_node(bench: Bench) -> None:
    await bench.infer(timeout_s=30)
    (call,) = bench.a.calls + bench.b.calls
    assert call.deadline_s is not None
    assert call.deadline_s - time.monotonic() < 31


async def test_a_deadline_that_passed_is_told_without_asking_a_node(bench: Bench) -> None:
    with pytest.raises(DeadlineExceeded):
        await bench.infer(timeout_s=0)
    assert bench.calls == 0


async def test_metadata_between_caller_and_router_stays_there(bench: Bench) -> None:
    await bench.infer(metadata=(("custom", "1"), ("raw-bin", b"\0"), ("mesh-model", "forged"), ("mm-model-id", "m")))
    (call,) = bench.a.calls + bench.b.calls
    assert call.meta("custom") == "1"
    assert ("raw-bin", b"\0") in call.metadata
    assert call.meta("mesh-model") == "m"
    assert call.meta("mm-model-id") is None


async def test_cancelled_while_the_node_answers_cancels_the_node(bench: Bench) -> None:
    bench.a.hold.clear()
    bench.b.hold.clear()
    call = asyncio.create_task(bench.infer())
    await bench.arrived()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await (bench.a if bench.a.calls else bench.b).cancelled.wait()
    assert repr(bench.balancer).startswith("<Balancer ")
    assert "=1" not in repr(bench.balancer)
