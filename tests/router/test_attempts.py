"""How often a call is sent, and how many processes it may end, whatever path it takes through the router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mesh.api.messages import InferParameter, ModelInferRequest, ModelStreamInferResponse
from mesh.api.stream import error_message
from mesh.core.errors import Code, MeshError, NotReady, RemoteError, WorkerDied
from mesh.core.pipeline.spec import Pipeline, Ref, Step
from mesh.core.traffic.balance import Balancer
from mesh.core.types import Copy, CopyState, ModelName, ModelVersion, Node, NodeId, Sequencing, Version
from mesh.registry import records
from mesh.registry.config import RegistryConfig
from mesh.registry.embedded import EmbeddedRegistry
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.keys import copy_key, model_key, node_key, pipeline_key
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
    DIED_TRAILER,
    LOAD_TRAILER,
    MODEL_INFER,
    MODEL_STREAM_INFER,
    NOT_RUN_TRAILER,
    Call,
    HotMethods,
    Limits,
)

MOST = 3
"""The router's max_attempts."""
NODES = 6


def version(name: str, **more: Any) -> ModelVersion:
    return ModelVersion(ModelName(name), Version("1"), "python", f"file:///r/{name}/1", "d", 1, **more)


MODELS = (version("m"), version("several", decoupled=True), version("steps", sequence=Sequencing()))
PIPELINE = Pipeline("p", (Step("only", "m", "", {"x": (Ref("", "x"),)}),), {"y": (Ref("only", "y"),)})


class Culprit:
    """A node whose every request ends as `ends` says: "dies" with its process, or with an error."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ends: str | MeshError = "dies"
        self.asked = 0
        self.dead = False
        hot = HotMethods({MODEL_INFER: self._infer}, {MODEL_STREAM_INFER: self._stream})
        self.server = WireServer("127.0.0.1", 0, hot, [], limits=Limits())

    async def _infer(self, call: Call, message: bytes) -> bytes:
        self.asked += 1
        call.trailers.append((LOAD_TRAILER, "1"))
        if isinstance(self.ends, str):
            await self._die()
        else:
            call.trailers.extend([(NOT_RUN_TRAILER, "1")] if self.ends.retry_safe else [])
            call.trailers.extend([(DIED_TRAILER, "1")] if self.ends.died else [])
            raise self.ends
        raise AssertionError(message)

    async def _stream(self, call: Call, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for message in messages:
            request = ModelInferRequest.FromString(message)
            self.asked += 1
            if isinstance(self.ends, str):
                await self._die()
            else:
                code, safe = int(self.ends.code), self.ends.retry_safe
                yield error_message(self.ends, request.id, code=code, not_run=safe)

    async def _die(self) -> None:
        """End as a process does that is killed: no word on any call."""
        self.dead = True
        assert self.server._listener is not None
        self.server._listener.close()
        for endpoint in list(self.server._open.values()):
            endpoint.abort()
        await asyncio.get_running_loop().create_future()

    async def register(self, store: EtcdClient) -> None:
        await store.put(node_key(NodeId(self.name)), records.encode(Node(NodeId(self.name), self.server.address, "i")))
        for model in MODELS:
            copy = Copy(model.name, model.version, CopyState.READY, digest="d")
            await store.put(copy_key(NodeId(self.name), (model.name, model.version)), records.encode(copy))


class Bench:
    """A router over many nodes that all end alike, and a client of it."""

    def __init__(self, nodes: list[Culprit], channels: Channels, client: WireChannel) -> None:
        self.nodes = nodes
        self.channels = channels
        self.client = client

    async def warm(self) -> None:
        """Connect to every node, so that calls go by the wire's own path."""
        for node in self.nodes:
            channel = self.channels.to(node.server.address)
            assert isinstance(channel, WireChannel)
            await channel.links.connection()

    def all_end(self, ends: str | MeshError) -> None:
        for node in self.nodes:
            node.ends = ends

    @property
    def asked(self) -> int:
        return sum(node.asked for node in self.nodes)

    @property
    def dead(self) -> int:
        return sum(node.dead for node in self.nodes)

    async def unary(self, model: str = "m", **parameters: InferParameter) -> MeshError:
        """Return what a single call ends with."""
        request = ModelInferRequest(model_name=model, parameters=parameters)
        with pytest.raises(RemoteError) as caught:
            await self.client.unary(MODEL_INFER, request.SerializeToString(), metadata=(), timeout_s=60)
        return caught.value

    async def streamed(self, model: str = "m", **parameters: InferParameter) -> str:
        """Return the error that a message of a stream is answered with."""
        duplex = self.client.stream(MODEL_STREAM_INFER, metadata=(), timeout_s=60)
        await duplex.send(ModelInferRequest(model_name=model, id="1", parameters=parameters).SerializeToString())
        answer = await duplex.receive()
        assert answer is not None
        await duplex.half_close()
        assert await duplex.receive() is None
        return ModelStreamInferResponse.FromString(answer).error_message


async def until(condition: Callable[[], Any], what: str) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"still not so after ten seconds: {what}")


