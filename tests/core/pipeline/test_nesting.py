"""Pipelines in pipelines: measured once each, however often they are used."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core.errors import InvalidRequest
from mesh.core.fold import Change, ModelChange, PipelineChange, fold
from mesh.core.pipeline.nesting import DEEPEST, MOST_STEPS, Measure, Nesting
from mesh.core.pipeline.signatures import Signatures, models_of, pipeline_model
from mesh.core.pipeline.spec import Pipeline, Ref, Step
from mesh.core.types import Dtype, ModelName, ModelVersion, TensorSpec, Version
from mesh.core.view import ClusterView


def pipeline(name: str, *models: str, use_on_error: str = "") -> Pipeline:
    """Return steps of these models one behind the other."""
    before, steps = Ref("", "x"), []
    for at, model in enumerate(models):
        stands_in = use_on_error if at == 0 else ""
        steps.append(Step(f"s{at}", model, inputs={"x": (before,)}, use_on_error=stands_in))
        before = Ref(f"s{at}", "x")
    return Pipeline(name, tuple(steps), {"x": (before,)}, revision=1)


def levels(count: int, uses: int = 2) -> dict[str, Pipeline]:
    """Return `count` pipelines of which each uses the one below `uses` times, the lowest a model."""
    made = {"p1": pipeline("p1", *["m"] * uses)}
    made |= {f"p{n}": pipeline(f"p{n}", *[f"p{n - 1}"] * uses) for n in range(2, count + 1)}
    return made


def view(pipelines: Mapping[str, Pipeline]) -> ClusterView:
    spec = (TensorSpec("x", Dtype.FP32, (-1, 1)),)
    model = ModelVersion(ModelName("m"), Version("1"), "onnx", "", "", 0, inputs=spec, outputs=spec)
    changes: list[Change] = [PipelineChange(name, each) for name, each in pipelines.items()]
    return fold(ClusterView(), [ModelChange((model.name, model.version), model), *changes], 1)


def test_a_tower_in_which_each_level_uses_the_one_below_twice_is_looked_at_once() -> None:
    tower = levels(DEEPEST)
    assert Nesting(tower, ()).of(f"p{DEEPEST}") == Measure(DEEPEST, 2 * (2**DEEPEST - 1))
    known = Signatures(view(tower))
    found = known(f"p{DEEPEST}", "")
    assert found is not None
    assert found.outputs["x"].dtype is Dtype.FP32
    assert len(known._known) == DEEPEST + 1
    assert models_of(view(tower), f"p{DEEPEST}") == {("m", "")}


@pytest.mark.parametrize(
    ("pipelines", "name", "said"),
    [
        (levels(12), "p12", ""),
        (levels(13), "p13", f"becomes 16382 steps with the pipelines in it; at most {MOST_STEPS} are run"),
        (levels(DEEPEST, 1), f"p{DEEPEST}", ""),
        (levels(DEEPEST + 1, 1), f"p{DEEPEST + 1}", f"lies more than {DEEPEST} pipelines deep, or contains itself"),
        (levels(5000, 1), "p5000", f"lies more than {DEEPEST} pipelines deep, or contains itself"),
        ({"a": pipeline("a", "a")}, "a", "contains itself"),
        ({"a": pipeline("a", "b"), "b": pipeline("b", "m", "a")}, "a", "contains itself"),
        ({"a": pipeline("a", "m", use_on_error="b"), "b": pipeline("b", "a")}, "b", "contains itself"),
        ({"a": pipeline("a", "m", "m")}, "a", ""),
        ({}, "nothing", ""),
    ],
)
def test_why_a_pipeline_must_not_run(pipelines: dict[str, Pipeline], name: str, said: str) -> None:
    found = Nesting(pipelines, ()).too_large(name)
    assert found.endswith(said)
    assert bool(found) == bool(said)
    if said:
        with pytest.raises(InvalidRequest, match=f"pipeline '{name}' {found}"):
            pipeline_model(view(pipelines), name, "")


def test_a_model_of_the_same_name_wins() -> None:
    both = {"a": pipeline("a", "b"), "b": pipeline("b", "a")}
    assert Nesting(both, {"b"}).of("a") == Measure(1, 1)
    assert Nesting(both, {"b"}).reached("a") == set()


GRAPHS = st.dictionaries(
    st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdefm"), min_size=1, max_size=3), max_size=6
)


@settings(max_examples=300, deadline=None)
@given(GRAPHS)
def test_measures_agree_with_a_plain_walk(graph: dict[str, list[str]]) -> None:
    pipelines = {name: pipeline(name, *models) for name, models in graph.items()}

    def walk(name: str, above: tuple[str, ...] = ()) -> Measure | None:
        if name in above:
            return None
        inner = [walk(each, (*above, name)) for each in graph[name] if each in graph]
        if None in inner:
            return None
        known = [each for each in inner if each is not None]
        depth = 1 + max([each.depth for each in known], default=0)
        return Measure(depth, len(graph[name]) + sum(each.steps for each in known))

    def reached(name: str) -> set[str]:
        found: set[str] = set()
        for _ in graph:
            found |= {each for at in (name, *found) for each in graph[at] if each in graph}
        return found

    nesting = Nesting(pipelines, ())
    for name in graph:
        expected = walk(name)
        if expected is None:
            assert "contains itself" in nesting.too_large(name)
        else:
            assert nesting.of(name) == expected
        assert nesting.reached(name) == reached(name)
        assert nesting.around(name) == {each for each in graph if name in reached(each)}
