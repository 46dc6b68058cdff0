"""The `sequence` and `generation` sections of model.yaml: what they may say, and what they must not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import PurePath
from typing import Any, Final

import msgspec

from mesh.core.types import Control, ControlKind, Dtype, Generation, Sequencing, State

FLAGS: Final = frozenset({Dtype.INT32, Dtype.FP32, Dtype.BOOL})
"""Types of START, END and READY (Triton's int32_false_true, fp32_false_true and bool_false_true)."""
IDS: Final = frozenset({Dtype.UINT64, Dtype.INT64, Dtype.UINT32, Dtype.INT32, Dtype.BYTES})
"""Types of CORRID."""


def sequencing(said: Mapping[str, Any], tensors: Collection[str]) -> Sequencing:
    """Return the section; `tensors` are the inputs and outputs that callers see. Raises ValueError with the mistake."""
    known = {each.name for each in fields(Sequencing)}
    if unknown := sorted(said.keys() - known):
        raise ValueError(f"it has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    try:
        found = msgspec.convert(_with_types(said), Sequencing)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
    checks = (
        (found.max_live >= 1, "max_live", "1 or more", found.max_live),
        (found.idle_s > 0, "idle_s", "more than 0", found.idle_s),
        (
            0 <= found.minimum_slot_utilization <= 1,
            "minimum_slot_utilization",
            "from 0 (a full batch) to 1",
            found.minimum_slot_utilization,
        ),
        (found.snapshot_messages >= 0, "snapshot_messages", "0 (by size) or more", found.snapshot_messages),
        (found.snapshot_bytes >= 0, "snapshot_bytes", "0 (by size) or more", found.snapshot_bytes),
    )
    for right, name, expected, came in checks:
        if not right:
            raise ValueError(f"{name} must be {expected}, got {came}")
    for control in found.controls:
        _check_control(control)
    for state in found.states:
        _check_state(state)
    ours = [each.name for each in found.controls] + [each.input for each in found.states]
    ours += [each.output for each in found.states]
    if twice := sorted({name for name in ours if ours.count(name) > 1 or name in tensors}):
        raise ValueError(f"{', '.join(twice)} is named twice: controls and states are no inputs or outputs of callers")
    return found


def generating(said: Mapping[str, Any]) -> Generation:
    """Return the `generation` section. Raises ValueError with the mistake."""
    known = {each.name for each in fields(Generation)}
    if unknown := sorted(said.keys() - known):
        raise ValueError(f"it has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    try:
        found = msgspec.convert(said, Generation)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
    if found.max_tokens < 1:
        raise ValueError(f"max_tokens must be 1 or more, got {found.max_tokens}")
    if found.vocabulary != PurePath(found.vocabulary).name:
        raise ValueError(f"vocabulary '{found.vocabulary}' must be a file in the version's folder")
    for state in found.states:
        _check_state(state)
    return found


def _with_types(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section with the types of controls that leave theirs out."""
    controls = said.get("controls")
    if not isinstance(controls, list):
        return dict(said)
    default = {True: Dtype.UINT64.value, False: Dtype.INT32.value}
    return {
        **said,
        "controls": [
            {"dtype": default[each.get("kind") == ControlKind.CORRID], **each} if isinstance(each, dict) else each
            for each in controls
        ],
    }


def _check_control(control: Control) -> None:
    allowed = IDS if control.kind is ControlKind.CORRID else FLAGS
    if control.dtype not in allowed:
        raise ValueError(
            f"control '{control.name}' is a {control.kind.value}: expected dtype {', '.join(sorted(allowed))}, got "
            f"{control.dtype}"
        )


def _check_state(state: State) -> None:
    if state.dtype is Dtype.BYTES or state.dtype is Dtype.BF16:
        raise ValueError(f"state '{state.input}' has dtype {state.dtype}: states are numbers that arrays hold")
    if any(size < 1 for size in state.shape):
        raise ValueError(f"state '{state.input}' has shape {list(state.shape)}: expected sizes of 1 or more")
    if state.initial_file != PurePath(state.initial_file).name:
        raise ValueError(f"initial_file '{state.initial_file}' must be a file in the version's folder")
