from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest

from mesh.core.errors import Churn, LoadFailed, NoCapacity
from mesh.core.fold import Change, ModelChange, PipelineChange, PlacementChange, fold
from mesh.core.pipeline.spec import Pipeline, Step
from mesh.core.placement.cold import Place, Refused, Serving, Waiting, cold_step
from mesh.core.types import (
    Copy,
    CopyState,
    Device,
    DeviceKind,
    ModelName,
    ModelVersion,
    Node,
    NodeId,
    Placement,
    Version,
)
from mesh.core.view import ClusterView
from tests.fixtures.registered import registered

MODEL = ModelVersion(ModelName("m"), Version("1"), "onnx", "file:///models/m/1", "d", size_bytes=100)
NOW_S = 1000.0
MIB = 1024 * 1024


def node(
    name: str, *copies: Copy, free: int = 1000, draining: bool = False, root: str = "file:///models"
) -> list[Change]:
    device = Device(DeviceKind.CPU, 0, "cpu", 1000 * MIB, free * MIB)
    record = Node(NodeId(name), f"{name}:1", "i", devices=(device,), draining=draining, repositories=(root,))
    return registered(record, copies)


def copy(state: CopyState, *, requested_s: float = 0.0, error: str = "", pause_s: float = 10.0) -> Copy:
    return Copy(
        MODEL.name,
        MODEL.version,
        state,
        requested_s=requested_s,
        error=error,
        pause_s=pause_s if state is CopyState.FAILED else 0.0,
    )


def view_of(*nodes: list[Change]) -> ClusterView:
    return fold(ClusterView(), chain.from_iterable(nodes), 1)


def placed(*names: str, requested_s: float = NOW_S - 1) -> Placement:
    return Placement(MODEL.name, MODEL.version, tuple(NodeId(name) for name in names), requested_s=requested_s)


def test_a_ready_copy_needs_nothing() -> None:
    view = view_of(node("a", copy(CopyState.READY)))
    assert cold_step(view, MODEL, None, avoid=(), now_s=NOW_S, since_s=NOW_S) == Serving()


def test_a_cold_model_goes_where_most_is_free() -> None:
    step = cold_step(
        view_of(node("a", free=300), node("b", free=900)), MODEL, None, avoid=(), now_s=NOW_S, since_s=NOW_S
    )
    assert step == Place(placed("b", requested_s=NOW_S))


def test_a_load_in_progress_is_waited_for() -> None:
    step = cold_step(view_of(node("a"), node("b")), MODEL, placed("a"), avoid=(), now_s=NOW_S, since_s=NOW_S)
    assert step == Waiting((NodeId("a"),), "loading on a")


def test_a_dead_node_in_the_placement_does_not_count() -> None:
    step = cold_step(view_of(node("b")), MODEL, placed("a"), avoid=(), now_s=NOW_S, since_s=NOW_S)
    assert step == Place(placed("b", requested_s=NOW_S))


def test_a_node_that_just_failed_is_passed_over_though_it_is_still_registered() -> None:
    view = view_of(node("a", copy(CopyState.READY)), node("b"))
    step = cold_step(view, MODEL, placed("a"), avoid={NodeId("a")}, now_s=NOW_S, since_s=NOW_S)
    assert step == Place(placed("b", requested_s=NOW_S))


def test_a_failed_load_is_tried_on_another_node_and_the_first_stays_excluded() -> None:
    failed = node("a", copy(CopyState.FAILED, requested_s=NOW_S - 1, error="boom"))
    step = cold_step(view_of(failed, node("b")), MODEL, placed("a"), avoid=(), now_s=NOW_S, since_s=NOW_S)
    assert step == Place(placed("a", "b"))


def test_a_load_that_failed_everywhere_is_refused_with_the_error() -> None:
    failed = [node(name, copy(CopyState.FAILED, requested_s=NOW_S - 1, error="boom")) for name in "ab"]
    step = cold_step(view_of(*failed), MODEL, placed("a", "b"), avoid=(), now_s=NOW_S, since_s=NOW_S)
    assert isinstance(step, Refused)
    assert isinstance(step.error, LoadFailed)
    assert step.error.message == "failed to load 'm', boom"


def test_a_failed_load_is_tried_again_after_a_while() -> None:
    failed = node("a", copy(CopyState.FAILED, requested_s=NOW_S - 1, error="boom", pause_s=0.0))
    step = cold_step(view_of(failed), MODEL, placed("a"), avoid=(), now_s=NOW_S, since_s=NOW_S)
    assert step == Place(placed("a", requested_s=NOW_S))


