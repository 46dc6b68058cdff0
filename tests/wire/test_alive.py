"""When a peer is asked whether it lives, and what its silence means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.wire.alive import AMONG_OURSELVES, LOOK_S, Alive, Asking, Patience, Silence

ASKING = Asking(ask_s=0.5, least_s=1.0, most_s=1.5, long_s=0.5, gone_s=20.0)


class Peer:
    """A connection and its peer, on a clock of the test's."""

    def __init__(self) -> None:
        self.alive = Alive(ASKING, Patience(ASKING))
        self.now_s = self.heard_s = 100.0
        self.echoed_s = 0.0
        self.pings = 0
        self.waits = True

    def look(self) -> Silence:
        self.pings += self.alive.look(self.now_s, self.heard_s, self.echoed_s, waits=self.waits)
        self.now_s += self.alive.next_s(self.now_s, waits=self.waits)
        return self.alive.silence

    def until(self, silence: Silence) -> float:
        """Return how long the peer has said nothing when it is taken for so silent."""
        for _ in range(1000):
            looked_s = self.now_s
            if self.look() is silence:
                return looked_s - self.heard_s
        raise AssertionError(self.alive)

    def echo(self) -> None:
        self.heard_s = self.echoed_s = self.now_s


def test_a_connection_that_nobody_waits_for_is_never_asked() -> None:
    peer = Peer()
    peer.waits = False
    for _ in range(100):
        assert peer.look() is Silence.NONE
    assert not peer.pings


def test_a_connection_on_which_things_come_is_never_asked() -> None:
    peer = Peer()
    for _ in range(100):
        peer.heard_s = peer.now_s
        assert peer.look() is Silence.NONE
    assert not peer.pings


def test_silence_is_noticed_in_time_and_asked_about_once() -> None:
    peer = Peer()
    assert peer.until(Silence.SILENT) <= 2.0
    assert peer.until(Silence.LONG) <= 2.75
    assert peer.until(Silence.GONE) <= 21.5
    assert peer.pings == 1


@pytest.mark.parametrize("took_s", [0.001, 0.3, 0.9])
def test_who_answers_late_is_asked_again_and_never_taken_for_silent(took_s: float) -> None:
    peer = Peer()
    for _ in range(200):
        pings, asked_s = peer.pings, peer.now_s
        assert peer.look() is Silence.NONE
        if peer.pings > pings:
            while peer.now_s < asked_s + took_s:
                assert peer.look() is Silence.NONE
            peer.echo()
    assert peer.pings > 10


def test_anything_that_comes_ends_a_silence() -> None:
    peer = Peer()
    peer.until(Silence.SILENT)
    peer.heard_s = peer.now_s
    assert peer.look() is Silence.NONE


def test_a_peer_that_stops_between_data_and_the_echo_is_noticed() -> None:
    peer = Peer()
    while not peer.pings:
        peer.look()
    peer.heard_s = peer.now_s
    assert peer.until(Silence.SILENT) <= 2.0


def test_time_in_which_this_process_stood_still_is_not_counted() -> None:
    peer = Peer()
    while not peer.pings:
        peer.look()
    peer.now_s += 60
    assert peer.look() is Silence.NONE
    peer.echo()
    assert peer.look() is Silence.NONE


def test_a_call_on_a_connection_that_was_idle_for_long_asks_at_once() -> None:
    peer = Peer()
    peer.waits = False
    for _ in range(100):
        peer.look()
    peer.waits = True
    called_s = peer.now_s
    while peer.look() is not Silence.SILENT:
        pass
    assert peer.now_s - called_s <= 2.0


@given(st.lists(st.floats(0, 100)))
def test_patience_stays_within_its_bounds(took_s: list[float]) -> None:
    patience = Patience(AMONG_OURSELVES)
    for each in took_s:
        patience.measured(each)
        assert AMONG_OURSELVES.least_s <= patience.s <= AMONG_OURSELVES.most_s


def test_answers_that_come_late_make_patient_and_prompt_ones_less_so() -> None:
    patience = Patience(ASKING)
    for took_s in (0.01, 0.9, 0.01, 1.2):
        patience.measured(took_s)
    late_s = patience.s
    for _ in range(60):
        patience.measured(0.01)
    assert late_s > 1.2
    assert patience.s == ASKING.least_s


def test_a_standstill_is_no_measurement() -> None:
    patience = Patience(ASKING)
    patience.measured(40.0)
    assert patience.s == ASKING.least_s


def test_looks_are_apart() -> None:
    """A look costs something on each connection: never more than every few hundredths of a second."""
    peer = Peer()
    for _ in range(100):
        before_s = peer.now_s
        peer.look()
        assert peer.now_s - before_s >= LOOK_S / 5
