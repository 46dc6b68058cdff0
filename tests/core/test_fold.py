from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.core.fold import Change, ForecastChange, ModelChange, NodeChange, PlacementChange, fold
from mesh.core.placement.forecast import Forecast
from mesh.core.types import Copy, CopyState, ModelName, ModelVersion, Node, NodeId, Placement, Version
from mesh.core.view import ClusterView

names = st.sampled_from([ModelName("a"), ModelName("b")])
versions = st.sampled_from([Version("1"), Version("2")])
keys = st.tuples(names, versions)
copies = st.builds(Copy, model=names, version=versions, state=st.sampled_from(CopyState))


@st.composite
def changes(draw: st.DrawFn) -> Change:
    kind = draw(st.integers(0, 3))
    if kind == 0:
        id_ = NodeId(draw(st.sampled_from("xyz")))
        held = tuple(draw(st.lists(copies, max_size=3, unique_by=lambda copy: (copy.model, copy.version))))
        node = Node(id_, f"{id_}:1", "i", copies=held, draining=draw(st.booleans()))
        return NodeChange(id_, node if draw(st.booleans()) else None)
    key = draw(keys)
    present = draw(st.booleans())
    if kind == 1:
        return ModelChange(
            key, ModelVersion(*key, runtime="onnx", source="s", digest="d", size_bytes=1) if present else None
        )
    if kind == 3:
        return ForecastChange(Forecast(((draw(st.floats(0, 1)),),)) if present else None)
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
    everywhere = [((copy.model, copy.version), node.id, copy) for node in view.nodes.values() for copy in node.copies]
    indexed = [(key, each.node.id, each.copy) for key, located in view.copies.items() for each in located]
    assert sorted(map(repr, everywhere)) == sorted(map(repr, indexed))
    for key, located in view.serving.items():
        assert all(each in view.copies[key] for each in located)
        assert all(each.copy.state is CopyState.READY and not each.node.draining for each in located)
        assert all(view.nodes[each.node.id] is each.node for each in located)


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


def test_a_node_that_left_takes_its_copies_along() -> None:
    copy = Copy(ModelName("a"), Version("1"), CopyState.READY)
    node = Node(NodeId("x"), "x:1", "i", copies=(copy,))
    view = fold(ClusterView(), [NodeChange(node.id, node)], 1)
    assert [each.node.id for each in view.serving["a", "1"]] == ["x"]  # type: ignore[index] # text is a NewType's value
    assert dict(fold(view, [NodeChange(node.id, None)], 2).copies) == {}
