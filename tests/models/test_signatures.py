"""Every model.yaml says what its model is, and only what the format knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mesh.core.types import Dtype, Generation, State
from tests.models.repositories import DECOUPLED, DEMO, EXAMPLES, FOLDERS, config, python_module, session

FIELDS = {
    "runtime",
    "max_batch_size",
    "max_queue_delay_us",
    "max_queue_size",
    "inputs",
    "outputs",
    "decoupled",
    "device",
    "node_labels",
    "parameters",
    "platform",
    "sequence",
    "generation",
}
ORT_DTYPES = {"tensor(float)": "FP32", "tensor(int64)": "INT64", "tensor(int32)": "INT32", "tensor(int8)": "INT8"}
ONNX = [folder for folder in FOLDERS if (folder / "1" / "model.onnx").exists()]
PYTHON = [folder for folder in FOLDERS if (folder / "1" / "model.py").exists()]


def by_name(folder: Path) -> str:
    return folder.name


def declared(tensors: list[dict[str, Any]]) -> list[tuple[str, str, list[int]]]:
    return [(tensor["name"], tensor["dtype"], tensor["shape"]) for tensor in tensors]


def found(tensors: list[Any]) -> list[tuple[str, str, list[int]]]:
    return [
        (tensor.name, ORT_DTYPES[tensor.type], [axis if isinstance(axis, int) else -1 for axis in tensor.shape])
        for tensor in tensors
    ]


def test_the_examples_repository_holds_exactly_the_eight_models_that_a_client_example_counts() -> None:
    expected = {
        "simple",
        "simple_int8",
        "simple_string",
        "simple_identity",
        "simple_sequence",
        "simple_dyna_sequence",
        "simple_string_dyna_sequence",
        "densenet_onnx",
    }
    assert {path.name for path in EXAMPLES.iterdir()} == expected


@pytest.mark.parametrize("folder", FOLDERS, ids=by_name)
def test_a_model_yaml_has_only_fields_and_values_of_the_format(folder: Path) -> None:
    said = config(folder)
    assert set(said) <= FIELDS
    for tensor in said.get("inputs", []) + said.get("outputs", []):
        assert set(tensor) <= {"name", "dtype", "shape", "optional"}
        assert isinstance(tensor["name"], str)
        assert Dtype(tensor["dtype"])
        assert all(isinstance(axis, int) for axis in tensor["shape"])
        if said["max_batch_size"] > 0:
            assert tensor["shape"][0] == -1


@pytest.mark.parametrize("folder", FOLDERS, ids=by_name)
def test_a_model_has_files_of_its_runtime_and_of_no_other(folder: Path) -> None:
    file = {"onnx": "model.onnx", "python": "model.py"}[config(folder).get("runtime", "onnx")]
    assert [path.name for path in (folder / "1").glob("model.*")] == [file]


@pytest.mark.parametrize("folder", ONNX, ids=by_name)
def test_the_declared_signature_is_the_sessions_own(folder: Path) -> None:
    said, running = config(folder), session(folder)
    if "generation" in said:
        # Its callers see text; what the file takes and gives is between the node and the model.
        told = Generation(**{**said["generation"], "states": [State(**each) for each in said["generation"]["states"]]})
        assert {tensor.name for tensor in running.get_inputs()} == {told.token, *(each.input for each in told.states)}
        assert {tensor.name for tensor in running.get_outputs()} == {
            told.logits,
            *(each.output for each in told.states),
        }
        return
    assert declared(said["inputs"]) == found(running.get_inputs())
    assert declared(said["outputs"]) == found(running.get_outputs())


@pytest.mark.parametrize("folder", PYTHON, ids=by_name)
def test_a_python_model_offers_the_class_that_a_node_makes(folder: Path) -> None:
    assert callable(python_module(folder).Model().infer)


def test_only_repeat_int32_and_the_language_model_answer_several_times() -> None:
    several = [folder for folder in FOLDERS if config(folder).get("decoupled")]
    assert several == [DEMO / "prose", DECOUPLED / "repeat_int32"]


@pytest.mark.parametrize("name", ["iris", "digits", "densenet_onnx"])
def test_there_is_one_label_for_each_class(name: str) -> None:
    folder = next(folder for folder in FOLDERS if folder.name == name)
    labels = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
    classes = config(folder)["outputs"][-1]["shape"][-1]
    assert len(set(labels)) == len(labels) == classes