@pytest.fixture
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    registry = EmbeddedRegistry()
    await registry.start()
    store = EtcdClient(RegistryConfig(endpoints=(registry.address,)))
    nodes = [Culprit(f"n{place}") for place in range(getattr(request, "param", NODES))]
    for node in nodes:
        await node.server.start()
        await node.register(store)
    for model in MODELS:
        await store.put(model_key(model.name, model.version), records.encode(model))
    await store.put(pipeline_key("p"), records.encode(PIPELINE))
    mirror = Mirror(store)
    following = asyncio.create_task(mirror.run())
    await mirror.wait_synced()
    metrics = RouterMetrics()
    channels = Channels(lambda address: WireChannel(address, limits=Limits(), bounds=PASSING))
    cold = Cold(mirror, store, avoided=lambda _: (), max_waiting=2)
    dispatch = Dispatch(
        mirror=mirror,
        balancer=Balancer(),
        channels=channels,
        cold=cold,
        metrics=metrics,
        tracing=OFF,
        cold_wait_s=60,
        max_attempts=MOST,
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
    yield Bench(nodes, channels, client)
    await client.close(0)
    await until(lambda: not router.streams, "no call is left in the router")
    await router.stop(0)
    await dispatch.sessions.close()
    await dispatch.pipelines.close()
    await cold.close()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await channels.close()
    for node in nodes:
        await node.server.stop(0)
    await store.close()
    await registry.stop()


SEQUENCE = {
    "sequence_id": InferParameter(int64_param=7),
    "sequence_start": InferParameter(bool_param=True),
}


@pytest.mark.parametrize("warm", [True, False], ids=["hop", "handed over"])
async def test_a_call_that_processes_die_of_ends_two_at_most(bench: Bench, warm: bool) -> None:
    if warm:
        await bench.warm()
    error = await bench.unary()
    assert (bench.asked, bench.dead) == (2, 2)
    assert isinstance(error, RemoteError)
    assert error.status is Code.UNAVAILABLE


async def test_a_call_that_is_handed_over_takes_its_deaths_along(bench: Bench) -> None:
    """With a connection to two nodes alone the first copy is asked on the wire's own path, the next one not."""
    channel = bench.channels.to(bench.nodes[0].server.address)
    assert isinstance(channel, WireChannel)
    await channel.links.connection()
    for _ in range(3):
        await bench.unary()
    assert (bench.asked, bench.dead) == (6, 6)


@pytest.mark.parametrize("model", ["m", "several", "steps"])
async def test_a_message_of_a_stream_that_processes_die_of_ends_two_at_most(bench: Bench, model: str) -> None:
    await bench.warm()
    parameters = SEQUENCE if model == "steps" else {}
    assert await bench.streamed(model, **parameters)
    assert (bench.asked, bench.dead) == (2, 2)


async def test_a_step_of_a_session_that_processes_die_of_ends_two_at_most(bench: Bench) -> None:
    await bench.warm()
    error = await bench.unary("steps", **SEQUENCE)
    assert (bench.asked, bench.dead) == (2, 2)
    assert isinstance(error, RemoteError)
    assert error.status is Code.ABORTED


async def test_a_request_for_a_pipeline_that_processes_die_of_ends_two_at_most(bench: Bench) -> None:
    await bench.warm()
    await bench.unary("p")
    assert (bench.asked, bench.dead) == (2, 2)


@pytest.mark.parametrize("warm", [True, False], ids=["hop", "handed over"])
async def test_a_call_whose_workers_die_is_sent_to_one_other_copy(bench: Bench, warm: bool) -> None:
    if warm:
        await bench.warm()
    bench.all_end(WorkerDied("its worker ended"))
    error = await bench.unary()
    assert "its worker ended" in error.message
    assert isinstance(error, RemoteError)
    assert not [key for key, _ in error.trailers if key.startswith("mesh-")]
    assert bench.asked == 2


@pytest.mark.parametrize("model", ["m", "several", "steps"])
async def test_a_message_of_a_stream_whose_workers_die_is_sent_to_one_other_copy(bench: Bench, model: str) -> None:
    await bench.warm()
    bench.all_end(WorkerDied("its worker ended"))
    assert await bench.streamed(model, **(SEQUENCE if model == "steps" else {}))
    assert bench.asked == 2


@pytest.mark.parametrize("warm", [True, False], ids=["hop", "handed over"])
async def test_a_call_that_is_refused_is_sent_as_often_as_the_router_is_told(bench: Bench, warm: bool) -> None:
    if warm:
        await bench.warm()
    bench.all_end(NotReady("not now"))
    await bench.unary()
    assert bench.asked == MOST


@pytest.mark.parametrize("bench", [2], indirect=True)
async def test_a_call_refused_by_every_copy_is_sent_so_often_however_few_they_are(bench: Bench) -> None:
    """Two copies: the hop asks both and hands over, and what follows is the third attempt and not the first."""
    await bench.warm()
    bench.all_end(NotReady("not now"))
    await bench.unary()
    assert bench.asked == MOST


async def test_a_message_of_a_stream_that_is_refused_is_sent_as_often_as_the_router_is_told(bench: Bench) -> None:
    await bench.warm()
    bench.all_end(NotReady("not now"))
    await bench.streamed()
    assert bench.asked == MOST
