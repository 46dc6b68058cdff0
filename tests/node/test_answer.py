"""Responses: which outputs, raw or typed, the top classes, and a model that did not keep its word."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import numpy as np
import pytest

from mesh.api.messages import ModelInferRequest
from mesh.core.errors import InvalidRequest, ModelFailed
from mesh.core.types import Dtype, ModelName, ModelVersion, TensorSpec, Version
from mesh.node.answer import encode, wanted_outputs
from mesh.node.runtimes.base import Request, Tensors
from mesh.node.served import Served

OUTPUTS = (TensorSpec("p", Dtype.FP32, (-1, 3)), TensorSpec("n", Dtype.INT64, (-1,)))
LABELS = ("setosa", "versicolor", "virginica")
VALUES: Tensors = {"p": np.array([[0.25, 0.5, 0.125], [0.75, 0.0, 0.25]], np.float32), "n": np.array([1, 0])}


class Fixed:
    """A version whose outputs a test gives to `encode` itself."""

    apart = None
    executor = None
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = OUTPUTS
    parallel = 1
    steps = None
    steady = True
    batches = True

    def admit(self, inputs: Tensors) -> Tensors:
        return inputs

    def run(self, inputs: Tensors, request: Request) -> Tensors:
        return VALUES

    def stream(self, inputs: Tensors, request: Request) -> Iterator[Tensors]:
        yield VALUES

    def close(self) -> None:
        """Nothing is held."""


@asynccontextmanager
async def serving(labels: tuple[str, ...] = ()) -> AsyncIterator[Served]:
    model = ModelVersion(ModelName("m"), Version("1"), "onnx", "", "", 0, max_batch_size=8)
    with ThreadPoolExecutor(1) as executor:
        yield Served(model, Fixed(), executor, bytes_held=0, default_queue_size=1, labels=labels)


def asking(*names: str, classes: int | None = None) -> ModelInferRequest:
    request = ModelInferRequest(id="7")
    for name in names:
        output = request.outputs.add(name=name)
        if classes is not None:
            output.parameters["classification"].int64_param = classes
    return request


async def top(labels: tuple[str, ...], *names: str, classes: int = 2) -> list[bytes]:
    """Return the classification as tritonclient would read it."""
    request = asking(*names, classes=classes)
    request.parameters["mesh_typed_contents"].bool_param = True
    async with serving(labels) as served:
        (output,) = encode(request, served, VALUES, wanted_outputs(request, served)).outputs
    assert output.datatype == "BYTES"
    return list(output.contents.bytes_contents)


async def test_all_outputs_are_answered_raw_when_none_is_named() -> None:
    request = asking()
    async with serving() as served:
        answer = encode(request, served, VALUES, wanted_outputs(request, served))
    assert [(each.name, each.datatype, list(each.shape)) for each in answer.outputs] == [
        ("p", "FP32", [2, 3]),
        ("n", "INT64", [2]),
    ]
    assert list(answer.raw_output_contents) == [VALUES["p"].tobytes(), VALUES["n"].tobytes()]
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "1", "7")


async def test_only_what_is_named_is_answered() -> None:
    request = asking("n")
    async with serving() as served:
        answer = encode(request, served, VALUES, wanted_outputs(request, served))
        assert [each.name for each in answer.outputs] == ["n"]
        with pytest.raises(InvalidRequest, match="unexpected inference output 'z' for model 'm'"):
            wanted_outputs(asking("z"), served)


async def test_the_top_classes_have_their_names() -> None:
    assert await top(LABELS, "p") == [
        b"0.500000:1:versicolor",
        b"0.250000:0:setosa",
        b"0.750000:0:setosa",
        b"0.250000:2:virginica",
    ]


async def test_without_labels_the_top_classes_have_numbers() -> None:
    assert (await top((), "p"))[:2] == [b"0.500000:1", b"0.250000:0"]


async def test_labels_do_not_name_an_output_that_has_another_number_of_classes() -> None:
    assert await top(LABELS, "n", classes=1) == [b"1.000000:0", b"0.000000:0"]


async def test_more_classes_than_there_are_gives_all() -> None:
    assert len(await top(LABELS, "p", classes=99)) == 6


async def test_a_number_of_classes_below_one_is_refused() -> None:
    async with serving() as served:
        with pytest.raises(InvalidRequest, match="must be 1 or more, got 0"):
            wanted_outputs(asking("p", classes=0), served)


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ({"n": VALUES["n"]}, "did not answer output 'p'; it gave n"),
        ({**VALUES, "p": np.zeros((2, 3))}, "answered 'p' as FP64, its signature says FP32"),
        ({**VALUES, "p": np.zeros((2, 3), complex)}, "answered a bad 'p'"),
    ],
)
async def test_a_model_that_breaks_its_signature_is_told(outputs: Tensors, text: str) -> None:
    request = asking()
    async with serving() as served:
        with pytest.raises(ModelFailed, match=text):
            encode(request, served, outputs, wanted_outputs(request, served))
