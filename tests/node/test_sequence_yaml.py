"""The sections of model.yaml about sequences and generations: what they may not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mesh.core.types import ControlKind, Dtype, Sequencing
from mesh.node.repository import Scanner
from mesh.node.sequence_yaml import generating, sequencing


def test_an_empty_section_takes_the_defaults() -> None:
    assert sequencing({}, []) == Sequencing()


def test_controls_that_leave_their_type_out_get_tritons() -> None:
    said = {"controls": [{"name": "S", "kind": "start"}, {"name": "C", "kind": "corrid"}]}
    start, corrid = sequencing(said, []).controls
    assert (start.kind, start.dtype, start.off, start.on) == (ControlKind.START, Dtype.INT32, 0, 1)
    assert corrid.dtype is Dtype.UINT64


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"max_alive": 3}, "it has no max_alive; it has controls,"),
        ({"max_live": 0}, "max_live must be 1 or more, got 0"),
        ({"idle_s": 0}, "idle_s must be more than 0, got 0"),
        ({"minimum_slot_utilization": 1.5}, r"minimum_slot_utilization must be from 0 \(a full batch\) to 1, got 1.5"),
        ({"minimum_slot_utilization": -0.1}, "got -0.1"),
        ({"minimum_slot_utilization": float("nan")}, "got nan"),
        ({"snapshot_messages": -1}, r"snapshot_messages must be 0 \(by size\) or more, got -1"),
        ({"idle_s": "long"}, "Expected `float`, got `str`"),
        ({"controls": [{"name": "S", "kind": "begin"}]}, "Invalid enum value 'begin'"),
        ({"controls": [{"name": "S", "kind": "start", "dtype": "INT64"}]}, "control 'S' is a start: expected dtype"),
        ({"controls": 5}, "Expected `array`, got `int`"),
        ({"states": [{"input": "a", "output": "b", "dtype": "BYTES"}]}, "state 'a' has dtype BYTES"),
        ({"states": [{"input": "a", "output": "b", "shape": [0]}]}, "expected sizes of 1 or more"),
        ({"states": [{"input": "a", "output": "b", "initial_file": "../x"}]}, "must be a file in the version's folder"),
        ({"states": [{"input": "x", "output": "b"}]}, "x is named twice"),
        ({"states": [{"input": "a", "output": "a"}]}, "a is named twice"),
    ],
)
def test_what_cannot_be_meant_is_told(said: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        sequencing(said, ["x"])


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"most": 1}, "it has no most"),
        ({"max_tokens": 0}, "max_tokens must be 1 or more, got 0"),
        ({"vocabulary": "/etc/passwd"}, "must be a file in the version's folder"),
        ({"token": 5}, "Expected `str`, got `int`"),
    ],
)
def test_a_generation_that_cannot_be_meant_is_told(said: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        generating(said)


@pytest.mark.parametrize(
    ("yaml", "why"),
    [
        ("sequence: {max_live: 0}", "sequence: max_live must be 1 or more, got 0"),
        ("preserve_ordering: true\nsequence: {}", "preserve_ordering is for models without a sequence section"),
        ("preserve_order: true\n", "Object contains unknown field `preserve_order`"),
        ("decoupled: true\nsequence: {}", "a decoupled model keeps the state of a generation; leave sequence out"),
        ("generation: {}", "generation is for a decoupled onnx model"),
        ("decoupled: true\ngeneration: {max_tokens: 0}", "generation: max_tokens must be 1 or more, got 0"),
    ],
)
def test_a_folder_with_such_a_section_is_refused_with_the_reason(tmp_path: Path, yaml: str, why: str) -> None:
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    (folder.parent / "model.yaml").write_text(f"runtime: onnx\n{yaml}\n")
    (folder / "model.onnx").write_bytes(b"")
    (reason,) = Scanner([tmp_path]).scan().refused.values()
    assert why in reason
