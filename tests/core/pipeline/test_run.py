"""What runs when: any valid graph gives what a plain evaluation gives, in whatever order its steps end."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.errors import MeshError, ModelFailed
from mesh.core.pipeline import text
from mesh.core.pipeline.check import Signature, check
from mesh.core.pipeline.run import Action, Call, Fail, Finish, Graph, Run
from mesh.core.pipeline.spec import Condition, Op, Pipeline, Ref, Source, Step
from mesh.core.types import Dtype, TensorSpec

X = TensorSpec("x", Dtype.INT64, (1,))
INPUTS = {name: TensorSpec(name, Dtype.INT64, (1,)) for name in "abc"}
OUTPUTS = {name: TensorSpec(name, Dtype.INT64, (1,)) for name in ("y", "z")}


def answer(model: str, inputs: Mapping[str, int]) -> dict[str, int]:
    """Return what a model answers: anything that depends on its name and on every input."""
    total = sum((index + 3) * value for index, (_, value) in enumerate(sorted(inputs.items())))
    return {"y": (total * 7 + len(model)) % 101, "z": (total * 11 + ord(model[-1])) % 97}


def truth(when: Condition, tensor: int) -> bool:
    assert when.op is Op.MORE
    assert isinstance(when.value, int)
    return tensor > when.value


def plain(pipeline: Pipeline, given_: Mapping[str, int]) -> dict[str, int]:
    """Evaluate by recursion: what a reader of the spec would do by hand."""
    steps = {step.name: step for step in pipeline.steps}
    known: dict[str, dict[str, int] | None] = {}

    def outputs(name: str) -> dict[str, int] | None:
        if name not in known:
            known[name] = ran(steps[name])
        return known[name]

    def first(source: Source) -> int | None:
        for ref in source:
            held = given_ if not ref.step else outputs(ref.step)
            if held is not None and ref.tensor in held:
                return held[ref.tensor]
        return None

    def ran(step: Step) -> dict[str, int] | None:
        if step.when is not None:
            compared = first((step.when.of,))
            if compared is None or not truth(step.when, compared):
                return None
        inputs = {name: first(source) for name, source in step.inputs.items()}
        there = {name: value for name, value in inputs.items() if value is not None}
        return answer(step.model, there) if len(there) == len(inputs) else None

    found = {name: first(source) for name, source in pipeline.outputs.items()}
    return {name: value for name, value in found.items() if value is not None}


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    """Any graph whose steps use the pipeline's inputs and the steps before them; what nobody needs is an output."""
    count = draw(st.integers(1, 8))
    steps: list[Step] = []
    for index in range(count):
        refs = st.sampled_from([Ref("", "p"), Ref("", "q"), *(Ref(f"s{n}", out) for n in range(index) for out in "yz")])
        sources = st.lists(refs, min_size=1, max_size=3).map(tuple)
        inputs = draw(st.dictionaries(st.sampled_from("abc"), sources, min_size=1, max_size=3))
        when = draw(st.none() | st.builds(Condition, refs, st.just(Op.MORE), st.integers(0, 60)))
        steps.append(Step(f"s{index}", f"model-{draw(st.sampled_from('uvw'))}", inputs=inputs, when=when))
    used = {ref.step for step in steps for ref in step.refs()}
    outputs: dict[str, Source] = {f"o{n}": (Ref(f"s{n}", "y"),) for n in range(count) if f"s{n}" not in used}
    merged = tuple(Ref(step.name, "z") for step in draw(st.permutations(steps))[: draw(st.integers(1, 3))])
    outputs["merged"] = merged
    # Written in any order: what comes first in the file says nothing about what runs first.
    return Pipeline("p", tuple(draw(st.permutations(steps))), outputs)


def signature(model: str, _: str) -> Signature | None:
    inputs = {name: TensorSpec(name, spec.dtype, spec.shape, optional=True) for name, spec in INPUTS.items()}
    return Signature(inputs, OUTPUTS) if model.startswith("model-") else None


