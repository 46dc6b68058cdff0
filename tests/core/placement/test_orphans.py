"""Records of the registry whose version is gone."""

from __future__ import annotations

from mesh.core.placement.orphans import AT_ONCE, Orphans


def test_one_is_deleted_when_it_was_seen_alone_for_long_enough() -> None:
    orphans: Orphans[str] = Orphans(30.0)
    assert orphans.step(["a"], 100.0) == []
    assert orphans.step(["a", "b"], 129.9) == []
    assert orphans.step(["a", "b"], 130.0) == ["a"]
    assert orphans.step(["b"], 160.0) == ["b"]


def test_one_whose_version_came_back_begins_anew() -> None:
    orphans: Orphans[str] = Orphans(30.0)
    orphans.step(["a"], 0.0)
    orphans.step([], 20.0)
    assert orphans.step(["a"], 40.0) == []
    assert orphans.step(["a"], 70.0) == ["a"]


def test_one_that_could_not_be_deleted_waits_as_long_again() -> None:
    orphans: Orphans[str] = Orphans(30.0)
    orphans.step(["a"], 0.0)
    assert orphans.step(["a"], 30.0) == ["a"]
    orphans.kept("a", 30.0)
    assert orphans.step(["a"], 59.0) == []
    assert orphans.step(["a"], 60.0) == ["a"]


def test_a_pass_deletes_the_oldest_and_not_too_many() -> None:
    orphans: Orphans[int] = Orphans(1.0)
    orphans.step([7], 0.0)
    orphans.step(range(2 * AT_ONCE), 0.5)
    due = orphans.step(range(2 * AT_ONCE), 10.0)
    assert due[0] == 7
    assert len(set(due)) == AT_ONCE
