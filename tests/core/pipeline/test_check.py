"""Problems of a pipeline are all told at once, each with its place, what was expected, what came and what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.pipeline import text
from mesh.core.pipeline.check import Problem, Signature, check, signature_of
from mesh.core.pipeline.spec import Condition, Op, Pipeline, Ref, Step
from mesh.core.types import Dtype, TensorSpec


def spec(name: str, dtype: Dtype = Dtype.FP32, *shape: int, optional: bool = False) -> TensorSpec:
    return TensorSpec(name, dtype, shape or (-1, 4), optional)


def signature(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Signature:
    return Signature({each.name: each for each in inputs}, {each.name: each for each in outputs})


MODELS = {
    "features": signature([spec("text", Dtype.BYTES, -1)], [spec("features", Dtype.FP32, -1, 8)]),
    "score": signature(
        [spec("a", Dtype.FP32, -1, 8), spec("b", Dtype.FP32, -1, 8), spec("bias", Dtype.FP32, 1, optional=True)],
        [spec("probability", Dtype.FP32, -1)],
    ),
    "wide": signature([spec("text", Dtype.BYTES, -1)], [spec("features", Dtype.FP32, -1, 16)]),
    "other": signature([spec("text", Dtype.BYTES, -1)], [spec("vector", Dtype.FP32, -1, 8)]),
    "single": signature([spec("text", Dtype.BYTES, 1)], [spec("features", Dtype.FP32, 8)]),
    "unknown-signature": signature([], []),
}

LEFT = Step("left", "features", inputs={"text": text.source("$title1")})
RIGHT = Step("right", "features", inputs={"text": text.source("$title2")})
SCORE = Step("score", "score", inputs={"a": text.source("left.features"), "b": text.source("right.features")})
MATCHING = Pipeline("matching", (LEFT, RIGHT, SCORE), {"match": text.source("score.probability")})


def lookup(model: str, version: str) -> Signature | None:
    return MODELS.get(model) if version in {"", "1"} else None


def problems(pipeline: Pipeline) -> list[str]:
    return [str(each) for each in check(pipeline, lookup)]


def test_a_pipeline_that_makes_sense_has_no_problems_and_the_signature_of_its_ends() -> None:
    assert problems(MATCHING) == []
    found = signature_of(MATCHING, lookup)
    assert found.inputs == {
        "title1": spec("title1", Dtype.BYTES, -1),
        "title2": spec("title2", Dtype.BYTES, -1),
    }
    assert found.outputs == {"match": spec("match", Dtype.FP32, -1)}


def test_declared_inputs_count() -> None:
    given_ = (text.tensor("title1", "BYTES [2]"), text.tensor("title2", "BYTES [-1]"))
    declared = replace(MATCHING, inputs=given_)
    assert problems(declared) == []
    assert signature_of(declared, lookup).inputs["title1"] == spec("title1", Dtype.BYTES, 2)


def changed(index: int, **changes: object) -> Pipeline:
    steps = list(MATCHING.steps)
    steps[index] = replace(steps[index], **changes)  # type: ignore[arg-type] # fields of Step
    return replace(MATCHING, steps=tuple(steps))


A = text.source("left.features")


@pytest.mark.parametrize(
    ("pipeline", "told"),
    [
        (
            changed(2, inputs={"a": text.source("lefft.features"), "b": A}),
            ["steps[2].inputs.a: expected a step of this pipeline, got 'lefft'; did you mean 'left'?"],
        ),
        (
            changed(2, inputs={"a": text.source("left.featurs"), "b": A}),
            ["steps[2].inputs.a: expected an output of model 'features', got 'featurs'; did you mean 'features'?"],
        ),
        (
            changed(2, inputs={"a": A}),
            ["steps[2].inputs: model 'score' wants input 'b' FP32 [-1, 8]; give it one"],
        ),
        (
            changed(2, inputs={"a": A, "b": A, "c": A}),
            ["steps[2].inputs.c: expected an input of model 'score', got 'c'; there are: a, b, bias"],
        ),
        (changed(0, model="featurez"), ["steps[0].model: expected a model of this mesh, 'featurez' is none"]),
        (changed(0, version="7"), ["steps[0].model: expected a model of this mesh, 'features' version 7 is none"]),
        (
            changed(0, model="wide"),
            ["steps[2].inputs.a: model 'score' wants 'a' FP32 [-1, 8], left.features is FP32 [-1, 16]"],
        ),
        (
            changed(0, inputs={"text": text.source("right.features")}),
            ["steps[0].inputs.text: model 'features' wants 'text' BYTES [-1], right.features is FP32 [-1, 8]"],
        ),
        (
            changed(0, inputs={"text": text.source("score.probability")}),
            [
                "steps[0]: steps wait for each other: left -> score -> left; take one of these inputs away",
                "steps[0].inputs.text: model 'features' wants 'text' BYTES [-1], score.probability is FP32 [-1]",
            ],
        ),
        (
            changed(2, inputs={"a": A, "b": A}),
            ["steps[1]: no output needs step 'right'; use what it gives or take it away"],
        ),
        (
            replace(MATCHING, inputs=(text.tensor("title1", "BYTES [-1]"), text.tensor("title2", "INT64 [-1]"))),
            ["steps[1].inputs.text: model 'features' wants 'text' BYTES [-1], $title2 is INT64 [-1]"],
        ),
        (
            replace(MATCHING, inputs=(text.tensor("title1", "BYTES [-1]"),)),
            ["steps[1].inputs.text: expected an input of this pipeline, got '$title2'; did you mean '$title1'?"],
        ),
        (
            replace(MATCHING, inputs=tuple(text.tensor(each, "BYTES [-1]") for each in ("title1", "title2", "more"))),
            ["inputs.more: no step and no output uses this input; use it or take it away"],
        ),
        (
            replace(MATCHING, outputs={"match": text.source("scor.probability")}),
            ["outputs.match: expected a step of this pipeline, got 'scor'; did you mean 'score'?"],
        ),
        (
            changed(2, when=text.condition("left.features == 'yes'")),
            [
                "steps[2].when: expected a number to compare with left.features, which is FP32 [-1, 8], got 'yes'",
            ],
        ),
        (changed(2, each=("z",)), ["steps[2].each: expected inputs of this step, got 'z'; there are: a, b"]),
        (changed(0, use_on_error="none"), ["steps[0].on_error: expected a model of this mesh, 'none' is none"]),
        (
            changed(0, use_on_error="other"),
            ["steps[0].on_error: expected a model with the outputs that are used, 'other' has no 'features'"],
        ),
        (
            changed(0, use_on_error="score"),
            [
                "steps[0].on_error: expected a model with the outputs that are used, 'score' has no 'features'",
                "steps[0].on_error: expected a model that takes the same inputs, 'score' has no 'text'",
            ],
        ),
        (
            replace(MATCHING, steps=(LEFT, replace(RIGHT, name="left"), SCORE)),
            ["steps[1].name: expected a name of its own, there is a step 'left' before"],
        ),
        (
            changed(0, model="matching"),
            ["steps[0].model: expected another model or pipeline, this is the pipeline itself"],
        ),
        (changed(0, retries=101), ["steps[0].retries: expected at most 100, got 101"]),
        (
            changed(0, timeout_s=float("nan")),
            ["steps[0]: expected numbers of at least 0, got timeout nan and retries 0"],
        ),
        (changed(0, retries=-1), ["steps[0]: expected numbers of at least 0, got timeout 0 and retries -1"]),
        (
            replace(MATCHING, steps=(), outputs={}),
            [
                "steps: expected at least one step",
                "outputs: expected at least one output, such as {label: last-step.label}",
            ],
        ),
        (
            replace(MATCHING, name="a.b"),
            ["name: expected a name without spaces and without any of . $ | / [ ] < > = ! and quotes, got 'a.b'"],
        ),
    ],
    ids=lambda value: None if isinstance(value, Pipeline) else value[0][:60],
)
def test_every_problem_is_told_with_its_place(pipeline: Pipeline, told: list[str]) -> None:
    assert problems(pipeline) == told


def test_a_step_over_each_element_takes_and_gives_one_axis_more() -> None:
    each = Step("left", "single", inputs={"text": text.source("$titles")}, each=("text",))
    pipeline = Pipeline("p", (each,), {"all": text.source("left.features")})
    assert problems(pipeline) == []
    found = signature_of(pipeline, lookup)
    assert found.inputs == {"titles": spec("titles", Dtype.BYTES, -1, 1)}
    assert found.outputs == {"all": spec("all", Dtype.FP32, -1, 8)}


def test_a_model_whose_signature_nobody_knows_is_taken_as_it_comes() -> None:
    step = Step("any", "unknown-signature", inputs={"whatever": text.source("$x")})
    assert problems(Pipeline("p", (step,), {"y": text.source("any.y")})) == []


def test_a_problem_is_at_a_path() -> None:
    (found,) = check(changed(2, inputs={"a": A}), lookup)
    assert found == Problem(("steps", 2, "inputs"), "model 'score' wants input 'b' FP32 [-1, 8]; give it one")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("$x", (Ref("", "x"),)),
        ("a.x", (Ref("a", "x"),)),
        (" a.x|b.y | $z ", (Ref("a", "x"), Ref("b", "y"), Ref("", "z"))),
        ("a.x/y.z", (Ref("a", "x/y.z"),)),
    ],
)
def test_references_read_as_they_are_written(written: str, read: tuple[Ref, ...]) -> None:
    assert text.source(written) == read


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("router.class == 1", Condition(Ref("router", "class"), Op.EQUAL, 1)),
        ("$x!='a b'", Condition(Ref("", "x"), Op.NOT_EQUAL, "a b")),
        ("r.p >= 0.5", Condition(Ref("r", "p"), Op.AT_LEAST, 0.5)),
        ("r.ok == true", Condition(Ref("r", "ok"), Op.EQUAL, True)),
    ],
)
def test_conditions_read_as_they_are_written(written: str, read: Condition) -> None:
    assert text.condition(written) == read


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_with_a_sentence(written: str) -> None:
    for read in (text.ref, text.source, text.condition, text.name, lambda each: text.tensor("t", each)):
        refused = ""
        try:
            read(written)
        except text.BadText as error:
            refused = str(error)
        assert not refused or refused.startswith("expected ")


@given(st.builds(Ref, st.sampled_from(["", "a", "step-1"]), st.sampled_from(["x", "y_2", "probability"])))
def test_a_reference_reads_back(ref: Ref) -> None:
    assert text.ref(str(ref)) == ref
