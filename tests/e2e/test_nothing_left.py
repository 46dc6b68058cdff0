"""With the collector off, what a request brought is gone once it is answered: from client, router and node.

All of them run in this process, so that what still holds a request's bytes can be found, by a cycle or by a reference.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from mesh.api.messages import ModelInferRequest, ModelStreamInferResponse, control
from mesh.core.errors import RemoteError
from mesh.node import serve as node_serve
from mesh.node.config import NodeConfig
from mesh.node.workers.inside.port import _Region
from mesh.registry.config import RegistryConfig
from mesh.registry.embedded import EmbeddedRegistry
from mesh.router import serve as router_serve
from mesh.router.config import RouterConfig
from mesh.telemetry.tracing import OFF
from mesh.wire.client import WireChannel
from mesh.wire.grpcio_client import GrpcioChannel
from mesh.wire.transport import MODEL_INFER, MODEL_STREAM_INFER, Channel, Engine, Limits
from mesh_client import AsyncClient
from tests.fixtures.models import folder_of, onnx_model, python_model

ROWS: Final = 40_000
"""Of two FP32: 320 KB a request, far above whatever stays of connections and caches."""
LARGE: Final = 100_000
"""Bytes from which an object is taken for a request's."""
CALLS: Final = 4

TENSORS: Final = """\
inputs: [{name: x, dtype: FP32, shape: [-1, 2]}]
outputs: [{name: y, dtype: FP32, shape: [-1, 2]}]
"""


OUTPUT: Final = "outputs: [{name: y, dtype: FP32, shape: [-1, 2]}]\n"
REMEMBERS: Final = """
import numpy

class Model:
    def infer(self, inputs, sequences):
        if (inputs["x"] < 0).any():
            raise ValueError("not this one")
        for each in sequences:
            each.state["steps"] = each.state.get("steps", 0) + 1
        return {"y": numpy.ascontiguousarray(inputs["x"][:, :2])}
"""


def write_models(repository: Path) -> None:
    python_model(repository, "sums", TENSORS, 'return {"y": inputs["x"][:1]}')
    python_model(repository, "copies", TENSORS, 'return {"y": inputs["x"].copy()}')
    python_model(repository, "joins", f"max_batch_size: 100000\n{TENSORS}", 'return {"y": inputs["x"].copy()}')
    python_model(repository, "fails", TENSORS, 'raise ValueError("not this one")')
    python_model(repository, "sleeps", TENSORS, 'time.sleep(0.2); return {"y": inputs["x"][:1]}')
    several = 'yield {"y": inputs["x"][:1]}\n        yield {"y": inputs["x"].copy()}'
    python_model(repository, "several", f"decoupled: true\n{TENSORS}", several)
    breaks = 'yield {"y": inputs["x"][:1]}\n        raise ValueError("in the middle")'
    python_model(repository, "breaks", f"decoupled: true\n{TENSORS}", breaks)
    onnx_model(repository, "doubles", TENSORS, "Add", ["x", "x"])
    sequence = f"inputs: [{{name: x, dtype: FP32, shape: [-1, {2 * ROWS}]}}]\n{OUTPUT}sequence: {{idle_s: 60}}\n"
    folder = folder_of(repository, "remembers", f"runtime: python\nmax_batch_size: 8\n{sequence}")
    (folder / "model.py").write_text(REMEMBERS)


def message(model: str, **fields: Any) -> bytes:
    """Return a request of 320 KB."""
    values = np.ones((ROWS, 2), dtype=np.float32)
    tensor = ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=values.shape)
    fields.setdefault("inputs", [tensor])
    return ModelInferRequest(model_name=model, raw_input_contents=[values.tobytes()], **fields).SerializeToString()


