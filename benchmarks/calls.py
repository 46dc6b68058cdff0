"""The bytes of calls: what a load client sends for each, made from one template. Does no I/O."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from benchmarks import h2

_SPREAD = 0x9E3779B97F4A7C15F39CC0605CEDC835
"""An odd number near 2^128 over the golden ratio: its multiples are all different and look like random ids."""
_IDS = 2**128
_SPAN = 2**64 - 1
_TIMEOUT_US, _TIMEOUTS = 29_000_000, 999_983
"""The shortest grpc-timeout and how many there are, a microsecond apart: eight digits are the most that it may have."""
_VARYING = (
    ("grpc-timeout", "00000000u", b"%08du"),
    ("traceparent", f"00-{'0' * 32}-{'0' * 16}-01", b"00-%b-%016x-%b"),
    ("x-request-id", "0" * 32, b"%b"),
)
"""Name, a value of the length that all values have, and the place for the value."""


FIRST_ID = 1 << 52
"""The first sequence's id: those that follow have varints of the same length, `ID_BYTES`."""
ID_BYTES = 8


@dataclass(frozen=True, slots=True)
class Job:
    """What to send: `body`, `count` times to `method` of `address`, over `connections` with `streams` on each.

    A stream that carries messages (`streaming`) has at most `window` of them unanswered; otherwise each message is a
    call of its own and one call per stream is in flight. Each answer has `answer_bytes` bytes. With `unique` headers
    each call has another grpc-timeout, traceparent and x-request-id, without them none has any of the three.
    """

    address: str
    method: str
    body: bytes
    answer_bytes: int
    count: int
    connections: int
    streams: int
    window: int
    streaming: bool
    unique: bool
    sequences: int = 0
    """Steps of so many sequences on each stream, in turn, instead of one message again and again."""
    id_at: int = 0
    """Where in the body the varint of `FIRST_ID` is, which each step replaces by its sequence's."""

    def message(self) -> bytes:
        """Return the message as gRPC frames it."""
        return struct.pack(">BL", 0, len(self.body)) + self.body

    def answer_start(self) -> bytes:
        """Return the first bytes of an answer of the right size that is not compressed."""
        return struct.pack(">BL", 0, self.answer_bytes)


_SAMPLED = 100
"""One call in so many belongs to a trace that is recorded, as the router does of calls without one."""


class Ids:
    """Counts calls, over all connections."""

    def __init__(self) -> None:
        self._number = 0

    def next(self) -> tuple[int, int]:
        """Return the next call's number and 128 bits that no other call of the run has."""
        self._number += 1
        return self._number, self._number * _SPREAD % _IDS


class CallBytes:
    """Writes the header blocks of one connection's calls."""

    def __init__(self, job: Job, ids: Ids, *, table_bytes: int) -> None:
        same = [
            (":path", job.method),
            (":authority", job.address),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "mesh-bench/1"),
        ]
        first, later = h2.header_blocks(same, table_bytes=table_bytes)
        self._ids = ids
        self._unique = job.unique
        self._first = _template(first, unique=job.unique)
        self._later = _template(later, unique=job.unique)

    def next(self, stream: bytes) -> bytes:
        """Return the HEADERS frame that opens `stream`, four bytes. Called per request: one format operation."""
        template, self._first = self._first or self._later, b""
        if not self._unique:
            return template % stream
        number, bits = self._ids.next()
        name = b"%032x" % bits
        sampled = b"01" if number % _SAMPLED == 0 else b"00"
        return template % (stream, _TIMEOUT_US + number % _TIMEOUTS, name, bits & _SPAN, sampled, name)


def _template(block: bytes, *, unique: bool) -> bytes:
    """Return a HEADERS frame with places for the stream and, where asked for, for what differs in every call."""
    parts = _VARYING if unique else ()
    size = len(block) + sum(len(h2.literal(name, example)) for name, example, _ in parts)
    head = h2.FRAME.pack(size >> 8, size & 0xFF, h2.HEADERS, h2.END_HEADERS, 0)[:5]
    made = head.replace(b"%", b"%%") + b"%b" + block.replace(b"%", b"%%")
    for name, example, place in parts:
        made += h2.literal(name, example).removesuffix(example.encode()) + place
    return made
