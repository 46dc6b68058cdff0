"""Bad input through a real router and node: each has its code and a sentence that says what to do."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from mesh.api.messages import InferTensorContents, ModelInferRequest, ModelMetadataRequest, ModelMetadataResponse
from tests.fixtures import raw, scrape
from tests.fixtures.mesh import MODELS, Process, mesh_up, start_router

CAP = 1_000_000


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that are broken in their own ways."""
    folder = tmp_path_factory.mktemp("broken")
    corrupt = folder / "corrupt" / "1"
    corrupt.mkdir(parents=True)
    (corrupt / "model.onnx").write_bytes(b"this is no ONNX file")
    raises = folder / "raises" / "1"
    raises.mkdir(parents=True)
    (folder / "raises" / "model.yaml").write_text(
        textwrap.dedent("""\
            runtime: python
            inputs: [{name: x, dtype: FP32, shape: [-1, 4]}]
            outputs: [{name: y, dtype: FP32, shape: [-1, 4]}]
            """)
    )
    (raises / "model.py").write_text(
        textwrap.dedent("""\
            class Model:
                def infer(self, inputs):
                    raise ValueError("this model does not like its input")
            """)
    )
    return folder


@pytest.fixture(scope="module")
def mesh(repository: Path) -> Iterator[Process]:
    with mesh_up(MODELS / "demo", repository) as process:
        yield process


@pytest.fixture
def channel(mesh: Process) -> Iterator[grpc.Channel]:
    with raw.channel_to(mesh.grpc) as channel:
        yield channel


BAD = {
    "an unknown model": (
        raw.request("nothing"),
        grpc.StatusCode.NOT_FOUND,
        "Request for unknown model: 'nothing' is not found",
    ),
    "an unknown version": (
        raw.request("iris", model_version="99"),
        grpc.StatusCode.NOT_FOUND,
        "version 99 is not found",
    ),
    "a version that is no number": (
        raw.request("iris", model_version="latest"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "failed to get model version from specified version string 'latest'",
    ),
    "a wrong dtype": (
        raw.request("iris", datatype="FP64", raw=b"\0" * 32),
        grpc.StatusCode.INVALID_ARGUMENT,
        "inference input 'x' data-type is 'FP64', but model 'iris' expects 'FP32'",
    ),
    "a wrong shape": (
        raw.request("iris", shape=(1, 5), raw=raw.floats(1, 2, 3, 4, 5)),
        grpc.StatusCode.INVALID_ARGUMENT,
        "unexpected shape for input 'x' for model 'iris'. Expected [-1,4], got [1,5]",
    ),
    "a wrong byte length": (
        raw.request("iris", raw=b"\0" * 20),
        grpc.StatusCode.INVALID_ARGUMENT,
        "input byte size mismatch for input 'x' for model 'iris'. Expected 16, got 20",
    ),
    "a missing input": (
        ModelInferRequest(model_name="iris"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "expected 1 inputs but got 0 inputs for model 'iris'",
    ),
    "an unknown input": (
        raw.request("iris", name="z"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "'z'",
    ),
    "an unknown output": (
        raw.request("iris", outputs=[ModelInferRequest.InferRequestedOutputTensor(name="nope")]),
        grpc.StatusCode.INVALID_ARGUMENT,
        "unexpected inference output 'nope' for model 'iris'",
    ),
    "a corrupt model file": (raw.request("corrupt"), grpc.StatusCode.INTERNAL, "failed to load 'corrupt'"),
    "a Python model that raises": (
        raw.request("raises"),
        grpc.StatusCode.INTERNAL,
        "this model does not like its input",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_its_code_and_a_sentence(channel: grpc.Channel, case: str) -> None:
    message, code, text = BAD[case]
    with pytest.raises(grpc.RpcError) as caught:
        raw.infer(channel, message)
    assert caught.value.code() is code, caught.value.details()
    assert text in (caught.value.details() or "")


@pytest.mark.parametrize("name", ["n" * 70_000, "名" * 30_000], ids=["ascii", "percent-encoded"])
def test_a_very_long_name_costs_its_own_call_alone(mesh: Process, channel: grpc.Channel, name: str) -> None:
    """The node quotes it; the answer is cut, and neither the connection nor another node suffers."""
    assert raw.infer(channel, raw.request("iris")).model_name == "iris"
    failed = scrape.value(mesh, "mesh_router_attempts_failed_total", reason="UNAVAILABLE")
    with pytest.raises(grpc.RpcError) as caught:
        raw.infer(channel, raw.request("iris", name=name))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = caught.value.details() or ""
    assert "characters cut] ..." in details
    assert details.endswith("for model 'iris', which takes x")
    [answer] = raw.stream(channel, [raw.request("iris", name=name)])
    assert "characters cut] ..." in answer.error_message
    assert len(answer.error_message) <= 4096
    with pytest.raises(grpc.RpcError) as caught:
        raw.ask(channel, "ModelMetadata", ModelMetadataRequest(name=name), ModelMetadataResponse)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "characters cut] ..." in (caught.value.details() or "")
    assert failed == scrape.value(mesh, "mesh_router_attempts_failed_total", reason="UNAVAILABLE")


def test_contents_and_raw_together_are_refused(channel: grpc.Channel) -> None:
    message = raw.request("iris")
    message.inputs[0].contents.CopyFrom(InferTensorContents(fp32_contents=[1, 2, 3, 4]))
    with pytest.raises(grpc.RpcError, match="contents field must not be specified when using raw_input_contents"):
        raw.infer(channel, message)


@pytest.mark.parametrize("garbage", [b"\xff" * 50, b"\x0a\xff\xff\xff\xff\x0f", b"not protobuf at all"])
def test_garbage_bytes_are_refused(channel: grpc.Channel, garbage: bytes) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw.infer_bytes(channel, garbage)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "cannot parse ModelInferRequest" in (caught.value.details() or "")


def test_an_oversized_message_is_refused(mesh: Process) -> None:
    rows = CAP // 16 + 1
    with (
        start_router(mesh.ready["registry"], "--max-message-bytes", str(CAP)) as router,
        raw.channel_to(router.wait_ready().grpc) as channel,
    ):
        with pytest.raises(grpc.RpcError) as caught:
            raw.infer(channel, raw.request("iris", raw=b"\0" * 16 * rows, shape=(rows, 4)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert raw.infer(channel, raw.request("iris")).model_name == "iris"


def test_an_expired_deadline_is_told(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw.infer(channel, raw.request("iris"), timeout_s=0.000_001)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_good_request_is_answered_after_all_that(channel: grpc.Channel) -> None:
    answer = raw.infer(channel, raw.request("iris", id="7"))
    assert (answer.model_name, answer.model_version, answer.id) == ("iris", "1", "7")
    assert [output.name for output in answer.outputs] == ["label", "probabilities"]
    assert len(answer.raw_output_contents) == 2


def test_a_bad_message_in_a_stream_is_told_and_the_stream_goes_on(channel: grpc.Channel) -> None:
    answers = raw.stream(
        channel, [raw.request("iris", id="1"), raw.request("nothing", id="2"), raw.request("iris", id="3")]
    )
    assert [answer.infer_response.id for answer in answers] == ["1", "2", "3"]
    assert [bool(answer.error_message) for answer in answers] == [False, True, False]
    assert "[request id: 2] Request for unknown model: 'nothing' is not found" in answers[1].error_message
    assert answers[0].infer_response.parameters["triton_final_response"].bool_param


def test_a_stream_that_asks_for_a_status_gets_one(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw.stream(channel, [raw.request("nothing")], metadata=(("triton_grpc_error", "true"),))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