@pytest.mark.parametrize("ahead_s", [0.0, 3600.0], ids=["at the same time", "by a clock that is ahead"])
@pytest.mark.parametrize("forced", [True, False], ids=["operator", "caller"])
def test_a_request_is_later_than_the_one_before_it_whatever_its_clock_says(ahead_s: float, forced: bool) -> None:
    asked_s = NOW_S + ahead_s
    failed = node("a", copy(CopyState.FAILED, requested_s=asked_s, error="boom", pause_s=10.0 if forced else 0.0))
    step = cold_step(
        view_of(failed), MODEL, placed("a", requested_s=asked_s), avoid=(), now_s=NOW_S, since_s=NOW_S, forced=forced
    )
    assert isinstance(step, Place)
    assert step.placement.nodes == ("a",)
    assert step.placement.requested_s > asked_s


def test_a_failure_says_for_how_long_the_node_is_not_asked_again() -> None:
    failed = node("a", copy(CopyState.FAILED, requested_s=NOW_S + 3600, error="boom", pause_s=20.0))
    asked = placed("a", requested_s=NOW_S + 3600)
    step = cold_step(view_of(failed), MODEL, asked, avoid=(), now_s=NOW_S, since_s=NOW_S)
    assert isinstance(step, Refused)
    assert step.error.retry_after_s == 20.0


def test_an_operators_load_tries_again_at_once() -> None:
    failed = node("a", copy(CopyState.FAILED, requested_s=NOW_S - 1, error="boom"))
    step = cold_step(view_of(failed), MODEL, placed("a"), avoid=(), now_s=NOW_S, since_s=NOW_S, forced=True)
    assert step == Place(placed("a", requested_s=NOW_S))


def test_no_node_yet_is_waited_for() -> None:
    step = cold_step(view_of(), MODEL, None, avoid=(), now_s=NOW_S, since_s=NOW_S)
    assert step == Waiting((), "no node is registered")


def test_nodes_that_can_never_hold_it_are_named_in_the_refusal() -> None:
    step = cold_step(view_of(node("a", root="file:///other")), MODEL, None, avoid=(), now_s=NOW_S, since_s=NOW_S)
    assert isinstance(step, Refused)
    assert isinstance(step.error, NoCapacity)
    assert "node 'a': it reads file:///other, not file:///models/m/1" in step.error.message


def test_a_draining_node_gets_nothing_new() -> None:
    step = cold_step(view_of(node("a", draining=True), node("b")), MODEL, None, avoid=(), now_s=NOW_S, since_s=NOW_S)
    assert step == Place(placed("b", requested_s=NOW_S))


def test_memory_that_is_all_in_use_is_waited_for_a_moment_and_then_refused() -> None:
    view = view_of(node("a", free=0))
    assert isinstance(cold_step(view, MODEL, None, avoid=(), now_s=NOW_S, since_s=NOW_S - 1), Waiting)
    step = cold_step(view, MODEL, None, avoid=(), now_s=NOW_S, since_s=NOW_S - 60)
    assert isinstance(step, Refused)
    assert isinstance(step.error, Churn)


def test_an_operators_load_waits_for_the_load_that_goes_on_where_no_other_node_can_hold_it() -> None:
    view = view_of(node("a", copy(CopyState.LOADING)), node("b", root="file:///other"))
    step = cold_step(view, MODEL, placed("a"), avoid=(), now_s=NOW_S, since_s=NOW_S, forced=True)
    assert step == Waiting((NodeId("a"),), "loading on a")
    off = replace(placed("a"), off=True)
    step = cold_step(view, MODEL, off, avoid=(), now_s=NOW_S, since_s=NOW_S, forced=True)
    assert step == Place(replace(off, off=False, requested_s=NOW_S))
    ready = view_of(node("a", copy(CopyState.READY)), node("b", root="file:///other"))
    step = cold_step(ready, MODEL, placed("a"), avoid=(), now_s=NOW_S, since_s=NOW_S, forced=True)
    assert step == Serving(), "it became ready before the operator's load was looked at"


def test_a_step_goes_where_the_other_models_of_its_pipeline_are_while_memory_allows() -> None:
    other = replace(MODEL, name=ModelName("other"))
    graph = Pipeline("p", (Step("a", MODEL.name), Step("b", other.name)), {})
    known: list[Change] = [
        ModelChange((MODEL.name, MODEL.version), MODEL),
        ModelChange((other.name, other.version), other),
        PipelineChange("p", graph),
    ]
    for home, free, goes in (("a", 600, "a"), ("b", 600, "b"), ("a", 0, "b")):
        nodes = [node("a", free=free if home == "a" else 900), node("b", free=free if home == "b" else 900)]
        there = PlacementChange((other.name, other.version), Placement(other.name, other.version, (NodeId(home),)))
        view = fold(view_of(*nodes), [*known, there], 2)
        step = cold_step(view, MODEL, None, avoid=(), now_s=NOW_S, since_s=NOW_S)
        assert isinstance(step, Place)
        assert step.placement.nodes == (goes,)
