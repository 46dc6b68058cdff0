"""Deaths by the clock of the one who reads of them, whatever the clocks of those who wrote of them say."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mesh.core import suspects
from mesh.core.sightings import FIRST_TOLD_S, LAST_TOLD_S, Sightings, grown, moved
from mesh.core.suspects import Death, Suspect
from mesh.core.types import ModelName, ModelVersion, NodeId, Version

MODEL = ModelVersion(ModelName("m"), Version("1"), "python", "file:///m/1", "d", 1)
KEY = (MODEL.name, MODEL.version)
clocks = st.floats(1e6, 2e9)
"""What a machine's clock may say."""


def dead(deaths: int, now_s: float, before: Suspect | None = None) -> Suspect:
    for _ in range(deaths):
        before = suspects.died(before, MODEL, Death.WORKER, "it broke", NodeId("a"), now_s)
    assert before is not None
    return before


@given(writer_s=clocks, reader_s=clocks, after_s=st.floats(0, 59))
def test_a_quarantine_is_as_long_by_every_clock(writer_s: float, reader_s: float, after_s: float) -> None:
    seen = Sightings()
    own = seen.own(dead(3, writer_s), reader_s)
    assert abs(suspects.quarantined_s(own, "d", reader_s) - 60) < 1e-3
    # The same record once more, as a list after a lost watch brings it, is no new death.
    own = seen.own(dead(3, writer_s), reader_s + after_s)
    assert abs(suspects.quarantined_s(own, "d", reader_s + after_s) - (60 - after_s)) < 1e-3
    assert suspects.quarantined_s(own, "d", reader_s + 60.001) == 0


@given(writers_s=st.lists(clocks, min_size=4, max_size=4), gap_s=st.floats(1, 100))
def test_deaths_on_machines_whose_clocks_differ_count_as_they_came(writers_s: list[float], gap_s: float) -> None:
    """Each node reads the record by its own clock and writes it by that: as if there were one clock."""
    one: Suspect | None = None
    record: Suspect | None = None
    seen = [Sightings() for _ in writers_s]
    for number, writer_s in enumerate(writers_s):
        now_s = number * gap_s
        one = dead(1, 1e6 + now_s, one)
        mine = seen[number].own(record, writer_s + now_s) if record is not None else None
        record = dead(1, writer_s + now_s, mine)
        for reader, clock_s in zip(seen, writers_s, strict=True):
            reader.own(record, clock_s + now_s)
    assert one is not None
    assert record is not None
    assert (record.deaths, record.in_a_row, record.quarantines) == (one.deaths, one.in_a_row, one.quarantines)
    assert abs((record.until_s - record.last_s) - (one.until_s - one.last_s)) < 1e-3 or not one.until_s


def test_a_process_that_starts_later_takes_a_death_for_as_old_as_the_leader_says() -> None:
    leader, record = Sightings(), dead(3, 5e8)
    writes = 0
    for now_s in range(20_000):
        told = grown(leader.own(record, float(now_s)), float(now_s))
        if told is not None:
            record, writes = told, writes + 1
        late = Sightings().own(record, 1e9)
        left_s, right_s = suspects.quarantined_s(late, "d", 1e9), max(0.0, 60.0 - now_s)
        assert right_s <= left_s + 1e-3, "never shorter"
        assert left_s <= max(0.0, 60.0 - now_s / 2) + FIRST_TOLD_S, "at most half of the time is lost"
    assert writes <= 12
    assert not suspects.is_suspect(Sightings().own(record, 1e9), "d", 1e9)
    assert record.quiet_s >= LAST_TOLD_S


def test_a_release_and_another_death_are_news() -> None:
    seen = Sightings()
    seen.own(dead(1, 100.0), 0.0)
    assert seen.own(dead(2, 100.0), 50.0).last_s == 50.0
    seen.own(dead(1, 100.0), 60.0)
    seen.gone(KEY)
    assert seen.own(dead(1, 100.0), 90.0).last_s == 90.0
    assert repr(seen) == "<Sightings 1>"


def test_moving_leaves_what_is_no_time() -> None:
    suspect = dead(3, 100.0)
    assert moved(moved(suspect, 10.0), -10.0) == suspect
    assert moved(replace(suspect, until_s=0.0), 10.0).until_s == 0.0
