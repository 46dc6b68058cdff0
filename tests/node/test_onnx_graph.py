"""Which ONNX files do equal work on inputs of equal shapes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from mesh.node.runtimes import onnx_graph
from mesh.node.runtimes.onnx_graph import even, is_even

DEMO = Path(__file__).resolve().parents[2] / "models"


def constant(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=np.int64), name)


def model(
    nodes: Sequence[onnx.NodeProto], weights: Sequence[onnx.TensorProto] = (), functions: Sequence[object] = ()
) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "g", [x], [y], initializer=list(weights))
    made: bytes = helper.make_model(graph, functions=list(functions)).SerializeToString()
    return made


def body(name: str) -> onnx.GraphProto:
    out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Constant", [], [name], value_float=1.0)], name, [], [out])


node = helper.make_node


@pytest.mark.parametrize(
    "data",
    [
        model([node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["y"])], [constant("w", 1)]),
        model([node("Reshape", ["x", "to"], ["y"])], [constant("to", -1, 2)]),
        model([node("Constant", [], ["to"], value_ints=[-1, 2]), node("Reshape", ["x", "to"], ["y"])]),
        model(
            [
                node("Shape", ["x"], ["s"]),
                node("Gather", ["s", "zero"], ["n"]),
                node("Concat", ["n", "one"], ["to"], axis=0),
                node("Expand", ["x", "to"], ["y"]),
            ],
            [constant("zero", 0), constant("one", 1)],
        ),
        model([node("Resize", ["x", "", "", "sizes"], ["y"])], [constant("sizes", 2, 4)]),
        model([node("ReduceSum", ["x"], ["y"])]),
        model([node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml")]),
    ],
)
def test_work_that_follows_from_shapes(data: bytes) -> None:
    assert even(data)


@pytest.mark.parametrize(
    "data",
    [
        model([node("Loop", ["", "c"], ["y"], body=body("b"))], [constant("c", 1)]),
        model([node("If", ["x"], ["y"], then_branch=body("t"), else_branch=body("e"))]),
        model([node("Scan", ["x"], ["y"], body=body("b"), num_scan_inputs=1)]),
        *(
            model([node(op, ["x", "c"], ["y"])], [constant("c", 1)])
            for op in ("NonZero", "Compress", "Unique", "NonMaxSuppression", "RoiAlign", "SequenceAt", "Later")
        ),
        model([node("Relu", ["x"], ["y"], domain="my.ops")]),
        model([node("Range", ["x", "c", "c"], ["y"])], [constant("c", 1)]),
        model([node("Cast", ["x"], ["k"], to=TensorProto.INT64), node("TopK", ["x", "k"], ["y", "i"])]),
        model([node("Cast", ["x"], ["to"], to=TensorProto.INT64), node("Reshape", ["x", "to"], ["y"])]),
        model([node("Expand", ["x", "unheard_of"], ["y"])]),
        model([node("RandomUniform", [], ["to"], shape=[2]), node("Expand", ["x", "to"], ["y"])]),
        model([node("Tile", ["c", "x"], ["y"])], [constant("c", 1), constant("x", 1)]),
        model(
            [node("Relu", ["x"], ["y"])],
            functions=[helper.make_function("", "Relu", ["a"], ["b"], [], [helper.make_opsetid("", 18)])],
        ),
    ],
)
def test_work_that_may_follow_from_values(data: bytes) -> None:
    assert not even(data)


def test_a_loop_deep_in_another_graph_is_found() -> None:
    inner = helper.make_graph([node("Loop", ["", "c"], ["z"], body=body("b"))], "inner", [], [])
    assert not even(model([node("If", ["x"], ["y"], then_branch=inner, else_branch=body("e"))]))


@pytest.mark.parametrize("path", sorted(DEMO.rglob("*.onnx")), ids=lambda path: path.parts[-3])
def test_the_models_of_the_demo_are_even(path: Path) -> None:
    assert is_even(path)


def test_what_cannot_be_read_is_not_even(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "noise").write_bytes(b"\xff" * 100)
    assert [is_even(tmp_path / name) for name in ("empty", "noise", "nothing", ".")] == [False] * 4


def test_a_file_of_endless_fields_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    data = model([node("Relu", ["x"], ["y"])])
    assert even(data)
    monkeypatch.setattr(onnx_graph, "MAX_FIELDS", 1000)
    assert not even(data + b"\x40\x01" * 2000)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    even(data)


REAL = model([node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["y"])], [constant("w", 1)])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(REAL) - 1), st.binary(max_size=3))
def test_a_changed_model_is_read_or_refused_as_protobuf_does(at: int, put: bytes) -> None:
    changed = REAL[:at] + put + REAL[at + len(put) :]
    read = even(changed)
    try:
        parsed = onnx.ModelProto.FromString(changed)
    except Exception:  # noqa: BLE001 - whatever onnx's protobuf says
        return
    ops = {each.op_type for each in parsed.graph.node}
    assert not read or ops <= {name.decode() for name in onnx_graph._OPS}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["Relu", "Add", "Loop", "NonZero", "MatMul"]), st.sampled_from(["", "x.y"])),
        min_size=1,
        max_size=6,
    )
)
def test_one_operator_of_another_kind_is_enough(ops: list[tuple[str, str]]) -> None:
    nodes = [node(op, ["x"], [f"o{at}"], domain=domain) for at, (op, domain) in enumerate(ops)]
    known = all(op in {"Relu", "Add", "MatMul"} and not domain for op, domain in ops)
    assert even(model(nodes)) == known