@asynccontextmanager
async def running(serve: Any, config: Any) -> AsyncIterator[str]:
    """Yield the address of a node or router that runs in this loop."""
    stop, address = asyncio.Event(), asyncio.get_running_loop().create_future()
    work = asyncio.create_task(
        serve.run(config, tracing=OFF, stop=stop, on_started=lambda grpc, _: address.set_result(grpc))
    )
    await asyncio.wait([work, address], return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        work.result()
    yield address.result()
    stop.set()
    await work


def pipeline(name: str, *models: str) -> control.Pipeline:
    """Return a chain of models."""
    sources = ["$x", *[f"{at}.y" for at in range(len(models))]]
    steps = [
        control.Step(name=str(at), model=model, inputs={"x": source})
        for at, (model, source) in enumerate(zip(models, sources, strict=False))
    ]
    return control.Pipeline(name=name, steps=steps, outputs={"y": sources[-1]})


PIPELINES: Final = (
    pipeline("chain", "doubles", "doubles"),
    pipeline("steps", "copies", "sums", "doubles"),
    pipeline("stumbles", "copies", "fails"),
    pipeline("apart", "doubles", "elsewhere", "copies"),
    pipeline("apart-fails", "doubles", "elsewhere", "fails"),
)


@asynccontextmanager
async def mesh(folder: Path, engine: Engine) -> AsyncIterator[Channel]:
    """Yield a channel to a router before two nodes, each with models of its own."""
    registry = EmbeddedRegistry()
    await registry.start()
    known = RegistryConfig(endpoints=(registry.address,))
    write_models(folder / "n")
    onnx_model(folder / "m", "elsewhere", TENSORS, "Add", ["x", "x"])
    common: dict[str, Any] = {"registry": known, "wire": engine, "settle_s": 0}
    nodes = [NodeConfig(id=id_, repositories=(folder / id_,), move_s=0, lease_ttl_s=60, **common) for id_ in ("n", "m")]
    router = RouterConfig(grpc_port=0, http_port=None, **common)
    async with (
        running(node_serve, nodes[0]),
        running(node_serve, nodes[1]),
        running(router_serve, router) as address,
        AsyncClient(address, timeout_s=60) as client,
    ):
        for each in PIPELINES:
            await client.apply_pipeline(each)
        channel: Channel = (WireChannel if engine == "mesh" else GrpcioChannel)(address, limits=Limits())
        try:
            yield channel
        finally:
            await channel.close(0)
    await registry.stop()


def held() -> list[object]:
    """Return what holds something large, of all that was made since `gc.freeze`.

    Not what grpcio itself keeps, the last message of a stream until the next one comes, nor the room that a node
    shares with its workers (`Port` says how much), unless something still refers to what was said in it.
    """
    return [each for each in gc.get_objects() if not is_room(each) and any(map(is_large, gc.get_referents(each)))]


def is_room(found: object) -> bool:
    return type(found).__name__.startswith("__pyx") or (isinstance(found, _Region) and found.is_free())


def is_large(found: object) -> bool:
    if isinstance(found, (bytes, bytearray)):
        return len(found) >= LARGE
    return isinstance(found, (np.ndarray, memoryview)) and found.nbytes >= LARGE


async def gone() -> list[object]:
    """Return what still holds something large after things have settled, nothing if all is well."""
    found = held()
    for _ in range(100):
        if not found:
            break
        del found
        await asyncio.sleep(0.01)
        found = held()
    return found


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


async def answer(channel: Channel, model: str, **fields: Any) -> None:
    await channel.unary(MODEL_INFER, message(model, **fields), metadata=(), timeout_s=60)


async def failure(channel: Channel, model: str, **fields: Any) -> None:
    with pytest.raises(RemoteError):
        await answer(channel, model, **fields)


async def late(channel: Channel, model: str) -> None:
    with pytest.raises(RemoteError):
        await channel.unary(MODEL_INFER, message(model), metadata=(), timeout_s=0.1)


async def cancelled(channel: Channel, model: str) -> None:
    call = asyncio.create_task(answer(channel, model))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def together(channel: Channel, model: str) -> None:
    await asyncio.gather(*[answer(channel, model) for _ in range(CALLS)])


async def stream(channel: Channel, *messages: bytes, answers: int) -> list[ModelStreamInferResponse]:
    duplex = channel.stream(MODEL_STREAM_INFER, metadata=(), timeout_s=60)

    async def send() -> None:
        for each in messages:
            await duplex.send(each)
        await duplex.half_close()

    sending = asyncio.create_task(send())
    try:
        found = []
        while (response := await duplex.receive()) is not None:
            found.append(ModelStreamInferResponse.FromString(response))
        await sending
    finally:
        sending.cancel()
        duplex.cancel()
    assert len(found) == answers
    return found


async def streamed(channel: Channel, model: str, answers: int = CALLS) -> None:
    await stream(channel, *[message(model) for _ in range(CALLS)], answers=answers)


async def dropped(channel: Channel, model: str) -> None:
    duplex = channel.stream(MODEL_STREAM_INFER, metadata=(), timeout_s=60)
    await duplex.send(message(model))
    await duplex.send(message(model))
    duplex.cancel()


async def session(channel: Channel, *, sign: int = 1, streaming: bool = False) -> None:
    """Three steps of a sequence, by the way that `streaming` says; with `sign` -1 the middle one fails."""
    number = next(NUMBERS)
    steps = []
    for at in range(3):
        values = np.full((1, 2 * ROWS), sign if at == 1 else 1, dtype=np.float32)
        request = ModelInferRequest(model_name="remembers", raw_input_contents=[values.tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=values.shape)
        request.parameters["sequence_id"].int64_param = number
        request.parameters["sequence_start"].bool_param = at == 0
        request.parameters["sequence_end"].bool_param = at == 2
        steps.append(request.SerializeToString())
    if streaming:
        await stream(channel, *steps, answers=3)
        return
    for at, step in enumerate(steps):
        call = channel.unary(MODEL_INFER, step, metadata=(), timeout_s=60)
        if at == 1 and sign < 0:
            with pytest.raises(RemoteError):
                await call
        else:
            await call


NUMBERS: Final = itertools.count(1)

WAYS: dict[str, Callable[[Channel], Awaitable[Any]]] = {
    "a python model": lambda channel: answer(channel, "sums"),
    "large answers": lambda channel: answer(channel, "copies"),
    "an onnx model": lambda channel: answer(channel, "doubles"),
    "a batch": lambda channel: together(channel, "joins"),
    "several at once": lambda channel: together(channel, "sums"),
    "a model that fails": lambda channel: failure(channel, "fails"),
    "an unknown model": lambda channel: failure(channel, "nothing"),
    "a wrong input": lambda channel: failure(
        channel, "sums", inputs=[ModelInferRequest.InferInputTensor(name="z", datatype="FP32", shape=[ROWS, 2])]
    ),
    "a wrong size": lambda channel: failure(
        channel, "sums", inputs=[ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 2])]
    ),
    "a deadline": lambda channel: late(channel, "sleeps"),
    "a caller that leaves": lambda channel: cancelled(channel, "sleeps"),
    "a stream": lambda channel: streamed(channel, "copies"),
    "a stream of failures": lambda channel: streamed(channel, "fails"),
    "a stream of several responses": lambda channel: streamed(channel, "several", 2 * CALLS),
    "a stream of several that fail": lambda channel: streamed(channel, "breaks", 2 * CALLS),
    "a stream that is dropped": lambda channel: dropped(channel, "sleeps"),
    "a pipeline in one go": lambda channel: answer(channel, "chain"),
    "a pipeline step by step": lambda channel: answer(channel, "steps"),
    "a pipeline that fails": lambda channel: failure(channel, "stumbles"),
    "a pipeline in parts": lambda channel: answer(channel, "apart"),
    "a pipeline in parts that fails": lambda channel: failure(channel, "apart-fails"),
    "pipelines in a stream": lambda channel: streamed(channel, "steps"),
    "failing pipelines in a stream": lambda channel: streamed(channel, "apart-fails"),
    "a session": session,
    "a session with a failure": lambda channel: session(channel, sign=-1),
    "a session in a stream": lambda channel: session(channel, streaming=True),
    "a session with a failure in a stream": lambda channel: session(channel, sign=-1, streaming=True),
}


def ours() -> set[str]:
    """Collect, and return which objects of the mesh that were made since `gc.freeze` nothing but a circle held."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found = {f"{kind.__module__}.{kind.__name__}" for kind in map(type, gc.garbage)}
    gc.garbage.clear()
    return {name for name in found if name.startswith("mesh.")}


@pytest.mark.parametrize("engine", ["mesh", "grpcio"])
async def test_nothing_of_a_request_is_left(tmp_path: Path, engine: Engine, without_collector: None) -> None:
    left: dict[str, str] = {}
    async with mesh(tmp_path, engine) as channel:
        for name, way in WAYS.items():
            for _ in range(CALLS):
                await way(channel)
            found = {type(each).__name__ for each in await gone()}
            if engine == "mesh":
                found |= ours()
            if found:
                left[name] = ", ".join(sorted(found))
    assert not left
