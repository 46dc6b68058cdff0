"""Files with pipelines: read whole, or refused with the line of the mistake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.api.messages import control
from mesh.api.pipelines import pipeline_message, read_pipeline
from mesh.cli.manifest import BadManifest, Manifest, read

WHOLE = """\
# A comment.
kind: Pipeline
name: product-matching
inputs: {title1: BYTES [-1], title2: "BYTES [-1]"}
steps:
  - {name: left,  model: text-features, inputs: {text: $title1}}
  - {name: right, model: text-features, version: 2, inputs: {text: $title2}}
  - name: score
    model: match-score
    inputs: {a: left.features, b: right.features | left.features}
    when: left.kind == 'shoe'
    each: [a, b]
    timeout: 500ms
    retries: 2
    on_error: {use: match-score-old}
    parameters: {threshold: 0.5, top: 3, verbose: true, language: en}
outputs: {match: score.probability}
"""


def test_a_whole_file_is_read() -> None:
    (manifest,) = read("f.yaml", WHOLE)
    pipeline = manifest.pipeline
    assert (pipeline.name, len(pipeline.steps)) == ("product-matching", 3)
    assert dict(pipeline.inputs) == {"title1": "BYTES [-1]", "title2": "BYTES [-1]"}
    score = pipeline.steps[2]
    assert dict(score.inputs) == {"a": "left.features", "b": "right.features | left.features"}
    assert (score.when, list(score.each), score.retries) == ("left.kind == 'shoe'", ["a", "b"], 2)
    assert (score.timeout_s, score.on_error.use) == (0.5, "match-score-old")
    assert score.parameters["threshold"].float_value == 0.5
    assert score.parameters["top"].int_value == 3
    assert score.parameters["verbose"].bool_value
    assert score.parameters["language"].text_value == "en"
    assert pipeline.steps[1].version == "2"
    assert manifest.line_of("steps[0].inputs.text") == 6
    assert manifest.line_of("steps[2].inputs.b") == 10
    assert manifest.line_of("steps[2].inputs.c") == 10
    assert manifest.line_of("steps[9]") == 5
    assert manifest.line_of("outputs.match") == 17


def test_what_is_read_means_the_same_when_it_is_shown_and_read_again() -> None:
    (manifest,) = read("f.yaml", WHOLE)
    pipeline, problems = read_pipeline(manifest.pipeline)
    assert problems == []
    assert read_pipeline(pipeline_message(pipeline)) == (pipeline, [])


def test_several_documents_in_one_file() -> None:
    found = read("f.yaml", "kind: Pipeline\nname: a\n---\nkind: Pipeline\nname: b\n")
    assert [each.pipeline.name for each in found] == ["a", "b"]
    assert found[1].line_of("name") == 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "f.yaml:1: expected a document such as 'kind: Pipeline', the file is empty"),
        ("a: [", "f.yaml:1: expected YAML"),
        ("- 1\n", "f.yaml:1: expected fields with values, got a list"),
        ("name: x\n", "f.yaml:1: expected kind: Pipeline, got ''"),
        ("kind: Pipelin\n", "f.yaml:1: expected kind: Pipeline, got 'Pipelin'"),
        ("kind: Pipeline\nstep: []\n", "f.yaml:2: 'step' is no field here; did you mean 'steps'?"),
        ("kind: Pipeline\nsteps: {}\n", "f.yaml:2: expected a list in steps, got fields with values"),
        ("kind: Pipeline\nsteps:\n  - a\n", "f.yaml:3: expected fields with values in steps[0], got 'a'"),
        ("kind: Pipeline\nsteps:\n  - {nam: a}\n", "f.yaml:3: 'nam' is no field here; did you mean 'name'?"),
        (
            "kind: Pipeline\nsteps:\n  - {inputs: {x: [a]}}\n",
            "f.yaml:3: expected a text in steps[0].inputs.x, got a list",
        ),
        ("kind: Pipeline\nsteps:\n  - {timeout: soon}\n", "f.yaml:3: expected seconds such as 2s or 500ms"),
        (
            "kind: Pipeline\nsteps:\n  - {retries: many}\n",
            "f.yaml:3: expected a number in steps[0].retries, got",
        ),
        ("kind: Pipeline\nname: a\nname: b\n", "f.yaml:3: 'name' is there twice"),
    ],
)
def test_a_mistake_is_told_with_its_line(text: str, told: str) -> None:
    with pytest.raises(BadManifest) as caught:
        read("f.yaml", text)
    assert str(caught.value).startswith(told)


@given(st.text(max_size=60) | st.lists(st.sampled_from(WHOLE.splitlines(keepends=True)), max_size=12).map("".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    refused = ""
    found: list[Manifest] = []
    try:
        found = read("f.yaml", text)
    except BadManifest as error:
        refused = str(error)
    assert not refused or refused.startswith("f.yaml:")
    for each in found:
        read_pipeline(each.pipeline)


@given(st.binary(max_size=80))
def test_any_message_is_a_pipeline_or_has_problems(data: bytes) -> None:
    try:
        message = control.Pipeline.FromString(data)
    except Exception:  # noqa: BLE001 - protobuf's own error: nothing came to be read
        return
    pipeline, problems = read_pipeline(message)
    assert pipeline.name == message.name
    assert all(str(each) for each in problems)
