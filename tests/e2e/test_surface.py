"""What people and tools see of a running mesh: grpcurl, health, reflection, KServe's and ModelMesh's callers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from mesh.api import messages as m
from mesh.api import service
from mesh.api.gen.grpc.health.v1 import health_pb2 as health
from tests.fixtures import raw
from tests.fixtures.mesh import MODELS, ROOT, Process, mesh_up
from tests.fixtures.tools import need

HEALTH = "/grpc.health.v1.Health/"


@pytest.fixture(scope="module")
def mesh() -> Iterator[Process]:
    with mesh_up(MODELS / "demo", nodes=2, extra=("--server-name", "our-mesh")) as process:
        yield process


@pytest.fixture
def channel(mesh: Process) -> Iterator[grpc.Channel]:
    with raw.channel_to(mesh.grpc) as channel:
        yield channel


def grpcurl(*args: str, stdin: str = "") -> str:
    need("grpcurl")
    done = subprocess.run(
        ["grpcurl", "-plaintext", *args], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readmes_grpcurl_lines_work(mesh: Process) -> None:
    need("grpcurl")
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (block,) = [block for block in blocks if "grpcurl" in block]
    script = block.replace("127.0.0.1:8001", mesh.grpc)
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for said in ("grpc.health.v1.Health", "rpc ModelStreamInfer", '"ready": true', '"status": "SERVING"'):
        assert said in done.stdout
    # One answer of the single call, two of the stream.
    assert done.stdout.count('"int64_contents"') == 3


def test_the_lines_of_the_page_on_pipelines_work(mesh: Process, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "pipelines.md").read_text()
    (file,) = re.findall(r"```yaml\n# (?:\S+)\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "matching.yaml").write_text(file)
    script = "\n".join(re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL))
    found = {**os.environ, "MESH_ADDRESS": mesh.grpc, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-ec", script], cwd=tmp_path, env=found, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "pipeline title-matcher is now revision 1" in done.stdout
    assert "features <- text_features.features" in done.stdout
    assert "title-matching version 1" in done.stdout
    assert "title-matching, revision 1: in one hop on " in done.stdout
    assert "└▶ alike" in done.stdout
    (program,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    before = "import numpy\nword = lambda text: numpy.array([[text]], dtype=object)\n"
    before += "titles = [(word(b'red shoes 42'), word(b'blue hat')), (word(b'blue hat'), word(b'hat blue'))]\n"
    program = before + program.replace("Client()", f"Client({mesh.grpc!r})")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[[") == 2


def test_grpcurl_describes_the_service(mesh: Process) -> None:
    assert "rpc ModelInfer" in grpcurl(mesh.grpc, "describe", "inference.GRPCInferenceService")
    assert "message ModelInferRequest" in grpcurl(mesh.grpc, "describe", "inference.ModelInferRequest")
    assert "rpc ListNodes" in grpcurl(mesh.grpc, "describe", "mesh.v1.MeshControl")


def test_grpcurl_streams_from_stdin(mesh: Process) -> None:
    row = {"name": "x", "datatype": "FP32", "shape": [1, 4], "contents": {"fp32_contents": [6.7, 3.0, 5.2, 2.3]}}
    messages = "".join(json.dumps({"model_name": "iris", "id": str(index), "inputs": [row]}) for index in range(3))
    output = grpcurl("-d", "@", mesh.grpc, "inference.GRPCInferenceService/ModelStreamInfer", stdin=messages)
    assert re.findall(r'"id": "(\d)"', output) == ["0", "1", "2"]


def test_grpcurl_checks_health(mesh: Process) -> None:
    assert json.loads(grpcurl(mesh.grpc, "grpc.health.v1.Health/Check")) == {"status": "SERVING"}
    one = grpcurl("-d", '{"service": "iris"}', mesh.grpc, "grpc.health.v1.Health/Check")
    assert json.loads(one) == {"status": "SERVING"}


def check(channel: grpc.Channel, name: str) -> Any:
    call = service.unary(channel, HEALTH + "Check", health.HealthCheckRequest, health.HealthCheckResponse)
    return call(health.HealthCheckRequest(service=name), timeout=60).status


def test_health_of_an_unknown_service_is_not_found(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        check(channel, "nothing")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_lists_the_server_and_every_model(channel: grpc.Channel) -> None:
    call = service.unary(channel, HEALTH + "List", health.HealthListRequest, health.HealthListResponse)
    statuses = call(health.HealthListRequest(), timeout=60).statuses
    assert {"", "inference.GRPCInferenceService", "iris", "digits"} <= set(statuses)


def test_a_health_watch_hears_of_the_drain() -> None:
    with mesh_up(MODELS / "demo") as process, raw.channel_to(process.grpc) as channel:
        watch: Any = channel.unary_stream(
            HEALTH + "Watch", health.HealthCheckRequest.SerializeToString, health.HealthCheckResponse.FromString
        )(health.HealthCheckRequest(), timeout=120)
        assert next(watch).status == health.HealthCheckResponse.SERVING
        process.send(signal.SIGTERM)
        assert next(watch).status == health.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        assert process.wait() == 0


def test_server_metadata_has_the_name_that_was_given(channel: grpc.Channel) -> None:
    answer = raw.ask(channel, "ServerMetadata", m.ServerMetadataRequest(), m.ServerMetadataResponse)
    assert answer.name == "our-mesh"
    assert "model_repository" in answer.extensions
    assert "system_shared_memory" not in answer.extensions


def test_shared_memory_is_refused_as_a_triton_with_it_off_does(channel: grpc.Channel) -> None:
    from mesh.api.gen.inference import grpc_service_pb2 as pb

    with pytest.raises(grpc.RpcError, match="Client shared memory is disabled") as caught:
        raw.ask(
            channel,
            "SystemSharedMemoryStatus",
            pb.SystemSharedMemoryStatusRequest(),
            pb.SystemSharedMemoryStatusResponse,
        )
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("key", ["mm-model-id", "mm-vmodel-id"])
def test_modelmeshs_metadata_wins_over_the_name_in_the_message(channel: grpc.Channel, key: str) -> None:
    answer = raw.infer(channel, raw.request("nothing"), metadata=((key, "iris"),))
    assert answer.model_name == "iris"


def test_a_kserve_caller_loads_and_unloads_by_field_one(channel: grpc.Channel) -> None:
    loaded = raw.ask(
        channel,
        "RepositoryModelLoad",
        m.RepositoryModelLoadRequest(repository_name="diabetes"),
        m.RepositoryModelLoadResponse,
    )
    assert (loaded.model_name, loaded.isLoaded) == ("diabetes", True)
    unloaded = raw.ask(
        channel,
        "RepositoryModelUnload",
        m.RepositoryModelUnloadRequest(repository_name="diabetes"),
        m.RepositoryModelUnloadResponse,
    )
    assert (unloaded.model_name, unloaded.isUnloaded) == ("diabetes", True)
    ready = raw.ask(channel, "ModelReady", m.ModelReadyRequest(name="diabetes"), m.ModelReadyResponse)
    assert not ready.ready
    with pytest.raises(grpc.RpcError, match="has no available versions") as caught:
        raw.infer(channel, raw.request("diabetes", shape=(1, 10), raw=raw.floats(*[0.0] * 10)))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_cold_models_metadata_and_config_are_known(channel: grpc.Channel) -> None:
    metadata = raw.ask(channel, "ModelMetadata", m.ModelMetadataRequest(name="digits"), m.ModelMetadataResponse)
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [("image", "FP32", [-1, 8, 8])]
    config = raw.ask(channel, "ModelConfig", m.ModelConfigRequest(name="digits"), m.ModelConfigResponse).config
    assert config.max_batch_size > 0
    assert list(config.input[0].dims) == [8, 8]


def test_statistics_count_what_was_inferred_over_the_whole_mesh(channel: grpc.Channel) -> None:
    def count() -> int:
        answer = raw.ask(channel, "ModelStatistics", m.ModelStatisticsRequest(name="iris"), m.ModelStatisticsResponse)
        return sum(each.inference_count for each in answer.model_stats)

    raw.infer(channel, raw.request("iris"))
    before = count()
    for _ in range(5):
        raw.infer(channel, raw.request("iris"))
    assert count() - before == 5


def test_metrics_show_requests_by_model_and_code(mesh: Process, channel: grpc.Channel) -> None:
    raw.infer(channel, raw.request("iris"))
    with urllib.request.urlopen(f"http://{mesh.http}/metrics", timeout=60) as response:
        text = response.read().decode()
    assert re.search(r'mesh_router_requests_total\{[^}]*code="OK"[^}]*model="iris"', text), text[:2000]


def test_http_health_answers(mesh: Process) -> None:
    with urllib.request.urlopen(f"http://{mesh.http}/v2/health/ready", timeout=60) as response:
        assert response.status == 200
