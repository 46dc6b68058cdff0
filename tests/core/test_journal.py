"""Whose death the end of a node's process was: the rules, and that a journal of any bytes can be read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import journal
from mesh.core.journal import CLOSED, SERVING, STOPPING, Charge, Held, Last
from mesh.core.suspects import Death
from mesh.core.types import ModelName, Version

SEGFAULT = (
    "Fatal Python error: Segmentation fault\n\nStack (most recent call first):\n"
    '  File "/python/ctypes/__init__.py", line 519 in string_at\n  File "{}/model.py", line 7 in infer'
)
EXIT = 'exit 3\n  File "{}/model.py", line 7 in infer\n  File "/site/mesh/node/batcher.py", line 1 in _run'


def held(name: str, *, running: int = 0, loading: int = 0, again: bool = False) -> Held:
    return Held(ModelName(name), Version("1"), f"digest of {name}", f"/models/{name}/1", running, loading, again)


RUNS, OTHER, LOADS, IDLE = held("runs", running=1), held("other", running=2), held("loads", loading=1), held("idle")
AGAIN = held("again", loading=1, again=True)


@pytest.mark.parametrize(
    ("held_", "word", "charged"),
    [
        pytest.param([RUNS, IDLE], "", {}, id="killed while one runs"),
        pytest.param([RUNS, OTHER], "", {}, id="killed while several run"),
        pytest.param([LOADS, RUNS], "", {}, id="killed while one loads"),
        pytest.param([LOADS, AGAIN], "", {"again": Death.LOADING}, id="killed in its load again"),
        pytest.param([RUNS, IDLE], "signal 11", {"runs": Death.NODE}, id="crash while one runs"),
        pytest.param([RUNS, OTHER], "signal 11", {"runs": Death.SHARED, "other": Death.SHARED}, id="several run"),
        pytest.param([RUNS, LOADS], "signal 11", {"loads": Death.LOADING}, id="one loads and one runs"),
        pytest.param([LOADS, AGAIN], "signal 11", {"loads": Death.LOADING, "again": Death.LOADING}, id="two load"),
        pytest.param([IDLE], "signal 11", {}, id="nothing is at work"),
        pytest.param([RUNS, OTHER], SEGFAULT.format("/models/other/1"), {"other": Death.NODE}, id="named"),
        pytest.param([RUNS, LOADS], SEGFAULT.format("/models/loads/1"), {"loads": Death.LOADING}, id="named, loading"),
        pytest.param([RUNS, IDLE], SEGFAULT.format("/models/idle/1"), {"idle": Death.NODE}, id="a thread of its own"),
        pytest.param([RUNS, OTHER], EXIT.format("/models/runs/1"), {"runs": Death.NODE}, id="exits"),
        pytest.param([RUNS, OTHER], SEGFAULT.format("/models/others/1"), {"runs": Death.SHARED, "other": Death.SHARED},
                     id="no longer there"),
    ],
)  # fmt: skip
def test_whose_death_it_was(held_: list[Held], word: str, charged: dict[str, Death]) -> None:
    found = journal.charges(Last(1, SERVING, tuple(held_)), word)
    assert {str(each.held.name): each.how for each in found} == charged


def test_an_end_in_order_is_nobodys_death() -> None:
    assert journal.charges(Last(1, CLOSED, (RUNS, AGAIN)), SEGFAULT.format("/models/runs/1")) == ()
    assert journal.charges(Last(1, STOPPING, (RUNS, AGAIN)), "") == ()
    assert journal.charges(Last(1, STOPPING, (RUNS,)), "exit 130") == ()


def test_a_crash_while_it_was_stopping_is_one() -> None:
    (found,) = journal.charges(Last(1, STOPPING, (RUNS,)), SEGFAULT.format("/models/runs/1"))
    assert found == Charge(RUNS, Death.NODE, 'Segmentation fault at "/models/runs/1/model.py", line 7 in infer')


def test_all_that_were_at_work_share_a_want_of_memory() -> None:
    found = journal.charges(Last(1, SERVING, (RUNS, LOADS, IDLE)), "", starved=True)
    assert [(each.held.name, each.how) for each in found] == [("loads", Death.SHARED), ("runs", Death.SHARED)]


def test_the_reason_is_one_line() -> None:
    assert journal.reason(EXIT.format("/m")) == 'it exited with code 3 at "/m/model.py", line 7 in infer'
    assert journal.reason("signal 11") == "signal 11"
    assert journal.reason("") == ""


@given(st.lists(st.tuples(st.text(max_size=30), st.integers(0, 9), st.integers(0, 2)), max_size=8))
def test_what_is_written_is_read(versions: list[tuple[str, int, int]]) -> None:
    data = bytearray(journal.SIZE)
    data[: journal.HEADER.size] = journal.HEADER.pack(journal.MAGIC, 7, SERVING, 3)
    wanted = []
    for place, (name, running, loading) in enumerate(versions):
        version = held(name, running=running, loading=loading)
        text, at = journal.text_of(version), journal.HEADER_BYTES + place * journal.SLOT_BYTES
        assert text
        data[at : at + journal.SLOT.size] = journal.SLOT.pack(running, loading, 0, len(text))
        data[at + journal.SLOT.size : at + journal.SLOT.size + len(text)] = text
        wanted.append(version)
    assert journal.read(bytes(data)) == Last(7, SERVING, tuple(wanted), 3)


@given(st.binary(max_size=3000))
def test_any_bytes_are_a_journal_or_none(data: bytes) -> None:
    assert journal.read(data) is None
    whole = (journal.MAGIC + data).ljust(journal.SIZE, data[-1:] or b"\0")[: journal.SIZE]
    last = journal.read(whole)
    assert last is not None
    journal.charges(last, "signal 11")


def test_what_is_too_long_for_a_slot_is_left_out() -> None:
    assert journal.text_of(held("x" * 600)) == b""
    name = "x" * 200
    assert json.loads(journal.text_of(held(name))) == [name, "1", f"digest of {name}", ""]
