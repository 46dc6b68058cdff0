"""What models can do wrong, and well, on a real node behind a real router."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import grpc
import onnx
import pytest
from onnx import TensorProto, helper

from mesh.api import service
from mesh.api.messages import ModelInferRequest, ModelInferResponse
from mesh.wire.transport import MODEL_INFER
from mesh_client import Client
from tests.fixtures import raw
from tests.fixtures.mesh import MODELS, Process, mesh_up, until

GATED = """\
import pathlib
import time

HERE = pathlib.Path(__file__).parent


class Model:
    running = False

    def infer(self, inputs):
        self.running = True
        (HERE / "entered").touch()
        until_s = time.monotonic() + 100
        while not (HERE / "go").exists() and time.monotonic() < until_s:
            time.sleep(0.01)
        self.running = False
        return {"y": inputs["x"]}

    def close(self):
        (HERE / "closed").write_text("under a run" if self.running else "idle")
"""


def write_onnx(folder: Path, kind: int, shape: list[str | int], *, yaml: str) -> None:
    version = folder / "1"
    version.mkdir(parents=True)
    tensors = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(version / "model.onnx"))
    (folder / "model.yaml").write_text(yaml)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_onnx(root / "fixed", TensorProto.FLOAT, [1, 4], yaml="max_batch_size: 8")
    write_onnx(root / "text", TensorProto.STRING, ["n", 1], yaml="max_batch_size: 8\nmax_queue_delay_us: 200000")
    gated = root / "gated" / "1"
    gated.mkdir(parents=True)
    (gated / "model.py").write_text(GATED)
    (gated.parent / "model.yaml").write_text(
        textwrap.dedent("""\
            inputs: [{name: x, dtype: FP32, shape: [-1, 4]}]
            outputs: [{name: y, dtype: FP32, shape: [-1, 4]}]
            """)
    )
    return root


@pytest.fixture(scope="module")
def mesh(repository: Path) -> Iterator[Process]:
    with mesh_up(MODELS / "demo", repository) as process:
        yield process


@pytest.fixture
def channel(mesh: Process) -> Iterator[grpc.Channel]:
    with raw.channel_to(mesh.grpc) as channel:
        yield channel


def text(value: bytes) -> ModelInferRequest:
    contents = len(value).to_bytes(4, "little") + value
    return raw.request("text", contents, datatype="BYTES", shape=(1, 1))


def test_a_file_whose_batch_axis_is_fixed_is_not_loaded_as_one_that_batches(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError, match=r"failed to load 'fixed', it has max_batch_size 8") as caught:
        raw.infer(channel, raw.request("fixed"))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "input 'x' must begin with an axis of any size; it is [1, 4]" in (caught.value.details() or "")


def test_bytes_that_are_no_text_fail_their_own_request_and_not_those_joined_with_it(channel: grpc.Channel) -> None:
    assert raw.infer(channel, text(b"loaded")).raw_output_contents[0][4:] == b"loaded"
    ask = service.unary(channel, MODEL_INFER, ModelInferRequest, ModelInferResponse)
    # Sent together: the model waits 200 ms for company.
    calls = [ask.future(text(value), timeout=60) for value in (b"one", b"\xff", b"two")]  # type: ignore[attr-defined] # grpc's callable
    assert [calls[index].result().raw_output_contents[0][4:] for index in (0, 2)] == [b"one", b"two"]
    with pytest.raises(grpc.RpcError, match="in UTF-8") as caught:
        calls[1].result()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_demo_models_top_class_has_its_name(channel: grpc.Channel) -> None:
    request = raw.request("iris")
    request.outputs.add(name="probabilities").parameters["classification"].int64_param = 1
    answer = raw.infer(channel, request)
    (best,) = answer.raw_output_contents
    assert best[4:].split(b":")[1:] == [b"0", b"setosa"]


def test_a_model_is_closed_after_the_run_that_its_cancelled_caller_left(
    mesh: Process, channel: grpc.Channel, repository: Path
) -> None:
    folder = repository / "gated" / "1"
    ask = service.unary(channel, MODEL_INFER, ModelInferRequest, ModelInferResponse)
    call = ask.future(raw.request("gated"), timeout=100)  # type: ignore[attr-defined] # grpc's callable
    until((folder / "entered").exists, what="the model runs")
    call.cancel()
    with Client(mesh.grpc, timeout_s=60) as client:
        client.unload("gated")

        def state() -> set[str]:
            return {copy.state for node in client.nodes() for copy in node.copies if copy.model == "gated"}

        until(lambda: state() == {"draining"}, what="the copy is being unloaded")
        assert not (folder / "closed").exists()
        (folder / "go").touch()
        until(lambda: state() == set(), what="the copy is gone")
    assert (folder / "closed").read_text() == "idle"
