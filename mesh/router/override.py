"""Overriding a model's configuration at load, as Triton's RepositoryModelLoad with parameter ``config`` does.

What may be overridden is `Tuning`: batch size, queue delay, queue size, order of answers and parameters. A config may
repeat any other field with the value it has (clients send back what ModelConfig told them); another value is refused,
not ignored.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import Any

from google.protobuf import json_format

from mesh.api.describe import model_config
from mesh.api.messages import ModelConfig
from mesh.core.errors import LoadFailed
from mesh.core.types import ModelVersion, Tuning

TUNABLE = frozenset({"max_batch_size", "dynamic_batching", "parameters"})

BATCHING = frozenset({"max_queue_delay_microseconds", "preserve_ordering", "default_queue_policy"})
"""What the mesh has of dynamic_batching."""

MAX_PATH_PART_BYTES = 255
"""NAME_MAX of the usual file systems."""


def overridden(model: ModelVersion, config: str) -> ModelVersion:
    """Return `model` with the JSON ModelConfig `config` over what its files say. Raises `LoadFailed`."""
    base = restored(model)
    try:
        asked = json_format.Parse(config, ModelConfig())
    except json_format.ParseError as error:
        raise LoadFailed(
            f"failed to load '{model.name}', the override config is no valid ModelConfig: {error}"
        ) from error
    _refuse_others(base, asked)
    tuning = _tuned(base, asked)
    if tuning.max_batch_size < 0:
        raise LoadFailed(
            f"failed to load '{model.name}', max_batch_size must not be negative, got {tuning.max_batch_size}"
        )
    if tuning.max_batch_size and any(spec.shape[:1] != (-1,) for spec in (*base.inputs, *base.outputs)):
        raise LoadFailed(f"failed to load '{model.name}', it cannot batch: its tensors have no free first axis")
    if tuning == _tuning(base):
        return base
    text = json.dumps(asdict(tuning), sort_keys=True)
    files = base.files_digest or base.digest
    return replace(
        base,
        **asdict(tuning),
        digest=hashlib.sha256(f"{files}\n{text}".encode()).hexdigest(),
        files_digest=files,
        original=_tuning(base),
    )


def restored(model: ModelVersion) -> ModelVersion:
    """Return `model` as its files say."""
    if model.original is None:
        return model
    return replace(model, **asdict(model.original), digest=model.files_digest, original=None)


def check_file_path(model: str, parameter: str) -> None:
    """Raise `LoadFailed` unless the ``file:`` parameter's path could be a file of a model's folder."""
    path = parameter.removeprefix("file:")
    parts = path.split("/")
    bad = any(part in ("", ".", "..") or "\0" in part or len(part.encode()) > MAX_PATH_PART_BYTES for part in parts)
    if bad:
        shown = path if len(path) <= 64 else path[:64] + "..."
        raise LoadFailed(f"failed to load '{model}', failed to poll from model repository: Invalid file path '{shown}'")


def _tuning(model: ModelVersion) -> Tuning:
    return Tuning(
        model.max_batch_size,
        model.max_queue_delay_us,
        model.max_queue_size,
        model.parameters,
        model.preserve_ordering,
    )


def _tuned(base: ModelVersion, asked: ModelConfig) -> Tuning:
    tuning = _tuning(base)
    if asked.max_batch_size:
        tuning = replace(tuning, max_batch_size=asked.max_batch_size)
    if asked.HasField("dynamic_batching"):
        batching = asked.dynamic_batching
        tuning = replace(
            tuning,
            max_queue_delay_us=batching.max_queue_delay_microseconds,
            max_queue_size=batching.default_queue_policy.max_queue_size,
            preserve_ordering=batching.preserve_ordering,
        )
    if asked.parameters:
        tuning = replace(tuning, parameters={key: value.string_value for key, value in asked.parameters.items()})
    return tuning


def _refuse_others(base: ModelVersion, asked: ModelConfig) -> None:
    held: Any = model_config(base)
    if asked.HasField("dynamic_batching"):
        _refuse_unknown(base, asked.dynamic_batching)
    for field, value in asked.ListFields():
        if field.name not in TUNABLE and value != getattr(held, field.name):
            raise LoadFailed(
                f"failed to load '{base.name}', '{field.name}' cannot be overridden: change the model's files; "
                f"{', '.join(sorted(TUNABLE))} can"
            )


def _refuse_unknown(base: ModelVersion, batching: Any) -> None:
    """Raise `LoadFailed` for what Triton's dynamic batcher has and the mesh's has not."""
    said = [field.name for field, _ in batching.ListFields() if field.name not in BATCHING]
    if base.sequence is not None and batching.preserve_ordering:
        raise LoadFailed(
            f"failed to load '{base.name}', preserve_ordering is for models without sequences, as steps are answered "
            "in their order anyway"
        )
    policy = batching.default_queue_policy
    said += [f"default_queue_policy.{field.name}" for field, _ in policy.ListFields() if field.name != "max_queue_size"]
    if said:
        raise LoadFailed(
            f"failed to load '{base.name}', the mesh has no dynamic_batching.{said[0]}: leave it out; "
            f"{', '.join(sorted(BATCHING))} can be overridden, of default_queue_policy max_queue_size"
        )
