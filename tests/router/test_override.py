from __future__ import annotations

import json
from dataclasses import replace

import pytest
from google.protobuf import json_format

from mesh.api.describe import model_config
from mesh.core.errors import LoadFailed
from mesh.core.types import Dtype, ModelName, ModelVersion, Sequencing, TensorSpec, Tuning, Version
from mesh.router.override import check_file_path, overridden, restored

MODEL = ModelVersion(
    ModelName("m"),
    Version("1"),
    "onnx",
    "file:///r/m/1",
    digest="d",
    files_digest="d",
    size_bytes=1,
    inputs=(TensorSpec("x", Dtype.FP32, (-1, 4)),),
    outputs=(TensorSpec("y", Dtype.FP32, (-1, 1)),),
    max_batch_size=8,
)


def test_a_config_overrides_what_it_names_and_changes_the_digest() -> None:
    changed = overridden(MODEL, '{"max_batch_size": "16"}')
    assert changed.max_batch_size == 16
    assert changed.digest not in ("d", "")
    assert (changed.files_digest, changed.original) == ("d", Tuning(max_batch_size=8))


def test_a_second_config_starts_from_the_files_not_from_the_first() -> None:
    first = overridden(MODEL, '{"max_batch_size": 16}')
    delay = {"dynamic_batching": {"max_queue_delay_microseconds": "500"}}
    second = overridden(first, json.dumps(delay))
    assert (second.max_batch_size, second.max_queue_delay_us) == (8, 500)


def test_without_a_config_the_files_speak_again() -> None:
    assert restored(overridden(MODEL, '{"max_batch_size": 16}')) == MODEL
    assert restored(MODEL) is MODEL


def test_a_config_that_says_what_is_so_changes_nothing() -> None:
    assert overridden(MODEL, '{"name": "m", "max_batch_size": 8}') == MODEL


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ('"parameters": {"config": {{"max_batch_size": "16"}}}', "no valid ModelConfig"),
        ('{"max_batch_size": -1}', "must not be negative"),
        (
            '{"dynamic_batching": {"preferred_batch_size": [4]}}',
            "no dynamic_batching.preferred_batch_size: leave it out; default_queue_policy, max_queue_delay_",
        ),
        (
            '{"dynamic_batching": {"default_queue_policy": {"timeout_action": "DELAY"}}}',
            "the mesh has no dynamic_batching.default_queue_policy.timeout_action",
        ),
        ('{"dynamic_batching": {"no_such_field": 1}}', "no_such_field"),
        ('{"name": "other"}', "'name' cannot be overridden"),
        ('{"input": [{"name": "z", "data_type": "TYPE_FP32", "dims": [4]}]}', "'input' cannot be overridden"),
    ],
)
def test_a_config_that_cannot_be_is_refused(config: str, text: str) -> None:
    with pytest.raises(LoadFailed, match="failed to load 'm', ") as caught:
        overridden(MODEL, config)
    assert text in caught.value.message


@pytest.mark.parametrize("path", ["", "/etc/passwd", "1/../x", "A" * 256, "1/a\0b"])
def test_a_path_that_cannot_be_a_file_of_the_model_is_refused(path: str) -> None:
    with pytest.raises(LoadFailed, match="Invalid file path"):
        check_file_path("m", "file:" + path)


def test_the_order_of_answers_can_be_overridden_and_is_told() -> None:
    changed = overridden(MODEL, '{"dynamic_batching": {"preserve_ordering": true}}')
    assert changed.preserve_ordering
    assert model_config(changed).dynamic_batching.preserve_ordering
    assert not model_config(MODEL).dynamic_batching.preserve_ordering
    assert restored(changed) == MODEL


def test_what_a_configuration_says_can_be_sent_back() -> None:
    for model in (MODEL, replace(MODEL, preserve_ordering=True, max_queue_size=7, max_queue_delay_us=3)):
        assert overridden(model, json_format.MessageToJson(model_config(model))) == model


def test_the_steps_of_sequences_have_an_order_anyway() -> None:
    with pytest.raises(LoadFailed, match="preserve_ordering is for models without sequences"):
        overridden(replace(MODEL, sequence=Sequencing()), '{"dynamic_batching": {"preserve_ordering": true}}')
