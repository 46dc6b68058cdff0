"""The router's own path on the wire, from a client to nodes that record, fail, drain and die."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mesh.api.messages import InferParameter, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from mesh.core.errors import Code, ModelFailed, NotReady, RemoteError
from mesh.core.traffic.balance import Balancer
from mesh.core.types import Copy, CopyState, ModelName, ModelVersion, Node, NodeId, Version
from mesh.registry import records
from mesh.registry.config import RegistryConfig
from mesh.registry.embedded import EmbeddedRegistry
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.keys import copy_key, model_key, node_key
from mesh.registry.mirror import Mirror
from mesh.router import hop, hop_stream
from mesh.router.channels import Channels
from mesh.router.cold import Cold
from mesh.router.dispatch import Dispatch
from mesh.router.serve import PASSING
from mesh.router.streams import Streams
from mesh.telemetry.metrics import RouterMetrics
from mesh.telemetry.tracing import OFF
from mesh.wire.client import WireChannel
from mesh.wire.server import WireServer
from mesh.wire.transport import (
    LOAD_TRAILER,
    MODEL_INFER,
    MODEL_STREAM_INFER,
    NOT_RUN_TRAILER,
    Call,
    HotMethods,
    Limits,
    Reply,
)

MODEL = ModelVersion(ModelName("m"), Version("1"), "onnx", "file:///r/m/1", "d", 1)
LARGE = 600_000
"""Bytes of a message of which the router keeps nothing."""


class Recorder:
    """A node on the wire: answers its name, or what the test tells it to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[Call] = []
        self.cancelled = 0
        self.refuse: Exception | None = None
        self.trailers: tuple[tuple[str, str], ...] = ()
        """More of them, on the answer to `trailers_for`."""
        self.trailers_for: Call | None = None
        self.go = asyncio.Event()
        self.go.set()
        self.draining = asyncio.Event()
        hot = HotMethods({MODEL_INFER: self._infer}, {MODEL_STREAM_INFER: self._stream})
        self.server = WireServer("127.0.0.1", 0, hot, [], limits=Limits())

    async def _infer(self, call: Call, message: bytes) -> bytes:
        self.calls.append(call)
        call.trailers += [(LOAD_TRAILER, "1"), ("custom", "kept")]
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if call is self.trailers_for:
            call.trailers += self.trailers
        if self.refuse is not None:
            if isinstance(self.refuse, NotReady):
                call.trailers.append((NOT_RUN_TRAILER, "1"))
            raise self.refuse
        return ModelInferResponse(id=ModelInferRequest.FromString(message).id, model_name=self.name).SerializeToString()

    async def _stream(self, call: Call, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        self.calls.append(call)
        try:
            async for message in messages:
                await self.go.wait()
                request = ModelInferRequest.FromString(message)
                answer = ModelInferResponse(id=request.id, model_name=self.name)
                yield ModelStreamInferResponse(infer_response=answer).SerializeToString()
                if self.draining.is_set():
                    return
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def kill(self) -> None:
        """Go away as a process does that is killed: no word on any call."""
        assert self.server._listener is not None
        self.server._listener.close()
        for endpoint in list(self.server._open.values()):
            endpoint.abort()

    async def register(self, store: EtcdClient) -> None:
        id_, copy = NodeId(self.name), Copy(MODEL.name, MODEL.version, CopyState.READY, digest="d")
        await store.put(node_key(id_), records.encode(Node(id_, self.server.address, "i")))
        await store.put(copy_key(id_, (MODEL.name, MODEL.version)), records.encode(copy))


class Bench:
    """A router over two nodes, and a client of it."""

    def __init__(
        self, router: WireServer, balancer: Balancer, channels: Channels, client: WireChannel, *nodes: Recorder
    ) -> None:
        a, b = nodes
        self.router = router
        self.balancer = balancer
        self.channels = channels
        self.client = client
        self.a = a
        self.b = b

    @property
    def calls(self) -> list[Call]:
        return self.a.calls + self.b.calls

    async def warm(self) -> None:
        """Connect to both nodes, so that calls go by the wire's own path."""
        for node in (self.a, self.b):
            channel = self.channels.to(node.server.address)
            assert isinstance(channel, WireChannel)
            await channel.links.connection()

    def hold(self) -> None:
        self.a.go.clear()
        self.b.go.clear()

    async def infer(
        self, *, size: int = 0, metadata: Any = (), timeout_s: float | None = 60, **parameters: InferParameter
    ) -> Reply:
        message = request("", size, **parameters)
        return await self.client.unary(MODEL_INFER, message, metadata=metadata, timeout_s=timeout_s)

    async def one_asked(self) -> tuple[Recorder, Recorder]:
        """Return the node that the first call is at, and the other."""
        await until(lambda: self.calls, "a node was asked")
        return (self.a, self.b) if self.a.calls else (self.b, self.a)

    def settled(self) -> bool:
        return not any(load.outstanding for load in self.balancer._loads.values())


def request(name: str, size: int = 0, **parameters: InferParameter) -> bytes:
    message = ModelInferRequest(model_name="m", id=name, parameters=parameters)
    if size:
        message.raw_input_contents.append(bytes(size))
    return message.SerializeToString()


def answered_by(reply: Reply) -> str:
    return ModelInferResponse.FromString(bytes(reply.message)).model_name


async def until(condition: Callable[[], Any], what: str) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"still not so after ten seconds: {what}")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    registry = EmbeddedRegistry()
    await registry.start()
    store = EtcdClient(RegistryConfig(endpoints=(registry.address,)))
    nodes = [Recorder("a"), Recorder("b")]
    for node in nodes:
        await node.server.start()
        await node.register(store)
    await store.put(model_key(MODEL.name, MODEL.version), records.encode(MODEL))
    mirror = Mirror(store)
    following = asyncio.create_task(mirror.run())
    await mirror.wait_synced()
    balancer, metrics = Balancer(), RouterMetrics()
    channels = Channels(lambda address: WireChannel(address, limits=Limits(), bounds=PASSING))
    cold = Cold(mirror, store, avoided=lambda _: (), max_waiting=2)
    dispatch = Dispatch(
        mirror=mirror,
        balancer=balancer,
        channels=channels,
        cold=cold,
        metrics=metrics,
        tracing=OFF,
        cold_wait_s=60,
        max_attempts=3,
        session_bytes=1_000_000,
    )
    streams = Streams(dispatch, metrics)
    hot = HotMethods(
        {MODEL_INFER: dispatch.infer},
        {MODEL_STREAM_INFER: streams.stream},
        {MODEL_INFER: hop.unary(dispatch), MODEL_STREAM_INFER: hop_stream.stream(streams)},
    )
    router = WireServer("127.0.0.1", 0, hot, [], limits=Limits(), bounds=PASSING)
    await router.start()
    client = WireChannel(router.address, limits=Limits())
    bench = Bench(router, balancer, channels, client, *nodes)
    await bench.warm()
    yield bench
    await until(lambda: not router.streams, "no call is left in the router")
    await until(bench.settled, "no call is counted at a node")
    await client.close(0)
    await router.stop(0)
    await cold.close()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await channels.close()
    for node in nodes:
        await node.server.stop(0)
    await store.close()
    await registry.stop()


