from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.placement.evict import MORE, ORDERED_PER_S, POINTS, Idle, Order, curve, in_order, victims
from mesh.core.types import ModelName, Version

MB = 1_000_000


def idle(name: str, size: int, loss: float = 1.0, last_used_s: float = 0.0) -> Idle:
    return Idle((ModelName(name), Version("1")), size, loss, last_used_s)


idles = st.lists(
    st.builds(
        Idle,
        key=st.integers(0, 1000).map(lambda number: (ModelName(f"m{number}"), Version("1"))),
        bytes=st.integers(1, 40),
        loss=st.floats(0, 10),
        last_used_s=st.floats(0, 10),
    ),
    max_size=8,
    unique_by=lambda copy: copy.key,
)


@given(idles, st.integers(-10, 300))
def test_victims_make_room_and_none_of_them_is_needless(copies: list[Idle], missing: int) -> None:
    going = victims(missing, in_order(copies))
    if going is None:
        assert missing > sum(copy.bytes for copy in copies)
        return
    freed = sum(copy.bytes for copy in going)
    assert freed >= missing
    assert all(freed - copy.bytes < missing for copy in going)
    assert len({copy.key for copy in going}) == len(going)


@given(idles)
def test_a_curve_grows_and_ends_with_all_that_may_go(copies: list[Idle]) -> None:
    points = curve(in_order(copies))
    assert len(points) <= POINTS
    assert list(points) == sorted(points)
    assert [loss for _, loss in points] == sorted(loss for _, loss in points)
    assert (points[-1][0] if points else 0) == sum(copy.bytes for copy in copies)


@given(st.lists(st.integers(1, 40), min_size=300, max_size=300))
def test_a_curve_of_many_copies_still_ends_with_all(sizes: list[int]) -> None:
    points = curve([idle(f"m{number:03}", size) for number, size in enumerate(sizes)])
    assert len(points) == POINTS
    assert points[-1][0] == sum(sizes)


def test_what_is_worth_least_goes_first() -> None:
    order = in_order([idle("loved", 10, 5.0), idle("liked", 10, 2.0), idle("forgotten", 10, 0.1)])
    assert victims(10, order) == [idle("forgotten", 10, 0.1)]


def test_of_equals_the_one_used_longest_ago_goes() -> None:
    order = in_order([idle("new", 10, last_used_s=9.0), idle("old", 10, last_used_s=1.0)])
    assert victims(10, order) == [idle("old", 10, last_used_s=1.0)]


def test_one_gigabyte_takes_one_large_copy_rather_than_nearly_everything() -> None:
    small = [idle(f"small-{number:03}", 10 * MB, 0.01) for number in range(100)]
    large = idle("large", 1000 * MB, 0.5)
    assert victims(1000 * MB, in_order([*small, large])) == [large]


def test_small_copies_in_use_by_many_are_spared_where_a_large_idle_one_makes_room() -> None:
    small = [idle(f"small-{number:03}", 10 * MB, 0.0001) for number in range(3)]
    large = idle("large", 1000 * MB, 0.5)
    going = victims(900 * MB, in_order([*small, large]))
    assert going == [large]


COPIES = st.lists(
    st.builds(
        Idle,
        st.just((ModelName("m"), Version("1"))),
        st.integers(1, 50),
        st.floats(0, 10),
        st.floats(0, 100),
    ),
    max_size=40,
).map(lambda found: [replace(copy, key=(ModelName(f"m{at}"), Version("1"))) for at, copy in enumerate(found)])


@given(COPIES, st.integers(1, 400), st.sets(st.integers(0, 39)), st.sets(st.integers(0, 39)))
def test_an_order_gives_what_sorting_anew_would_whatever_went_or_was_used_since(
    copies: list[Idle], missing: int, gone: set[int], used: set[int]
) -> None:
    order = Order(copies, 0.0)

    def now(copy: Idle) -> Idle | None:
        at = int(copy.key[0][1:])
        return None if at in gone else replace(copy, last_used_s=200.0) if at in used else copy

    left = in_order(copy for at, copy in enumerate(copies) if at not in gone | used)
    for _ in range(2):
        first = order.first(missing, now)
        assert first == left[: len(first)]
        enough = sum(copy.bytes for copy in first) >= missing
        assert enough or first == left
        if len(left) <= MORE:
            assert victims(missing, first) == victims(missing, left)


@given(COPIES)
def test_the_curve_of_an_order_is_that_of_its_copies(copies: list[Idle]) -> None:
    order, left = Order(copies, 0.0), in_order(copies)
    for went in range(len(copies) + 1):
        assert [size for size, _ in order.curve()] == [size for size, _ in curve(left[went:])]
        assert [loss for _, loss in order.curve()] == pytest.approx([loss for _, loss in curve(left[went:])])
        last = left[went].key if went < len(left) else None
        order.first(1, lambda copy, last=last: None if copy.key == last else copy)  # type: ignore[misc] # bound now


def test_many_copies_are_put_in_order_as_rarely_as_their_number_says() -> None:
    looked = 0

    def now(copy: Idle) -> Idle:
        nonlocal looked
        looked += 1
        return copy

    copies = [Idle((ModelName(f"m{at}"), Version("1")), 10, float(at)) for at in range(5000)]
    order = Order(copies, 100.0)
    assert not order.is_old(100.0 + 4999 / ORDERED_PER_S)
    assert order.is_old(100.1 + 5000 / ORDERED_PER_S)
    assert victims(10, order.first(10, now)) == [copies[0]]
    assert looked <= MORE + 1