@given(pipelines(), st.integers(0, 50), st.integers(0, 50), st.data())
def test_any_order_of_endings_gives_what_a_plain_evaluation_gives(
    pipeline: Pipeline, p: int, q: int, data: st.DataObject
) -> None:
    assert check(pipeline, signature) == []
    given_ = {"p": p, "q": q}
    run: Run[int] = Run(Graph(pipeline), given_, truth)
    running: list[Call[int]] = []
    finished: list[Finish[int]] = []
    called: list[str] = []

    def take(actions: list[Action[int]]) -> None:
        for action in actions:
            if isinstance(action, Call):
                running.append(action)
                called.append(action.step.name)
            else:
                assert isinstance(action, Finish)
                finished.append(action)

    take(run.begin())
    while not finished:
        assert running, f"nothing runs and nothing is answered: {run!r}"
        call = running.pop(data.draw(st.integers(0, len(running) - 1)))
        take(run.done(call.step.name, answer(call.model, call.inputs)))
    assert [each.outputs for each in finished] == [plain(pipeline, given_)]
    assert len(called) == len(set(called)), "no step runs twice"
    for call in running:
        assert run.done(call.step.name, answer(call.model, call.inputs)) == [], "what ends later changes nothing"


def chain(**changes: object) -> Pipeline:
    first = Step("one", "model-u", inputs={"a": (Ref("", "x"),)}, **changes)  # type: ignore[arg-type] # fields of Step
    second = Step("two", "model-v", inputs={"a": (Ref("one", "y"),)})
    return Pipeline("p", (first, second), {"out": (Ref("two", "y"),)})


def begun(pipeline: Pipeline) -> tuple[Run[int], Call[int]]:
    run: Run[int] = Run(Graph(pipeline), {"x": 1}, truth)
    (call,) = run.begin()
    assert isinstance(call, Call)
    return run, call


def test_a_step_that_fails_fails_the_request_and_nothing_comes_after() -> None:
    run, call = begun(chain())
    error = ModelFailed("boom")
    assert run.failed("one", error) == [Fail("one", error)]
    assert run.over
    assert run.done("one", answer(call.model, call.inputs)) == []


def test_attempts_then_the_model_that_stands_in_then_the_failure() -> None:
    run, call = begun(chain(retries=2, use_on_error="model-w"))
    error = ModelFailed("boom")
    attempts = [call]
    for _ in range(3):
        (following,) = run.failed("one", error)
        assert isinstance(following, Call)
        attempts.append(following)
    assert [(each.model, each.attempt) for each in attempts] == [
        ("model-u", 0),
        ("model-u", 1),
        ("model-u", 2),
        ("model-w", 3),
    ]
    assert run.failed("one", error) == [Fail("one", error)]


def test_what_makes_no_sense_is_not_repeated_but_another_model_may_take_it() -> None:
    run, _ = begun(chain(retries=2))
    assert isinstance(run.failed("one", ModelFailed("no"), again=False)[0], Fail)
    run, _ = begun(chain(retries=2, use_on_error="model-w"))
    (following,) = run.failed("one", ModelFailed("no"), again=False)
    assert isinstance(following, Call)
    assert following.model == "model-w"


def test_a_model_that_leaves_out_what_is_needed_failed() -> None:
    run, _ = begun(chain())
    (failed,) = run.done("one", {"z": 1})
    assert isinstance(failed, Fail)
    assert isinstance(failed.error, MeshError)
    assert failed.error.message == "model 'model-u' of step 'one' did not answer with y"


def test_a_condition_that_cannot_be_told_fails_its_step() -> None:
    step = Step("one", "model-u", inputs={"a": (Ref("", "x"),)}, when=text.condition("$x == 1"))
    pipeline = Pipeline("p", (step,), {"out": (Ref("one", "y"),)})
    run: Run[int] = Run(Graph(pipeline), {"x": 1}, truth)
    (failed,) = run.begin()
    assert isinstance(failed, Fail)
    assert failed.step == "one"


@pytest.mark.parametrize(("x", "outputs"), [(5, {"out": 1}), (50, {"out": 2})])
def test_branches_merge_in_the_one_that_ran(x: int, outputs: dict[str, int]) -> None:
    low = Step("low", "model-u", inputs={"a": (Ref("", "x"),)})
    high = Step("high", "model-v", inputs={"a": (Ref("", "x"),)}, when=Condition(Ref("", "x"), Op.MORE, 9))
    pipeline = Pipeline("p", (low, high), {"out": (Ref("high", "y"), Ref("low", "y"))})
    run: Run[int] = Run(Graph(pipeline), {"x": x}, truth)
    calls = [action.step.name for action in run.begin() if isinstance(action, Call)]
    assert calls == (["low"] if x < 9 else ["low", "high"])
    if x > 9:
        assert run.done("low", {"y": 1}) == [], "the branch that is written first may still come"
        assert run.done("high", {"y": 2}) == [Finish(outputs)]
    else:
        assert run.done("low", {"y": 1}) == [Finish(outputs)]
