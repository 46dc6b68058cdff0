"""How far away a peer is, and the receive window that keeps data from there flowing: bandwidth times delay.

As gRPC's own estimators do it: a PING goes out when data comes, and what has come until its echo is what is on its way
at a time. Only where the peer is far: next door it is the two processes that one waits for, and more room for them
would hold memory and gain nothing.
"""

from __future__ import annotations

from typing import Final

MEASURE_PING: Final = b"distance"

FAR_S: Final = 0.001
"""The shortest round trip from which on a peer may be far: on loopback and in one rack it is a tenth of it."""
EVIDENCE_S: Final = 0.05
"""How long round trips must have been alike before a peer is taken to be far. One next door that is busy, or whose
answers wait behind its data, takes 1 to 30 ms as well, but never the same for long."""
TRIPS: Final = 2
"""And how many of them at least: a single one may be long because a process has just started."""
ALIKE: Final = 2
"""How many times the shortest of them the longest may be."""
NEAR_PAUSE_S: Final = 5.0
"""Between two measurements where the peer is near."""
PAUSE: Final = 4
"""Round trips between two measurements where the windows were large enough."""
STALE: Final = 3
"""Round trips after which what came is no measure of what could: the peer had nothing to send meanwhile."""
FULL: Final = 0.4
"""Part of the windows from which on they hold up what comes: in bursts, of which a measurement may see half."""
GROWTH: Final = 4
"""Times what came in a round trip. gRPC's twice takes very many round trips until a fast line is full."""


class Bandwidth:
    """What one connection has measured, between two PINGs. No clock, no I/O. `window` <= `most`.

    The first PING goes out when half a window has been read, the next one likewise once the echo of the last is there.
    """

    __slots__ = (
        "_again_s", "_alike", "_begun_s", "_bytes", "_greeting", "_is_far", "_run", "_shortest_s", "_waits", "most",
        "window",
    )  # fmt: skip

    def __init__(self, window: int, most: int) -> None:
        self.window = window
        """What a new stream may send before it is read."""
        self.most = most
        self._waits = False
        """Whether an echo is still to come."""
        self._greeting = False
        self._begun_s = 0.0
        self._bytes = 0
        self._again_s = 0.0
        self._shortest_s = float("inf")
        self._run = (float("inf"), 0.0)
        """The shortest and the longest of the last `_alike` round trips, which are alike."""
        self._alike = 0
        self._is_far = False

    def greeted(self, now_s: float) -> None:
        """Begin with our first SETTINGS: nothing else keeps the peer from acknowledging them at once."""
        self._begun_s = now_s
        self._greeting = self._waits = now_s > 0

    def acknowledged(self, now_s: float) -> None:
        """Take an acknowledgement of SETTINGS; the first one is an echo."""
        if self._greeting:
            self._greeting = False
            self.echoed(now_s)

    def echoed(self, now_s: float) -> None:
        """Take the echo of a PING."""
        if not self._waits:
            return
        self._waits = False
        trip_s = now_s - self._begun_s
        self._shortest_s = min(self._shortest_s, trip_s)
        if self._shortest_s < FAR_S:
            self._again_s = now_s + NEAR_PAUSE_S
            self._is_far = False
        elif not self._is_far:
            self._again_s = now_s + self._weigh(trip_s)

    def _weigh(self, trip_s: float) -> float:
        """Take a round trip as evidence; return for how long to wait before the next."""
        shortest_s, longest_s = min(self._run[0], trip_s), max(self._run[1], trip_s)
        if longest_s > ALIKE * shortest_s:
            self._run, self._alike = (trip_s, trip_s), 1
            return PAUSE * trip_s
        self._run = (shortest_s, longest_s)
        self._alike += 1
        self._is_far = self._alike >= TRIPS and self._alike * shortest_s >= EVIDENCE_S
        return 0.0

    def is_due(self, now_s: float) -> bool:
        """Tell whether a PING is due, now that half a window was read: then call `begin`."""
        return not self._waits and now_s >= self._again_s and self.window < self.most

    def begin(self, now_s: float, received_bytes: int) -> int:
        """Note that a PING goes out, and return by how much the windows grow before it: mostly 0.

        `received_bytes` counts DATA since the start.
        """
        took_s, size = now_s - self._begun_s, received_bytes - self._bytes
        shortest_s = self._shortest_s
        self._begun_s, self._bytes, self._waits = now_s, received_bytes, True
        if not self._is_far or not took_s > 0 or took_s > STALE * shortest_s:
            return 0
        in_a_trip = size * shortest_s / took_s
        if in_a_trip < FULL * self.window:
            self._again_s = now_s + PAUSE * shortest_s
            return 0
        before, self.window = self.window, max(self.window, min(self.most, int(GROWTH * in_a_trip)))
        return self.window - before

    def __repr__(self) -> str:
        """Show the window and the distance."""
        return f"<Bandwidth window={self.window} shortest_s={self._shortest_s:.4f}>"
