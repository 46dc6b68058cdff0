"""Records go to bytes and back, across releases too."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.pipeline.spec import Condition, Op, Pipeline, Ref, Step
from mesh.core.types import (
    Copy,
    CopyState,
    Device,
    DeviceKind,
    Dtype,
    ModelName,
    ModelVersion,
    Node,
    NodeId,
    Placement,
    TensorSpec,
    Version,
)
from mesh.registry.records import (
    BadRecord,
    decode_copy,
    decode_model,
    decode_node,
    decode_pipeline,
    decode_placement,
    encode,
)

NODE = Node(
    NodeId("a"),
    "127.0.0.1:9001",
    "i-1",
    1.5,
    {"zone": "x"},
    (Device(DeviceKind.CPU, 0, "cpu", 10, 5),),
    draining=True,
    repositories=("file:///models",),
)
COPY = Copy(ModelName("m"), Version("1"), CopyState.READY, 7, 2.5)
MODEL = ModelVersion(
    ModelName("m"),
    Version("1"),
    "onnx",
    "file:///models/m/1",
    "abc",
    12,
    inputs=(TensorSpec("x", Dtype.FP32, (-1, 4)),),
    max_batch_size=8,
)
PLACEMENT = Placement(ModelName("m"), Version("1"), (NodeId("a"),), requested_s=3.0)

STEP = Step(
    "s",
    "m",
    inputs={"x": (Ref("", "x"), Ref("t", "y"))},
    when=Condition(Ref("t", "z"), Op.AT_LEAST, 0.5),
    each=("x",),
    parameters={"flag": True, "count": 3, "share": 0.5, "text": "a"},
)
PIPELINE = Pipeline("p", (STEP,), {"y": (Ref("s", "y"),)}, MODEL.inputs, revision=3)


def test_every_kind_of_record_comes_back_as_it_was() -> None:
    assert decode_node(encode(NODE)) == NODE
    assert decode_copy(encode(COPY)) == COPY
    assert decode_model(encode(MODEL)) == MODEL
    assert decode_placement(encode(PLACEMENT)) == PLACEMENT
    assert decode_pipeline(encode(PIPELINE)) == PIPELINE


def test_a_record_is_json_that_a_person_can_read() -> None:
    assert json.loads(encode(COPY))["state"] == "ready"
    shown = json.loads(encode(NODE))
    assert shown["labels"] == {"zone": "x"}


def test_fields_of_a_newer_release_are_ignored() -> None:
    value = json.dumps({**json.loads(encode(PLACEMENT)), "colour": "blue"}).encode()
    assert decode_placement(value) == PLACEMENT


def test_fields_that_an_older_release_did_not_write_take_their_defaults() -> None:
    assert decode_node(b'{"id":"a","address":"h:1","incarnation":"i"}') == Node(NodeId("a"), "h:1", "i")


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"\xff\xfe", b'{"id":1}', b'{"id":"a"}', b"null"])
def test_bad_bytes_are_one_error_that_names_what_was_expected(value: bytes) -> None:
    for decode, what in (
        (decode_node, "a node record"),
        (decode_model, "a model version record"),
        (decode_placement, "a placement record"),
    ):
        with pytest.raises(BadRecord, match=what):
            decode(value)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_that_error(value: bytes) -> None:
    for decode in (decode_node, decode_model, decode_placement):
        try:
            decode(value)
        except BadRecord:
            continue
