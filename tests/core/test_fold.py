from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mesh.core.fold import (
    Change,
    CopyChange,
    ForecastChange,
    ModelChange,
    NodeChange,
    PipelineChange,
    PlacementChange,
    SuspectChange,
    fold,
)
from mesh.core.pipeline.spec import Pipeline, Step
from mesh.core.placement.forecast import Forecast
from mesh.core.suspects import Suspect
from mesh.core.types import Copy, CopyState, ModelName, ModelVersion, Node, NodeId, Placement, Version
from mesh.core.view import ClusterView
from tests.fixtures.registered import registered

names = st.sampled_from([ModelName("a"), ModelName("b")])
versions = st.sampled_from([Version("1"), Version("2")])
keys = st.tuples(names, versions)
copies = st.builds(Copy, model=names, version=versions, state=st.sampled_from(CopyState))


@st.composite
def changes(draw: st.DrawFn) -> Change:  # noqa: PLR0911 - one for each kind
    kind = draw(st.integers(0, 6))
    present = draw(st.booleans())
    id_ = NodeId(draw(st.sampled_from("xyz")))
    if kind == 0:
        node = Node(id_, f"{id_}:{draw(st.integers(1, 2))}", "i", draining=draw(st.booleans()))
        return NodeChange(id_, node if present else None)
    if kind == 3:
        return ForecastChange(Forecast(((draw(st.floats(0, 1)),),)) if present else None)
    if kind == 4:
        copy = draw(copies)
        return CopyChange(id_, (copy.model, copy.version), copy if present else None)
    if kind == 5:
        name = draw(st.sampled_from(["p", "q"]))
        steps = tuple(Step(f"s{n}", draw(names)) for n in range(draw(st.integers(0, 3))))
        return PipelineChange(name, Pipeline(name, steps, {}, revision=draw(st.integers(1, 3))) if present else None)
    key = draw(keys)
    if kind == 1:
        return ModelChange(
            key, ModelVersion(*key, runtime="onnx", source="s", digest="d", size_bytes=1) if present else None
        )
    if kind == 6:
        deaths = draw(st.integers(1, 2))
        return SuspectChange(key, Suspect(*key, deaths=deaths) if present else None)
    nodes = tuple(NodeId(each) for each in draw(st.lists(st.sampled_from("xyz"), unique=True)))
    return PlacementChange(key, Placement(*key, nodes, off=draw(st.booleans())) if present else None)


@given(st.lists(changes(), max_size=20))
def test_folding_one_by_one_equals_folding_at_once(steps: list[Change]) -> None:
    one_by_one = ClusterView()
    for step in steps:
        one_by_one = fold(one_by_one, [step], 7)
    assert fold(ClusterView(), steps, 7) == one_by_one if steps else True


@given(st.lists(changes(), max_size=20))
def test_indexes_hold_exactly_the_copies_of_the_nodes(steps: list[Change]) -> None:
    view = fold(ClusterView(), steps, 1)
    everywhere = [
        (key, id_, copy) for id_, held in view.held.items() for key, copy in held.items() if id_ in view.nodes
    ]
    indexed = [(key, each.node.id, each.copy) for key, located in view.copies.items() for each in located]
    assert sorted(map(repr, everywhere)) == sorted(map(repr, indexed))
    assert all(view.held.values())
    for key, located in view.copies.items():
        assert [each.node.id for each in located] == sorted(each.node.id for each in located)
        may = [each for each in located if each.copy.state is CopyState.READY and not view.nodes[each.node.id].draining]
        assert list(view.serving.get(key, ())) == may
        assert all(view.nodes[each.node.id].address == each.node.address for each in located)
    assert set(view.serving) <= set(view.copies)


@given(st.lists(changes(), max_size=20))
def test_models_know_the_pipelines_that_they_are_in(steps: list[Change]) -> None:
    view = fold(ClusterView(), steps, 1)
    named = {(step.model, name) for name, pipeline in view.pipelines.items() for step in pipeline.steps}
    assert {(model, name) for model, used in view.used_in.items() for name in used} == named
    assert all(list(used) == sorted(set(used)) for used in view.used_in.values())


@given(st.lists(changes(), max_size=20))
def test_the_last_word_on_each_key_counts_whatever_the_order_of_the_keys(steps: list[Change]) -> None:
    latest = {_named(step): step for step in steps}
    assert fold(ClusterView(), reversed(latest.values()), 1) == fold(ClusterView(), steps, 1)


def _named(change: Change) -> object:
    match change:
        case NodeChange(id_, _):
            return id_
        case CopyChange(id_, key, _):
            return id_, key
        case ForecastChange():
            return None
        case PipelineChange(name, _):
            return name
        case _:
            return type(change), change.key


@given(st.lists(changes(), max_size=20), st.lists(changes(), max_size=20))
def test_placements_are_indexed_by_node_and_older_views_stay_as_they_were(
    steps: list[Change], more: list[Change]
) -> None:
    view = fold(ClusterView(), steps, 1)
    before = {node: dict(held) for node, held in view.placed.items()}
    later = fold(view, more, 2)
    assert {node: dict(held) for node, held in view.placed.items()} == before
    for each in (view, later):
        named = {(node, key): placement for key, placement in each.placements.items() for node in placement.nodes}
        assert {(node, key): held[key] for node, held in each.placed.items() for key in held} == named
        assert all(each.placed.values())


def test_a_node_that_left_takes_its_copies_along_and_brings_them_back() -> None:
    key = ModelName("a"), Version("1")
    node = Node(NodeId("x"), "x:1", "i")
    view = fold(ClusterView(), registered(node, [Copy(*key, CopyState.READY)]), 1)
    assert [each.node.id for each in view.serving[key]] == ["x"]
    gone = fold(view, [NodeChange(node.id, None)], 2)
    assert (dict(gone.copies), dict(gone.serving)) == ({}, {})
    assert fold(gone, [NodeChange(node.id, node)], 1) == view


def test_free_memory_and_load_change_nothing_about_the_copies() -> None:
    node = Node(NodeId("x"), "x:1", "i")
    view = fold(ClusterView(), registered(node, [Copy(ModelName("a"), Version("1"), CopyState.READY)]), 1)
    busier = fold(view, [NodeChange(node.id, replace(node, busy=0.5))], 2)
    assert busier.copies is view.copies
    assert busier.nodes[node.id].busy == 0.5
