from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mesh.core.traffic.balance import SUSPECT_S, Balancer
from mesh.core.types import Copy, CopyState, ModelName, NodeId, Version
from mesh.core.view import Host, Located

COPY = Copy(ModelName("m"), Version("1"), CopyState.READY)


def located(*names: str, incarnation: str = "i") -> list[Located]:
    return [Located(Host(NodeId(name), f"{name}:1", incarnation), COPY) for name in names]


def test_the_less_loaded_of_two_wins() -> None:
    balancer = Balancer()
    balancer.picked(NodeId("a"))
    picks = {balancer.pick(located("a", "b"), tried=(), now_s=0, u=u / 100).node.id for u in range(100)}  # type: ignore[union-attr] # two usable
    assert picks == {"b"}


@given(st.integers(2, 6), st.floats(0, 1, exclude_max=True))
def test_any_random_number_names_two_different_copies(count: int, u: float) -> None:
    candidates = located(*"abcdef"[:count])
    chosen = Balancer().pick(candidates, tried=(), now_s=0, u=u)
    assert chosen in candidates


def test_every_copy_is_picked_when_all_are_idle() -> None:
    candidates = located("a", "b", "c", "d")
    picks = Counter(Balancer().pick(candidates, tried=(), now_s=0, u=u / 997).node.id for u in range(997))  # type: ignore[union-attr] # usable
    assert len(picks) == 4


def test_what_was_tried_is_not_picked_again() -> None:
    assert Balancer().pick(located("a"), tried=["a"], now_s=0, u=0.5) is None  # type: ignore[list-item] # a NewType's value


def test_a_failed_node_is_passed_over_until_its_time_is_over() -> None:
    balancer = Balancer()
    (only,) = located("a")
    balancer.failed(only.node, 10.0)
    assert balancer.pick([only], tried=(), now_s=10.0 + SUSPECT_S / 2, u=0) is None
    assert balancer.pick([only], tried=(), now_s=10.0 + SUSPECT_S, u=0) is only


def test_a_restarted_node_is_another_process() -> None:
    balancer = Balancer()
    (before,) = located("a", incarnation="1")
    (after,) = located("a", incarnation="2")
    balancer.failed(before.node, 0.0)
    assert balancer.pick([after], tried=(), now_s=0.1, u=0) is after


@given(st.text(min_size=1))
def test_a_sequence_stays_on_its_copy_when_another_copy_leaves(sequence: str) -> None:
    every = located("a", "b", "c")
    pinned = Balancer().pin(every, sequence, tried=(), now_s=0)
    assert pinned is not None
    others = [each for each in every if each is not pinned]
    assert Balancer().pin([pinned, others[0]], sequence, tried=(), now_s=0) is pinned


def test_a_node_that_left_is_forgotten_only_when_nothing_is_outstanding() -> None:
    balancer = Balancer()
    balancer.picked(NodeId("a"))
    balancer.forget(())
    balancer.done(NodeId("a"), reported=3)
    balancer.forget(())
    assert repr(balancer) == "<Balancer  suspects=[]>"


def test_a_silent_node_is_passed_over_until_something_comes_from_it() -> None:
    balancer = Balancer()
    a, b = located("a", "b")
    balancer.silence(a.node.address, True)
    for now_s in (0.0, 1e6):
        assert balancer.pick([a, b], tried=(), now_s=now_s, u=0) is b
        assert balancer.pick([a], tried=(), now_s=now_s, u=0) is None
        assert balancer.pin([a], "s", tried=(), now_s=now_s) is None
    assert balancer.suspects
    balancer.silence(a.node.address, False)
    assert balancer.pick([a], tried=(), now_s=0, u=0) is a
    assert not balancer.suspects
