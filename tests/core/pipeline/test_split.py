"""Around a step with several responses, the halves of a pipeline give together what the whole would give."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.pipeline import text
from mesh.core.pipeline.check import Signature, check
from mesh.core.pipeline.run import Call, Graph, Run
from mesh.core.pipeline.spec import Pipeline, Step
from mesh.core.pipeline.split import half, split
from tests.core.pipeline.test_check import MODELS, spec
from tests.core.pipeline.test_run import answer, pipelines, plain, truth


@given(pipelines(), st.integers(0, 50), st.integers(0, 50), st.data())
def test_the_halves_around_any_step_give_what_the_whole_gives(
    pipeline: Pipeline, p: int, q: int, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from([step.name for step in pipeline.steps]))
    parts = split(pipeline, name)
    given_ = {"p": p, "q": q}
    known: dict[str, int] = {**given_, **plain(parts.before, given_)}
    run: Run[int] = Run(Graph(parts.asked), known, truth)
    for action in run.begin():
        if isinstance(action, Call):
            outputs = answer(action.model, action.inputs)
            known |= {f"{name}.{tensor}": value for tensor, value in outputs.items()}
    assert plain(parts.after, known) == plain(pipeline, given_)
    assert half(pipeline, f"{name}<") == parts.before
    assert half(pipeline, f"{name}>") == parts.after
    names = [step.name for each in (parts.before, parts.asked, parts.after) for step in each.steps]
    assert sorted(names) == sorted(step.name for step in pipeline.steps)


def test_a_half_of_a_half() -> None:
    steps = tuple(
        Step(name, "m", inputs={"x": text.source(source)}) for name, source in (("a", "$x"), ("b", "a.y"), ("c", "b.y"))
    )
    pipeline = Pipeline("p", steps, {"y": text.source("c.y")})
    assert [step.name for step in half(pipeline, "a>").steps] == ["b", "c"]
    assert [step.name for step in half(pipeline, "a>b>").steps] == ["c"]
    assert half(pipeline, "a>b<").steps == ()
    assert half(pipeline, "") is pipeline
    for path in ("d>", "a", "a>a<", "<", "a>>"):
        with pytest.raises(KeyError):
            half(pipeline, path)


WORDS = Signature(
    {"text": spec("text", *(MODELS["features"].inputs["text"].dtype, -1))}, MODELS["features"].inputs, decoupled=True
)


def problems(steps: Mapping[str, Step], output: str) -> list[str]:
    signatures = {**MODELS, "words": WORDS}
    named = tuple(Step(name, step.model, inputs=step.inputs, each=step.each) for name, step in steps.items())
    pipeline = Pipeline("p", named, {"y": text.source(output)})
    return [str(each) for each in check(pipeline, lambda model, _: signatures.get(model))]


def test_one_behind_the_other_is_fine_and_side_by_side_is_not() -> None:
    words = Step("", "words", inputs={"text": text.source("$t")})
    more = Step("", "words", inputs={"text": text.source("w.text")})
    features = Step("", "features", inputs={"text": text.source("v.text")})
    assert problems({"f": features, "v": more, "w": words}, "f.features") == []
    left = Step("", "features", inputs={"text": text.source("w.text")})
    score = Step("", "score", inputs={"a": text.source("f.features"), "b": text.source("g.features")})
    right = Step("", "features", inputs={"text": text.source("v.text")})
    assert problems({"w": words, "v": words, "f": left, "g": right, "s": score}, "s.probability") == [
        "steps[1]: steps 'w' and 'v' both answer several times; put one behind the other"
    ]


def test_a_step_with_several_responses_is_not_repeated() -> None:
    words = Step("", "words", inputs={"text": text.source("$t")}, each=("text",))
    assert "answers several times, which goes with no each" in problems({"w": words}, "w.text")[0]
