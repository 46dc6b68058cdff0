from __future__ import annotations

from mesh.core.placement.failing import ENOUGH, TRY_AGAIN_S, Failing
from mesh.core.types import ModelName, Version
from mesh.core.view import VersionKey


def key(number: int) -> VersionKey:
    return ModelName(f"m{number}"), Version("1")


def failing(count: int, *, elsewhere: bool = True) -> Failing:
    found = Failing()
    for number in range(count):
        found.failed(key(number), "no driver", 10.0, elsewhere=elsewhere)
    return found


def test_a_few_models_that_others_hold_are_enough() -> None:
    assert failing(ENOUGH - 1).why(10.0) == ""
    told = failing(ENOUGH).why(10.0)
    assert told == f"it failed to load {ENOUGH} models that other nodes hold, 'm{ENOUGH - 1}' version 1: no driver"


def test_models_that_nobody_can_load_say_nothing_about_the_node() -> None:
    assert failing(10, elsewhere=False).why(10.0) == ""


def test_one_broken_model_again_and_again_is_one() -> None:
    found = Failing()
    for _ in range(10):
        found.failed(key(0), "broken", 10.0, elsewhere=True)
    assert found.why(10.0) == ""


def test_it_is_tried_again_after_a_while_and_one_more_failure_is_enough_then() -> None:
    found = failing(ENOUGH)
    assert found.why(10.0 + TRY_AGAIN_S) == ""
    found.failed(key(0), "no driver", 11.0 + TRY_AGAIN_S, elsewhere=True)
    assert found.why(12.0 + TRY_AGAIN_S) != ""


def test_a_load_that_goes_well_clears_it() -> None:
    found = failing(ENOUGH)
    found.loaded()
    assert found.why(10.0) == ""
