from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mesh.core.fold import ModelChange, PlacementChange, fold
from mesh.core.reconcile import Abandon, Desired, Load, Unload, desired_of, reconcile
from mesh.core.types import Copy, CopyState, ModelName, ModelVersion, NodeId, Placement, Version
from mesh.core.view import ClusterView

MODEL = ModelVersion(ModelName("m"), Version("1"), "onnx", "file:///r/m/1", "d", 1)
KEY = (MODEL.name, MODEL.version)
READY = Copy(*KEY, CopyState.READY, requested_s=5.0, digest="d")


def wanted(requested_s: float = 5.0, digest: str = "d") -> dict[tuple[ModelName, Version], Desired]:
    return {KEY: Desired(replace(MODEL, digest=digest), requested_s)}


def test_what_is_desired_and_absent_is_loaded() -> None:
    assert reconcile(wanted(), {}) == [Load(MODEL, 5.0)]


def test_what_is_held_as_desired_is_left_alone() -> None:
    assert reconcile(wanted(), {KEY: READY}) == []


def test_other_files_are_loaded_again() -> None:
    assert reconcile(wanted(digest="new"), {KEY: READY}) == [Load(replace(MODEL, digest="new"), 5.0)]


def test_a_failure_is_tried_again_for_a_later_request_only() -> None:
    failed = replace(READY, state=CopyState.FAILED)
    assert reconcile(wanted(5.0), {KEY: failed}) == []
    assert reconcile(wanted(5.1), {KEY: failed}) == [Load(MODEL, 5.1)]


def test_a_failure_is_tried_again_for_other_files() -> None:
    failed = replace(READY, state=CopyState.FAILED)
    assert reconcile(wanted(digest="new"), {KEY: failed}) == [Load(replace(MODEL, digest="new"), 5.0)]


def test_what_is_not_desired_is_unloaded_and_its_load_given_up() -> None:
    assert reconcile({}, {KEY: READY}) == [Unload(KEY)]
    assert reconcile({}, {KEY: replace(READY, state=CopyState.FAILED)}) == [Unload(KEY)]
    assert reconcile({}, {KEY: replace(READY, state=CopyState.LOADING)}) == [Abandon(KEY)]
    assert reconcile({}, {KEY: replace(READY, state=CopyState.DRAINING)}) == []


@given(st.sampled_from(CopyState), st.floats(0, 10), st.sampled_from(["d", "new"]))
def test_doing_what_it_says_leaves_nothing_to_do(state: CopyState, requested_s: float, digest: str) -> None:
    held = {KEY: replace(READY, state=state)}
    for action in reconcile(wanted(requested_s, digest), held):
        assert isinstance(action, Load)
        held[KEY] = replace(READY, requested_s=action.requested_s, digest=action.model.digest)
    assert reconcile(wanted(requested_s, digest), held) == []


def test_a_node_wants_what_is_placed_on_it_described_and_not_off() -> None:
    def view(placement: Placement, *, described: bool = True) -> ClusterView:
        changes = [PlacementChange(KEY, placement)]
        return fold(ClusterView(), [*changes, ModelChange(KEY, MODEL)] if described else changes, 1)

    here = Placement(*KEY, nodes=(NodeId("a"),), requested_s=5.0)
    assert desired_of(view(here), NodeId("a")) == wanted()
    assert desired_of(view(here), NodeId("b")) == {}
    assert desired_of(view(here, described=False), NodeId("a")) == {}
    assert desired_of(view(replace(here, off=True)), NodeId("a")) == {}
