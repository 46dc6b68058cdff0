"""Steps that answer several times: each response flows on through the steps behind it, one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from mesh.api.messages import control
from mesh_client import Client, MeshClientError, StreamError
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import start_node, start_router, until
from tests.fixtures.models import python_model
from tests.fixtures.tools import need

pytestmark = pytest.mark.timeout(120)

FLOAT = "inputs: [{name: x, dtype: FP32, shape: [-1]}]\noutputs: [{name: y, dtype: FP32, shape: [-1]}]\n"
MODELS = {
    "count": (
        FLOAT + "decoupled: true\n",
        "for n in range(int(inputs['x'][0])): yield {'y': numpy.array([n], numpy.float32)}",
    ),
    "slowly": (
        FLOAT + "decoupled: true\n",
        "for n in range(int(inputs['x'][0])): time.sleep(0.1); yield {'y': numpy.array([n], numpy.float32)}",
    ),
    "breaks": (
        FLOAT + "decoupled: true\n",
        "yield {'y': inputs['x']}; yield {'y': inputs['x']}; raise ValueError('no more')",
    ),
    "plus": (FLOAT, "return {'y': inputs['x'] + 1}"),
    "far": (FLOAT + "node_labels: {far: 'yes'}\n", "return {'y': inputs['x'] * 10}"),
}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    need("etcd")
    folder = tmp_path_factory.mktemp("mesh")
    for name, (yaml, body) in MODELS.items():
        python_model(folder / "models", name, yaml, body)
    etcd = EtcdServer(folder / "etcd")
    etcd.launch_and_wait()
    models = folder / "models"
    near, far = (
        start_node(etcd.address, "near", models=models),
        start_node(etcd.address, "far", "--label", "far=yes", models=models),
    )
    processes = (start_router(etcd.address), near, far)
    router, *_ = [process.wait_ready() for process in processes]
    with Client(router.grpc, timeout_s=60) as client:
        until(lambda: len(client.models()) == len(MODELS), what="the models are known")
    yield router.grpc
    for process in processes:
        process.kill()
    etcd.kill()


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, timeout_s=60) as client:
        yield client


def apply(client: Client, name: str, outputs: dict[str, str], *steps: tuple[str, str, str]) -> str:
    """Apply a pipeline of steps (name, model, source)."""
    made = [control.Step(name=called, model=model, inputs={"x": source}) for called, model, source in steps]
    answer = client.apply_pipeline(control.Pipeline(name=name, steps=made, outputs=outputs))
    assert [each.message for each in answer.problems] == []
    return name


def x(value: float) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {"x": np.array([value], np.float32)}


def test_each_response_goes_through_the_steps_behind(client: Client) -> None:
    name = apply(
        client, "flowing", {"y": "c.y", "a": "a.y"}, ("a", "plus", "$x"), ("b", "count", "a.y"), ("c", "far", "b.y")
    )
    with client.stream() as stream:
        stream.send(name, x(49.0), id="one")
        stream.half_close()
        found = [(result.id, float(result["y"][0]), float(result["a"][0])) for result in stream]
    assert found == [("one", number * 10.0, 50.0) for number in range(50)]


def test_responses_come_one_by_one_as_they_are_made(client: Client) -> None:
    name = apply(client, "one-by-one", {"y": "b.y"}, ("a", "slowly", "$x"), ("b", "far", "a.y"))
    with client.stream() as stream:
        stream.send(name, x(5.0))
        stream.half_close()
        came_s = [time.monotonic() for _ in stream]
    assert len(came_s) == 5
    assert came_s[-1] - came_s[0] > 0.2, "the first was there long before the last"
    with client.stream() as stream:
        stream.send(name, x(50.0))
        assert float(next(stream_iter(stream))["y"][0]) == 0.0, "nothing waits for the response behind it"


def test_several_behind_several(client: Client) -> None:
    name = apply(
        client, "nested", {"y": "c.y", "of": "a.y"}, ("a", "count", "$x"), ("b", "count", "a.y"), ("c", "far", "b.y")
    )
    with client.stream() as stream:
        stream.send(name, x(4.0))
        stream.half_close()
        found = [(float(result["of"][0]), float(result["y"][0])) for result in stream]
    assert found == [(of, number * 10.0) for of in range(4) for number in range(of)]


def test_a_pipeline_with_several_responses_is_a_step_itself(client: Client) -> None:
    apply(client, "inner", {"y": "b.y"}, ("a", "count", "$x"), ("b", "plus", "a.y"))
    name = apply(client, "outer", {"y": "b.y"}, ("a", "inner", "$x"), ("b", "far", "a.y"))
    with client.stream() as stream:
        stream.send(name, x(3.0))
        stream.half_close()
        assert [float(result["y"][0]) for result in stream] == [10.0, 20.0, 30.0]


def test_none_at_all(client: Client) -> None:
    name = apply(client, "empty", {"y": "b.y"}, ("a", "count", "$x"), ("b", "far", "a.y"))
    with client.stream() as stream:
        stream.send(name, x(0.0), parameters={"triton_enable_empty_final_response": True})
        stream.half_close()
        (result,) = list(stream)
        assert list(result) == []


def test_what_breaks_in_the_middle_is_told_behind_what_came(client: Client) -> None:
    name = apply(client, "breaking", {"y": "b.y"}, ("a", "breaks", "$x"), ("b", "far", "a.y"))
    with client.stream() as stream:
        stream.send(name, x(1.0), id="r")
        stream.half_close()
        assert [float(next(stream_iter(stream))["y"][0]) for _ in range(2)] == [10.0, 10.0]
        with pytest.raises(
            StreamError, match=r"step 'a' of pipeline 'breaking': model 'breaks' raised ValueError: no more"
        ):
            stream.receive()
        assert stream.receive() is None


def test_it_is_for_streams_alone(client: Client) -> None:
    name = apply(client, "streams-only", {"y": "b.y"}, ("a", "count", "$x"), ("b", "plus", "a.y"))
    with pytest.raises(MeshClientError, match="doesn't support models with decoupled transaction policy"):
        client.infer(name, x(1.0))


def test_a_caller_who_leaves_stops_the_steps(client: Client) -> None:
    name = apply(client, "left", {"y": "b.y"}, ("a", "slowly", "$x"), ("b", "far", "a.y"))

    def count() -> int:
        (found,) = client.model_statistics("far").model_stats
        return int(found.inference_count)

    with client.stream() as stream:
        stream.send(name, x(50.0))
        assert float(next(stream_iter(stream))["y"][0]) == 0.0
    before = count()
    with client.stream() as stream:
        stream.send(name, x(5.0))
        stream.half_close()
        assert len(list(stream)) == 5
    assert count() - before <= 7, "the stream that was left went no further than what was on its way"


def stream_iter(stream: object) -> Iterator[dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]]:
    return iter(stream)  # type: ignore[call-overload,no-any-return] # a stream of results
