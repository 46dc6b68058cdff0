"""Numbers that bound a connection: the windows it offers, and how much nuisance it bears. No clock: time is given.

Every bound says where its number comes from. (RFC 9113 §5.2, §6.9, §10.5)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mesh.wire.frames import DEFAULT_WINDOW


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one connection grants its peer."""

    max_streams: int = 4096
    """Streams at a time. grpc-go's clients open thousands; above it REFUSED_STREAM, which clients retry."""
    stream_window: int = DEFAULT_WINDOW
    """Bytes a peer may send on a new stream before the reader keeps up: HTTP/2's default. Not below it."""
    max_stream_window: int = 4 * 1024 * 1024
    """What a stream's window grows to while its reader keeps up: 4 MiB is 3 Gbit/s at 10 ms of distance."""
    far_window: int = 24 * 1024 * 1024
    """What every stream's window grows to on a connection to a peer that is far: 24 MiB is 1.3 Gbit/s at 150 ms. The
    connection's is then half as large again."""
    connection_window: int = 16 * 1024 * 1024
    """Bytes in buffers of all streams: no stream that is not read can hold up the others until four are at the top."""
    max_frame: int = 16_384
    """Largest frame taken in: HTTP/2's default, also its minimum."""
    max_header_list: int = 64 * 1024
    """Bytes of headers of one call, 32 more for each (RFC 9113 §6.5.2): eight times grpcio's default."""
    max_assembling: int = 1024 * 1024 * 1024
    """Bytes of messages of one connection that are not whole yet: four of the largest that are taken by default."""
    max_control_bytes: int = 1024 * 1024
    """What is said to a peer that does not read, DATA aside: a status for every one of 4,096 calls is 400 KB."""


NUISANCE_BURST: Final = 1000.0
"""Frames without use (PING, SETTINGS, PRIORITY, empty DATA, resets) borne at once. nghttp2 bears 1,000 resets."""
NUISANCE_PER_S: Final = 200.0
"""And per second after that. A client that cancels 200 calls a second all day is not broken yet; an attack sends
100,000."""
USEFUL_BYTES: Final = 1024
"""Every so many bytes of DATA allow one more, and every call that is not given up: who works, errs."""


class Allowance:
    """A token bucket for frames that cost us more than the peer. 0 <= left <= NUISANCE_BURST while it is kept."""

    __slots__ = ("_bytes", "_left", "_then_s")

    def __init__(self) -> None:
        self._left = NUISANCE_BURST
        self._then_s = 0.0
        self._bytes = 0

    def spend(self, now_s: float, received_bytes: int) -> bool:
        """Take one; False when the peer has used up its allowance. `received_bytes` counts DATA since the start."""
        if self._then_s:
            earned = (now_s - self._then_s) * NUISANCE_PER_S + (received_bytes - self._bytes) / USEFUL_BYTES
            self._left = min(NUISANCE_BURST, self._left + max(0.0, earned))
        self._then_s, self._bytes = now_s, received_bytes
        self._left -= 1
        return self._left >= 0


REMEMBERED: Final = 4096
"""Streams that were reset, of which late frames are ignored: as many as go on at a time. Older ones are faults."""


class Resets:
    """The last streams that either side has reset: frames of theirs may still be on their way (RFC 9113 §5.1).

    netty sends HEADERS, RST_STREAM and then DATA of one stream when a call is cancelled early. Numbers that the peer
    has passed over count as well: of calls that it gave up before their headers were sent.
    """

    __slots__ = ("_passed_over", "_told", "count")

    def __init__(self) -> None:
        self._told: dict[int, bool] = {}
        self._passed_over: list[tuple[int, int]] = []
        self.count = 0
        """How many there were."""

    def note(self, stream_id: int, *, told: bool) -> None:
        """Remember a stream, and whether the peer knows that nothing more is taken on it."""
        self.count += stream_id not in self._told
        self._told[stream_id] = told
        if len(self._told) > REMEMBERED:
            del self._told[next(iter(self._told))]

    def told(self, stream_id: int) -> bool | None:
        """Return what was noted, None where nothing is known of a reset."""
        return self._told.get(stream_id)

    def pass_over(self, last: int, stream_id: int) -> None:
        """Note that the peer opens `stream_id` after `last`: what is between is closed, and never was open."""
        self.count += (stream_id - last - 2) >> 1
        self._passed_over.append((last, stream_id))
        if len(self._passed_over) > REMEMBERED:
            del self._passed_over[0]

    def was_passed_over(self, stream_id: int) -> bool:
        """Tell whether a number was left out. O(gaps)."""
        return any(last < stream_id < following for last, following in self._passed_over)

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Resets count={self.count} remembered={len(self._told)}>"


def grown(window: int, limit: int) -> int:
    """Return the next size of a stream's window after its reader kept up with half of it."""
    return min(limit, 2 * window) if window < limit else window