async def test_calls_at_a_node_that_is_killed_are_answered_by_the_other(bench: Bench) -> None:
    bench.hold()
    calls = [asyncio.create_task(bench.infer(size=10_000)) for _ in range(40)]
    await until(lambda: len(bench.calls) == 40, "all calls are at nodes")
    assert bench.a.calls
    bench.b.go.set()
    bench.a.kill()
    assert {answered_by(reply) for reply in await asyncio.gather(*calls)} == {"b"}


async def test_a_message_too_long_to_keep_is_unavailable_and_names_the_node_that_died(bench: Bench) -> None:
    bench.hold()
    call = asyncio.create_task(bench.infer(size=LARGE))
    first, second = await bench.one_asked()
    second.go.set()
    first.kill()
    with pytest.raises(RemoteError, match=f"node '{first.name}'") as caught:
        await call
    assert caught.value.status is Code.UNAVAILABLE
    assert not second.calls


async def test_what_goes_on_to_a_sequence_is_not_sent_twice(bench: Bench) -> None:
    bench.hold()
    call = asyncio.create_task(bench.infer(sequence_id=InferParameter(int64_param=7)))
    first, second = await bench.one_asked()
    second.go.set()
    first.kill()
    with pytest.raises(RemoteError, match=f"node '{first.name}'") as caught:
        await call
    assert caught.value.status is Code.UNAVAILABLE
    assert not second.calls


