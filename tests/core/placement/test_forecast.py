from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from mesh.core.placement.forecast import HALF_LIFE_S, SUPPOSED, Forecast, History, Learner, age_of, level_of

gaps = st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1e5)), max_size=50)


def test_heat_halves_every_half_life() -> None:
    history = History().asked(8, 1000.0)
    assert history.at(1000.0 + 2 * HALF_LIFE_S) == 2.0
    assert history.asked(1, 1000.0 + HALF_LIFE_S) == History(5.0, 1000.0 + HALF_LIFE_S)


def test_before_anything_is_learned_used_last_and_used_often_are_better() -> None:
    now_s = 1e6
    lately, often, both = History(1, now_s - 10), History(500, now_s - 600), History(500, now_s - 10)
    once = History(1, now_s - 6000)
    rates = [SUPPOSED.rate(each, now_s) for each in (once, lately, both)]
    assert rates == sorted(rates)
    assert SUPPOSED.rate(once, now_s) < SUPPOSED.rate(often, now_s) < SUPPOSED.rate(both, now_s)
    assert SUPPOSED.rate(History(), now_s) == 0.0


@given(st.floats(0, 1e12), st.floats(0, 1e12))
def test_rows_and_columns_are_in_order(one: float, other: float) -> None:
    one, other = sorted((one, other))
    assert level_of(one) <= level_of(other)
    assert age_of(one) <= age_of(other)
    SUPPOSED.rate(History(one, 1.0), 1.0 + other)


@given(gaps)
def test_every_model_second_is_counted_once(asked: list[tuple[int, float]]) -> None:
    """In the end all time since each model's first request is in the table, but for the column each is in now."""
    learner: Learner[int] = Learner()
    now_s, first_s = 0.0, dict[int, float]()
    for model, gap_s in asked:
        # Short of what makes the table forget, so that the sums can be compared.
        now_s += gap_s / 1e5 * 400 / max(1, len(asked))
        first_s.setdefault(model, now_s)
        learner.asked(model, 1, now_s)
    learner.passed(now_s)
    counted = sum(map(sum, learner._seconds))
    lived = sum(now_s - begun_s for begun_s in first_s.values())
    waiting = sum(now_s - history.last_s for history in learner.histories.values())
    assert lived - waiting - 1e-6 <= counted <= lived + 1e-6
    assert sum(map(sum, learner._requests)) == len(asked) - len(first_s)


def learned(next_model: list[int], step_s: float = 1.0) -> tuple[Forecast, Learner[int], float]:
    learner: Learner[int] = Learner()
    now_s = 1e6
    for model in next_model:
        now_s += step_s
        learner.asked(model, 1, now_s)
    return learner.forecast(), learner, now_s


def test_where_popularity_is_steady_often_beats_lately() -> None:
    chance = random.Random(1)
    models = [chance.randrange(10) if chance.random() < 0.5 else chance.randrange(10, 3000) for _ in range(20_000)]
    forecast, _, now_s = learned(models)
    favourite, newcomer = History(500.0, now_s - 60), History(1.0, now_s - 5)
    assert forecast.rate(favourite, now_s) > 5 * forecast.rate(newcomer, now_s)


def test_where_models_come_in_bursts_lately_beats_often() -> None:
    models = [burst for burst in range(100) for _ in range(100)]
    forecast, _, now_s = learned(models)
    finished, running = History(100.0, now_s - 200), History(2.0, now_s - 1)
    assert forecast.rate(running, now_s) > 20 * forecast.rate(finished, now_s)


def test_a_forgotten_model_keeps_the_table_right() -> None:
    learner: Learner[str] = Learner()
    learner.asked("a", 1, 1.0)
    learner.forget("a")
    learner.passed(100.0)
    assert sum(map(sum, learner._seconds)) == 0.0
