"""Windows follow the distance: what a peer may send is what fills the way to it, and no more where it is near."""

from __future__ import annotations

import heapq
from itertools import count

import pytest

from mesh.wire.bandwidth import EVIDENCE_S, FAR_S, Bandwidth
from mesh.wire.connection import Connection
from mesh.wire.flow import Bounds
from tests.wire.pair import REQUEST, Recorder, Served, said

MIB = 1024 * 1024
STREAM = 128 * 1024


def upload(bounds: Bounds, size: int, trip_s: float, times: int = 1) -> tuple[list[float], Served]:
    """Send `size` bytes `times` times to a server that is half of `trip_s` away, on a line without a limit.

    Return the seconds that each took, and the server.
    """
    served, asking = Served(bounds), Connection(Bounds())
    served.connection.bandwidth.greeted(1.0)
    asking.greet()
    took = []
    now_s, order = 1.0, count()
    on_the_way: list[tuple[float, int, bool, bytes]] = []

    def send() -> None:
        for to_server, connection in ((True, asking), (False, served.connection)):
            while data := said(connection):
                heapq.heappush(on_the_way, (now_s + trip_s / 2, next(order), to_server, data))

    send()
    for _ in range(times):
        began_s = now_s
        stream = asking.open(REQUEST, Recorder(asking))
        asking.send_data(stream, bytes(size), end=True)
        calls = len(served.calls)
        send()
        while len(served.calls) == calls or not served.calls[-1].ended:
            now_s, _, to_server, data = heapq.heappop(on_the_way)
            (served.connection if to_server else asking).receive(data, now_s)
            send()
        took.append(now_s - began_s)
        assert len(served.calls[-1].whole) == size
    return took, served


@pytest.mark.parametrize("trip_s", [0.01, 0.05, 0.15])
def test_a_large_upload_takes_few_round_trips_and_the_next_one_begins_where_it_ended(trip_s: float) -> None:
    took, served = upload(Bounds(max_stream_window=STREAM), 16 * MIB, trip_s, times=4)
    print([each / trip_s for each in took], served.connection.bandwidth)
    assert took[0] <= 12 * trip_s + EVIDENCE_S
    assert took[-1] <= 2 * trip_s
    assert served.connection.bandwidth.window <= served.connection.bounds.far_window


def test_a_near_peer_gets_no_more_room_than_a_stream_that_is_read() -> None:
    _, served = upload(Bounds(max_stream_window=STREAM), 16 * MIB, FAR_S / 4, times=4)
    assert served.connection.bandwidth.window == served.connection.bounds.stream_window


BUSY_MS = {
    "eight callers on each of four connections": [
        7.2,
        4.9,
        7.4,
        7.8,
        5.9,
        24.1,
        3.3,
        2.6,
        14.1,
        4.2,
        8.7,
        4.9,
        25.0,
        3.6,
    ],
    "another of them": [2.4, 3.4, 10.1, 8.3, 15.1, 7.5, 3.2, 8.2, 1.1, 8.5, 8.6, 12.4, 4.9, 4.2],
    "two callers on each": [2.5, 1.8, 2.5, 2.0, 1.9, 1.8, 2.4, 1.4, 1.8, 1.6, 1.5, 0.7, 0.9, 3.2],
}
"""Round trips over loopback with 600 KB from every caller, on two cores that had other things to do as well."""


def widened(trips_s: list[float], rate: float = 1e9) -> bool:
    """Tell whether windows grow on a connection whose PINGs come back after these times, with data all the while."""
    bandwidth, now_s = Bandwidth(64 * 1024, 24 * MIB), 100.0
    for trip_s in trips_s:
        if bandwidth.is_due(now_s):
            bandwidth.begin(now_s, int(rate * now_s))
            now_s += trip_s
            bandwidth.echoed(now_s)
        else:
            now_s += trip_s
    return bandwidth.window > 64 * 1024


@pytest.mark.parametrize("who", BUSY_MS)
def test_a_busy_peer_next_door_is_not_taken_for_one_that_is_far(who: str) -> None:
    assert not widened([each / 1e3 for each in BUSY_MS[who]])


@pytest.mark.parametrize("trip_s", [0.0015, 0.01, 0.05, 0.15])
def test_a_peer_is_far_although_its_round_trips_are_not_all_alike(trip_s: float) -> None:
    assert widened([trip_s * factor for factor in (1.4, 1.0, 1.8, 1.2, 1.0, 1.3, 1.1) * 10])
