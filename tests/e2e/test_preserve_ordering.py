"""Answers in the order of requests, whichever run ends first: real processes, a model that ends when it is told to."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mesh_client import Client
from tests.fixtures.mesh import Process, mesh_up, until
from tests.fixtures.models import python_model

pytestmark = pytest.mark.timeout(180)

SIGNATURE = "inputs: [{name: x, dtype: FP32, shape: [-1]}]\noutputs: [{name: y, dtype: FP32, shape: [-1]}]\n"
WAITS = """
        from pathlib import Path
        at = int(inputs["x"][0])
        (Path({folder!r}) / f"begun-{{at}}").touch()
        while not (Path({folder!r}) / f"go-{{at}}").exists():
            time.sleep(0.005)
"""
ONE = WAITS + '        return {{"y": inputs["x"]}}\n'
SEVERAL = WAITS + '        for _ in range(2): yield {{"y": inputs["x"]}}\n'


@dataclass
class Told:
    """A mesh whose models wait for files."""

    process: Process
    folder: Path

    def begun(self, at: int) -> None:
        until((self.folder / f"begun-{at}").exists, what=f"request {at} runs")

    def go(self, at: int) -> None:
        (self.folder / f"go-{at}").touch()


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Told]:
    (tmp_path / "told").mkdir()
    folder = tmp_path / "told"
    for name, yaml in (("ordered", "preserve_ordering: true\n"), ("free", "")):
        one, several = (body.format(folder=str(folder)).strip() for body in (ONE, SEVERAL))
        python_model(tmp_path / "models", name, f"{SIGNATURE}instances: 2\n{yaml}", one)
        python_model(tmp_path / "models", f"{name}-several", f"{SIGNATURE}decoupled: true\n{yaml}", several)
    with mesh_up(tmp_path / "models") as process:
        yield Told(process, folder)


def x(at: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {"x": np.array([at], np.float32)}


def test_an_answer_that_is_ready_waits_for_those_before_it(mesh: Told) -> None:
    with Client(mesh.process.grpc, timeout_s=60) as client, ThreadPoolExecutor(2) as pool:
        assert client.model_config("ordered").dynamic_batching.preserve_ordering
        first = pool.submit(client.infer, "ordered", x(1))
        mesh.begun(1)
        second = pool.submit(client.infer, "ordered", x(2))
        mesh.begun(2)
        mesh.go(2)
        mesh.go(3)
        # What came later, of another model, was answered: so would the second have been.
        assert client.infer("free", x(3))["y"].tolist() == [3.0]
        assert not second.done()
        mesh.go(1)
        assert [each.result(60)["y"].tolist() for each in (first, second)] == [[1.0], [2.0]]


@pytest.mark.parametrize(("model", "expected"), [("free-several", "bbaa"), ("ordered-several", "aabb")])
def test_responses_of_a_decoupled_model_follow_those_of_the_request_before(
    mesh: Told, model: str, expected: str
) -> None:
    found: list[str] = []
    with Client(mesh.process.grpc, timeout_s=60) as client, client.stream() as stream:
        stream.send(model, x(1), id="a")
        mesh.begun(1)
        stream.send(model, x(2), id="b")
        mesh.begun(2)
        mesh.go(2)
        responses = iter(stream)
        if expected.startswith("b"):
            found += [next(responses).id for _ in range(2)]
        mesh.go(1)
        stream.half_close()
        found += [each.id for each in responses]
    assert "".join(found) == expected