@pytest.mark.parametrize("size", [0, LARGE])
async def test_what_the_mesh_says_to_itself_stays_in_it(bench: Bench, size: int) -> None:
    metadata = (("custom", "1"), ("raw-bin", b"\0\xff"), ("mesh-model", "forged"), ("mesh-other", "1"))
    reply = await bench.infer(size=size, metadata=metadata)
    (call,) = bench.calls
    assert (call.meta("custom"), call.meta("mesh-model"), call.meta("mesh-version")) == ("1", "m", "1")
    assert ("raw-bin", b"\0\xff") in call.metadata
    assert call.meta("mesh-other") is None
    assert reply.trailers == (("custom", "kept"),)


async def test_a_failure_comes_through_without_the_trailers_of_the_mesh(bench: Bench) -> None:
    bench.a.refuse = bench.b.refuse = ModelFailed("it broke")
    with pytest.raises(RemoteError) as caught:
        await bench.infer()
    assert (caught.value.status, caught.value.message) == (Code.INTERNAL, "it broke")
    assert caught.value.trailers == (("custom", "kept"),)
    assert len(bench.calls) == 1


async def test_what_was_certainly_not_run_is_asked_elsewhere_and_told_without_the_mark(bench: Bench) -> None:
    bench.a.refuse = NotReady("not here")
    assert {answered_by(await bench.infer()) for _ in range(10)} == {"b"}
    bench.b.refuse = NotReady("not here either")
    with pytest.raises(RemoteError) as caught:
        await bench.infer()
    assert not [key for key, _ in caught.value.trailers if key.startswith("mesh-")]


async def test_a_call_that_is_handed_over_gives_its_bytes_back_once(bench: Bench) -> None:
    """It comes in two frames, and the first is given back before it is known where the call goes."""
    bench.hold()
    parts = (
        ModelInferRequest(id="i" * 20_000).SerializeToString(),
        request("", sequence_id=InferParameter(int64_param=7)),
    )
    handed_over = asyncio.create_task(bench.client.unary(MODEL_INFER, b"".join(parts), metadata=(), timeout_s=60))
    await until(lambda: bench.calls, "a node has it")
    # Its bytes are given back with those of the call before it.
    other = ModelInferRequest(model_name="unknown").SerializeToString()
    with pytest.raises(RemoteError):
        await bench.client.unary(MODEL_INFER, other, metadata=(), timeout_s=60)
    (connection,) = bench.router._open
    assert connection.recv_window + connection.unacked <= connection.bounds.connection_window
    bench.a.go.set()
    bench.b.go.set()
    await handed_over
    await until(lambda: not bench.router.streams, "the calls are over")
    assert connection.recv_window + connection.unacked == connection.bounds.connection_window
    assert connection.unacked >= 0


