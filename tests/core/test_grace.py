"""Deletions of nodes are held back after the registry was away, and only then."""

from __future__ import annotations

from mesh.core.fold import Change, CopyChange, NodeChange, fold
from mesh.core.grace import Grace
from mesh.core.types import Copy, CopyState, ModelName, Node, NodeId, Version
from mesh.core.view import ClusterView

A, B = NodeId("a"), NodeId("b")


def node(id_: NodeId, *, draining: bool = False) -> Node:
    return Node(id_, "127.0.0.1:1", f"{id_}-1", draining=draining)


def view_of(*nodes: Node) -> ClusterView:
    return fold(ClusterView(), [NodeChange(each.id, each) for each in nodes], 1)


GONE_A: Change = NodeChange(A, None)


def after_an_outage(now_s: float = 100.0) -> Grace:
    grace = Grace(10.0)
    grace.lost()
    grace.live(now_s)
    return grace


def test_without_an_outage_a_deletion_counts_at_once() -> None:
    grace = Grace(10.0)
    grace.live(0.0)
    assert grace.step(view_of(node(A)), [GONE_A], 1.0) == (GONE_A,)
    assert grace.held == frozenset()


def test_after_an_outage_a_deletion_is_held_until_the_grace_has_passed() -> None:
    grace = after_an_outage(100.0)
    assert grace.step(view_of(node(A)), [GONE_A], 101.0) == ()
    assert grace.held == {A}
    assert grace.next_s == 110.0
    assert grace.due(109.9) == ()
    assert grace.due(110.0) == (GONE_A,)
    assert grace.held == frozenset()
    assert grace.next_s is None


def test_a_deletion_seen_after_the_grace_counts_at_once() -> None:
    assert after_an_outage(100.0).step(view_of(node(A)), [GONE_A], 110.0) == (GONE_A,)


def test_a_node_that_registers_again_is_not_dropped() -> None:
    grace = after_an_outage(100.0)
    view = view_of(node(A))
    grace.step(view, [GONE_A], 101.0)
    back: Change = NodeChange(A, node(A))
    assert grace.step(view, [back], 103.0) == (back,)
    assert grace.due(200.0) == ()


def test_deleted_and_back_in_one_batch_keeps_the_new_record_only() -> None:
    back: Change = NodeChange(A, node(A))
    grace = after_an_outage()
    assert grace.step(view_of(node(A)), [GONE_A, back], 101.0) == (back,)
    assert grace.held == frozenset()


def test_back_and_deleted_again_in_one_batch_is_held() -> None:
    back: Change = NodeChange(A, node(A))
    grace = after_an_outage()
    assert grace.step(view_of(node(A)), [back, GONE_A], 101.0) == (back,)
    assert grace.held == {A}


def test_a_draining_node_left_on_purpose() -> None:
    assert after_an_outage().step(view_of(node(A, draining=True)), [GONE_A], 101.0) == (GONE_A,)


def test_a_node_that_began_to_drain_in_the_same_batch_left_on_purpose() -> None:
    drains: Change = NodeChange(A, node(A, draining=True))
    assert after_an_outage().step(view_of(node(A)), [drains, GONE_A], 101.0) == (drains, GONE_A)


def test_a_node_that_the_view_never_had_is_not_held() -> None:
    assert after_an_outage().step(view_of(node(B)), [GONE_A], 101.0) == (GONE_A,)


def test_nothing_is_released_while_the_registry_is_away_again() -> None:
    grace = after_an_outage(100.0)
    grace.step(view_of(node(A)), [GONE_A], 101.0)
    grace.lost()
    assert grace.next_s is None
    assert grace.due(500.0) == ()
    grace.live(500.0)
    assert grace.next_s == 510.0
    assert grace.due(510.0) == (GONE_A,)


def test_a_batch_while_live_does_not_renew_the_grace() -> None:
    grace = after_an_outage(100.0)
    grace.live(109.0)
    grace.step(view_of(node(A)), [GONE_A], 109.0)
    assert grace.due(110.0) == (GONE_A,)


def test_releases_come_in_the_order_of_names() -> None:
    grace = after_an_outage(100.0)
    grace.step(view_of(node(A), node(B)), [NodeChange(B, None), GONE_A], 101.0)
    assert grace.due(110.0) == (GONE_A, NodeChange(B, None))
    assert repr(grace) == "<Grace live=True held=0 copies=0>"


M = ModelName("m"), Version("1")
COPY = Copy(*M, CopyState.READY)


def with_a_copy(record: Node) -> ClusterView:
    return fold(view_of(record), [CopyChange(record.id, M, COPY)], 2)


GONE_COPY: Change = CopyChange(A, M, None)


def test_copies_are_held_back_with_their_node_in_whichever_order_they_went() -> None:
    for batch in ([GONE_COPY, GONE_A], [GONE_A, GONE_COPY]):
        grace = after_an_outage(100.0)
        assert grace.step(with_a_copy(node(A)), batch, 101.0) == ()
        assert grace.due(110.0) == (GONE_A, GONE_COPY)
        assert grace.next_s is None


def test_a_copy_that_went_after_its_node_is_held_back_too() -> None:
    grace = after_an_outage(100.0)
    view = with_a_copy(node(A))
    assert grace.step(view, [GONE_A], 101.0) == ()
    assert grace.step(view, [GONE_COPY], 102.0) == ()


def test_a_copy_that_goes_from_a_node_that_stays_is_gone_at_once() -> None:
    assert after_an_outage(100.0).step(with_a_copy(node(A)), [GONE_COPY], 101.0) == (GONE_COPY,)


def test_a_node_that_is_back_has_its_grace_to_tell_of_its_copies() -> None:
    grace = after_an_outage(100.0)
    view = with_a_copy(node(A))
    grace.step(view, [GONE_A, GONE_COPY], 101.0)
    back: Change = NodeChange(A, node(A))
    assert grace.step(view, [back], 103.0) == (back,)
    told: Change = CopyChange(A, M, COPY)
    assert grace.step(view, [told], 104.0) == (told,)
    assert grace.next_s is None
    grace.step(view, [GONE_A, GONE_COPY], 105.0)
    grace.step(view, [back], 106.0)
    assert grace.due(110.0) == (GONE_COPY,)


def test_another_process_under_the_id_has_other_copies() -> None:
    grace = after_an_outage(100.0)
    view = with_a_copy(node(A))
    grace.step(view, [GONE_A, GONE_COPY], 101.0)
    other: Change = NodeChange(A, Node(A, "127.0.0.1:1", "another"))
    assert grace.step(view, [other], 103.0) == (other, GONE_COPY)
    assert grace.next_s is None
