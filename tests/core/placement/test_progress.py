"""Where loads stand in their nodes' queues."""

from __future__ import annotations

from itertools import chain

from mesh.core.fold import Change, ModelChange, fold
from mesh.core.placement.progress import Progress, progress
from mesh.core.types import Copy, CopyState, ModelName, ModelVersion, Node, NodeId, Version
from mesh.core.view import ClusterView
from tests.fixtures.registered import registered

V = Version("1")
A, B = NodeId("a"), NodeId("b")


def loading(name: str, changed_s: float, state: CopyState = CopyState.LOADING) -> Copy:
    return Copy(ModelName(name), V, state, changed_s=changed_s)


def view_of(*held: tuple[NodeId, list[Copy]], load_s: float = 0.0) -> ClusterView:
    model = ModelVersion(ModelName("m"), V, "onnx", "file:///m/1", "d", 1, load_s=load_s)
    told: list[Change] = [ModelChange((model.name, V), model)]
    nodes = chain.from_iterable(registered(Node(id_, f"{id_}:1", "i"), copies) for id_, copies in held)
    return fold(ClusterView(), [*told, *nodes], 1)


def test_a_load_waits_for_those_that_its_node_was_asked_for_before() -> None:
    others = [loading("first", 10.0), loading("later", 30.0), loading("done", 1.0, CopyState.READY)]
    view = view_of((A, [*others, loading("m", 20.0)]), (B, [loading("elsewhere", 5.0)]))
    assert progress(view, (ModelName("m"), V)) == [Progress(A, 1, 0.0)]


def test_of_several_loads_each_has_its_place_whatever_the_nodes_clocks_say() -> None:
    view = view_of((A, [loading("m", 20.0)]), (B, [loading("m", 15.0)]), load_s=4.0)
    assert progress(view, (ModelName("m"), V)) == [Progress(A, 0, 4.0), Progress(B, 0, 4.0)]


def test_a_copy_that_does_not_load_has_no_progress() -> None:
    view = view_of((A, [loading("m", 20.0)]), (B, [loading("m", 15.0, CopyState.FAILED)]))
    assert progress(view, (ModelName("m"), V)) == [Progress(A, 0, 0.0)]
    assert progress(view, (ModelName("nobody"), V)) == []


def test_it_reads_as_a_sentence() -> None:
    assert Progress(A, 0, 0.0).told == "loading on node 'a'"
    assert Progress(A, 1, 4.0).told == "loading on node 'a' behind 1 other, which took 4.0 s before"
    assert Progress(A, 3, 0.0).told == "loading on node 'a' behind 3 others"