@pytest.mark.parametrize("size", [70_000, 200_000])
async def test_trailers_longer_than_are_taken_cost_their_own_call_alone(bench: Bench, size: int) -> None:
    bench.hold()
    others = [asyncio.create_task(bench.infer(size=LARGE)) for _ in range(8)]
    await until(lambda: len(bench.calls) == 8, "all calls are at nodes")
    kept, bench.a.trailers = bench.calls, (("more", "x" * size),)
    bench.b.trailers = bench.a.trailers
    told = asyncio.create_task(bench.infer())
    await until(lambda: len(bench.calls) == 9, "one more is at a node")
    bench.a.trailers_for = bench.b.trailers_for = next(call for call in bench.calls if call not in kept)
    bench.a.go.set()
    bench.b.go.set()
    with pytest.raises(RemoteError, match="more headers or trailers than are taken") as caught:
        await told
    assert caught.value.status is Code.RESOURCE_EXHAUSTED
    assert {answered_by(reply) for reply in await asyncio.gather(*others)} <= {"a", "b"}
    assert len(bench.calls) == 9


async def test_the_deadline_goes_to_the_node(bench: Bench) -> None:
    await bench.infer(timeout_s=30)
    (call,) = bench.calls
    assert call.deadline_s is not None
    assert call.deadline_s - time.monotonic() < 30


@pytest.mark.parametrize("size", [0, LARGE])
async def test_a_deadline_or_a_cancellation_stops_the_node(bench: Bench, size: int) -> None:
    bench.hold()
    with pytest.raises(RemoteError) as caught:
        await bench.infer(size=size, timeout_s=0.5)
    assert caught.value.status is Code.DEADLINE_EXCEEDED
    call = asyncio.create_task(bench.infer(size=size, timeout_s=None))
    asked = len(bench.calls)
    await until(lambda: len(bench.calls) > asked, "a node was asked")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: bench.a.cancelled + bench.b.cancelled >= 1, "the node's work was cancelled")
    await until(bench.settled, "nothing is counted as outstanding")


async def answer(duplex: Any) -> tuple[str, str]:
    """Return the id of the next answer and the node that gave it."""
    message = await duplex.receive()
    assert message is not None
    told = ModelStreamInferResponse.FromString(message)
    assert not told.error_message
    return told.infer_response.id, told.infer_response.model_name


async def test_answers_of_two_nodes_come_in_the_order_of_the_messages(bench: Bench) -> None:
    duplex = bench.client.stream(MODEL_STREAM_INFER, metadata=(), timeout_s=60)
    bench.hold()
    for number in range(20):
        await duplex.send(request(str(number)))
    await until(lambda: bench.a.calls and bench.b.calls, "both nodes have some")
    bench.b.go.set()
    bench.a.go.set()
    answers = [await answer(duplex) for _ in range(20)]
    assert [name for name, _ in answers] == [str(number) for number in range(20)]
    assert {node for _, node in answers} == {"a", "b"}
    await duplex.half_close()
    assert await duplex.receive() is None


@pytest.mark.parametrize("how", ["killed", "drained"])
async def test_a_stream_outlives_a_node_that_is(bench: Bench, how: str) -> None:
    duplex = bench.client.stream(MODEL_STREAM_INFER, metadata=(), timeout_s=60)
    bench.hold()
    for number in range(20):
        await duplex.send(request(str(number)))
    await until(lambda: bench.a.calls and bench.b.calls, "both nodes have some")
    if how == "killed":
        bench.a.kill()
    else:
        # It answers one message and ends its stream with OK; later ones go to it again, by a stream of their own.
        bench.a.draining.set()
        bench.a.go.set()
    bench.b.go.set()
    for number in range(20, 30):
        await duplex.send(request(str(number)))
    assert [(await answer(duplex))[0] for _ in range(30)] == [str(number) for number in range(30)]
    await duplex.half_close()
    assert await duplex.receive() is None


async def test_a_stream_that_is_cancelled_cancels_its_streams_to_the_nodes(bench: Bench) -> None:
    duplex = bench.client.stream(MODEL_STREAM_INFER, metadata=(), timeout_s=60)
    bench.hold()
    for number in range(8):
        await duplex.send(request(str(number)))
    await until(lambda: bench.a.calls and bench.b.calls, "both nodes have some")
    duplex.cancel()
    await until(lambda: bench.a.cancelled == bench.b.cancelled == 1, "both nodes stopped")
