from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mesh.core.errors import InvalidRequest, LoadFailed
from mesh.core.types import Device, DeviceKind, Dtype, ModelName, ModelVersion, TensorSpec, Version
from mesh.node import capacity
from mesh.node.runtimes.base import Loaded, LoadSpec, Request
from mesh.node.runtimes.onnx import OnnxRuntime
from mesh.node.runtimes.python import PythonRuntime
from mesh.wire.memory import host_memory_bytes

CPU = Device(DeviceKind.CPU, 0, "cpu", 0, 0)
X, Y = TensorSpec("x", Dtype.FP32, (-1, 2)), TensorSpec("y", Dtype.FP32, (-1, 2))


def described(runtime: str, **fields: Any) -> ModelVersion:
    return ModelVersion(ModelName("m"), Version("1"), runtime, "", "", 0, **fields)


def onnx_file(folder: Path, kind: int = TensorProto.FLOAT, operator: str = "Neg") -> None:
    tensors = [helper.make_tensor_value_info(name, kind, ["n", 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "g", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "model.onnx"))


def load_onnx(folder: Path, **fields: Any) -> Loaded:
    return OnnxRuntime().load(LoadSpec(described("onnx", **fields), folder, CPU))


def load_python(folder: Path, code: str, **fields: Any) -> Loaded:
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(textwrap.dedent(code))
    model = described("python", **{"inputs": (X,), "outputs": (Y,), **fields})
    return PythonRuntime().load(LoadSpec(model, folder, CPU))


def test_an_onnx_file_knows_its_signature(tmp_path: Path) -> None:
    onnx_file(tmp_path)
    loaded = load_onnx(tmp_path)
    assert (loaded.inputs, loaded.outputs) == ((X,), (Y,))
    assert loaded.run({"x": np.ones((1, 2), np.float32)}, Request())["y"].tolist() == [[-1.0, -1.0]]


def test_a_declaration_that_the_file_does_not_keep_is_refused(tmp_path: Path) -> None:
    onnx_file(tmp_path)
    with pytest.raises(LoadFailed, match=r"failed to load 'm', model\.yaml has input 'z' FP32; the file has x FP32"):
        load_onnx(tmp_path, inputs=(TensorSpec("z", Dtype.FP32, (-1, 2)),))


def test_a_corrupt_onnx_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"garbage")
    with pytest.raises(LoadFailed, match="failed to load 'm', ONNX Runtime says: ") as caught:
        load_onnx(tmp_path)
    assert "\n" not in caught.value.message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match=r"expected the file model\.onnx in version 1"):
        load_onnx(tmp_path)


def test_onnx_strings_go_in_and_out(tmp_path: Path) -> None:
    onnx_file(tmp_path, TensorProto.STRING, "Identity")
    value = np.array([["é".encode(), b"b"]], dtype=object)
    loaded = load_onnx(tmp_path)
    assert loaded.run(loaded.admit({"x": value}), Request())["y"].tolist() == [["é", "b"]]


def test_bytes_that_are_no_text_are_the_callers_mistake(tmp_path: Path) -> None:
    onnx_file(tmp_path, TensorProto.STRING, "Identity")
    loaded = load_onnx(tmp_path)
    with pytest.raises(InvalidRequest, match=r"expected elements of x in UTF-8, got b'\\xff'"):
        loaded.admit({"x": np.array([[b"fine", b"\xff"]], dtype=object)})


def test_a_python_model_may_answer_lists(tmp_path: Path) -> None:
    code = """
        class Model:
            def infer(self, inputs):
                return {"y": inputs["x"].astype("float64").tolist()}
        """
    answered = load_python(tmp_path, code).run({"x": np.ones((2, 2), np.float32)}, Request())
    assert answered["y"].shape == (2, 2)


def test_two_models_own_modules_do_not_collide(tmp_path: Path) -> None:
    code = """
        VALUE = {value}

        class Model:
            def infer(self, inputs):
                return dict(y=inputs["x"] + VALUE)
        """
    loaded = [load_python(tmp_path / value, code.format(value=value)) for value in ("1", "2")]
    zeros = np.zeros((1, 2), np.float32)
    assert [each.run({"x": zeros}, Request())["y"][0][0] for each in loaded] == [1.0, 2.0]


def test_a_python_model_sees_its_context_and_the_request(tmp_path: Path) -> None:
    loaded = load_python(
        tmp_path,
        """
        class Model:
            def load(self, context):
                self.told = (context.name, context.version, context.device, context.parameters["k"])

            def infer(self, inputs, request):
                assert self.told == ("m", "1", "cpu:0", "v"), self.told
                return {"y": inputs["x"] * request.parameters["times"]}
        """,
        parameters={"k": "v"},
    )
    ran = loaded.run({"x": np.ones((1, 2), np.float32)}, Request("7", {"times": 3}))
    assert ran["y"].tolist() == [[3.0, 3.0]]
    assert not loaded.batches


def test_a_generator_answers_several_times(tmp_path: Path) -> None:
    code = """
        class Model:
            def infer(self, inputs):
                for i in range(3):
                    yield {"y": inputs["x"] + i}
        """
    loaded = load_python(tmp_path, code, decoupled=True)
    steps = loaded.stream({"x": np.zeros((1, 2), np.float32)}, Request())
    assert [step["y"][0][0] for step in steps] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("raise OSError('no disk')", "importing model.py raised OSError: no disk"),
        ("x = (", "importing model.py raised SyntaxError"),
        ("class Other: pass", "must define a class Model with a method infer"),
        (
            "class Model:\n    def infer(self, x): ...\n    def load(self, c): 1 / 0",
            "its load raised ZeroDivisionError",
        ),
    ],
)
def test_a_python_model_that_cannot_be_loaded_is_refused(tmp_path: Path, code: str, text: str) -> None:
    with pytest.raises(LoadFailed, match="failed to load 'm', ") as caught:
        load_python(tmp_path, code)
    assert text in caught.value.message


def test_a_python_model_declares_its_signature(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="declares inputs and outputs"):
        load_python(tmp_path, "", inputs=())


def test_a_model_that_asks_for_a_gpu_is_told_when_there_is_none() -> None:
    cpu_only = [each for each in capacity.accounts(1000) if each.device.kind is DeviceKind.CPU]
    with pytest.raises(LoadFailed, match="it asks for a gpu and this node has none"):
        capacity.choose(described("onnx", device="gpu"), cpu_only, gpu_runs=False)
    assert capacity.choose(described("onnx"), cpu_only, gpu_runs=True).name == "cpu:0"


def test_memory_is_the_smaller_of_cgroup_and_host() -> None:
    assert 0 < host_memory_bytes() <= 2**50
