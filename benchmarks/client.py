"""The load client: sends one message again and again over plain sockets and prints what it took, as JSON.

Run as `python -m benchmarks.client JOB BODY_FILE`, so that it has a core and an interpreter of its own. It shares that
core with a proxy's upstream, so it does little per call: one format operation, a share of two system calls, a look at
three frames. Every answer must have the size of the answer that was checked before, and grpc-status 0: in a stream an
error is a message like any other, and a fast one.
"""

from __future__ import annotations

import json
import select
import statistics
import sys
import time
from pathlib import Path

from benchmarks import h2
from benchmarks.calls import FIRST_ID, ID_BYTES, Job
from benchmarks.connection import NOTHING, SILENCE_S, Call, Connection, Run
from benchmarks.h2 import ProtocolFailed


class Unary(Connection):
    """A connection on which each message is a call."""

    def __init__(self, run: Run) -> None:
        """Connect. Raises OSError, `ProtocolFailed`."""
        super().__init__(run)
        self._message = bytes(run.message)
        self._head = h2.frame(h2.DATA, h2.END_STREAM, 0, self._message)[:5]
        self._fits = len(self._message) <= h2.SMALLEST_MAX_FRAME

    def begin(self) -> None:
        """Start a call on each stream."""
        for _ in range(self.run.job.streams):
            self._start()
        self.flush()

    def counted(self, stream: int, call: Call) -> None:
        """Do nothing: the trailers end the call."""

    def ended(self, call: Call) -> None:
        """Check the answer's size, note the time and start the next call."""
        run = self.run
        if call.got != run.answer_size:
            raise ProtocolFailed(f"expected an answer of {run.answer_size - 5} bytes, got {call.got - 5}")
        run.answered += 1
        run.latencies_s.append(time.perf_counter() - call.started_s)
        self._start()

    def room_made(self) -> None:
        """Send what the server's windows held back."""
        for stream, call in self.calls.items():
            if call.left:
                self._push(stream, call)

    def _start(self) -> None:
        if self.run.left:
            self.run.left -= 1
            if not (self._fits and self.send_whole(self._head, self._message)):
                self._push(*self.open(self.run.message))

    def _push(self, stream: int, call: Call) -> None:
        while call.left:
            size = min(len(call.left), call.room, self.room, h2.SMALLEST_MAX_FRAME)
            if size <= 0:
                return
            last = h2.END_STREAM if size == len(call.left) else 0
            self.out.append(h2.FRAME.pack(size >> 8, size & 0xFF, h2.DATA, last, stream))
            self.out.append(call.left[:size])
            call.left = call.left[size:]
            call.room -= size
            self.room -= size


class Streaming(Connection):
    """A connection whose calls carry many messages each, in both directions."""

    def __init__(self, run: Run) -> None:
        """Connect. Raises OSError, `ProtocolFailed`; ValueError for a message that does not fit into a frame."""
        super().__init__(run)
        if len(run.message) > h2.SMALLEST_MAX_FRAME:
            raise ValueError(f"expected messages of one frame in a stream, got {len(run.message)} bytes")

    def begin(self) -> None:
        """Open the streams and fill their windows."""
        for _ in range(self.run.job.streams):
            stream, call = self.open(NOTHING)
            self._take_on(stream, call, self.run.job.window)
        self.flush()

    def got(self, call: Call, data: bytes, at: int) -> None:
        """Check that an answer that begins here has the right size."""
        start = data[at : at + 5]
        if not call.got % self.run.answer_size and start != self.run.answer_start[: len(start)]:
            raise ProtocolFailed(f"expected an answer of {self.run.answer_size - 5} bytes, got {data[at : at + 300]!r}")

    def counted(self, stream: int, call: Call) -> None:
        """Send a message for each that was answered."""
        more = call.got // self.run.answer_size - call.answered
        if more:
            call.answered += more
            self.run.answered += more
            self._take_on(stream, call, more)

    def ended(self, call: Call) -> None:
        """Check that every message was answered."""
        if not call.closed or call.got != call.sent * self.run.answer_size:
            raise ProtocolFailed(f"expected {call.sent} answers before the stream ended, got {call.answered}")

    def room_made(self) -> None:
        """Send what the server's windows held back."""
        for stream, call in self.calls.items():
            if call.owed:
                self._push(stream, call)

    def _take_on(self, stream: int, call: Call, wanted: int) -> None:
        taken = min(wanted, self.run.left)
        self.run.left -= taken
        call.owed += taken
        self._push(stream, call)
        if not self.run.left and not call.owed and call.answered == call.sent and not call.closed:
            call.closed = True
            self.out.append(h2.frame(h2.DATA, h2.END_STREAM, stream))

    def _push(self, stream: int, call: Call) -> None:
        size = len(self.run.message)
        count = min(call.owed, call.room // size, self.room // size)
        if count > 0:
            self.out.append(h2.frame(h2.DATA, 0, stream, bytes(self.run.message)) * count)
            call.sent += count
            call.owed -= count
            call.room -= count * size
            self.room -= count * size


class Stepping(Streaming):
    """A connection whose streams carry the steps of sequences, one of each in turn."""

    def __init__(self, run: Run) -> None:
        """Connect, as `Streaming` does."""
        super().__init__(run)
        message, at = bytes(run.message), 5 + run.job.id_at
        self._before, self._behind = message[:at], message[at + ID_BYTES :]
        self._first: dict[int, int] = {}
        """By stream, the first of its ids."""

    def _push(self, stream: int, call: Call) -> None:
        size = len(self.run.message)
        count = min(call.owed, call.room // size, self.room // size)
        if count > 0:
            first = self._first.get(stream)
            if first is None:
                first = self._first[stream] = FIRST_ID + self.run.streams_begun * self.run.job.sequences
                self.run.streams_begun += 1
            head = h2.FRAME.pack(size >> 8, size & 0xFF, h2.DATA, 0, stream) + self._before
            ids = (first + (call.sent + each) % self.run.job.sequences for each in range(count))
            self.out.append(b"".join([head + varint(id_) + self._behind for id_ in ids]))
            call.sent += count
            call.owed -= count
            call.room -= count * size
            self.room -= count * size


def varint(number: int) -> bytes:
    """Return a protobuf varint of `ID_BYTES`."""
    return bytes([number >> 7 * at & 0x7F | (0x80 if at < ID_BYTES - 1 else 0) for at in range(ID_BYTES)])


def drive(run: Run, connections: list[Connection]) -> float:
    """Send and receive until everything is answered; return the seconds it took. Raises `ProtocolFailed`, OSError."""
    poller = select.epoll()
    by_file = {each.socket.fileno(): each for each in connections}
    for number in by_file:
        poller.register(number, select.EPOLLIN)
    writing: set[int] = set()

    def ask(number: int, each: Connection) -> None:
        if each.wants_to_write != (number in writing):
            writing.symmetric_difference_update({number})
            poller.modify(number, select.EPOLLIN | (select.EPOLLOUT if each.wants_to_write else 0))

    started_s = time.perf_counter()
    for number, each in by_file.items():
        each.begin()
        ask(number, each)
    while run.answered < run.job.count or run.open:
        ready = poller.poll(SILENCE_S)
        if not ready:
            raise ProtocolFailed(f"expected answers within {SILENCE_S:.0f} s: {run.answered} of {run.job.count} came")
        for number, events in ready:
            each = by_file[number]
            if events & select.EPOLLOUT:
                each.flush()
            if events & ~select.EPOLLOUT:
                each.read()
            ask(number, each)
    return time.perf_counter() - started_s


def _kind(job: Job) -> type[Connection]:
    if job.sequences:
        return Stepping
    return Streaming if job.streaming else Unary


def main() -> None:
    """Run the job of the command line."""
    job = Job(body=Path(sys.argv[2]).read_bytes(), **json.loads(sys.argv[1]))
    run = Run(job)
    try:
        connections: list[Connection] = [_kind(job)(run) for _ in range(job.connections)]
        seconds = drive(run, connections)
    except (ProtocolFailed, OSError) as error:
        sys.exit(f"error: {error}")
    middle_s = statistics.median(run.latencies_s) if run.latencies_s else 0.0
    print(json.dumps({"seconds": seconds, "latency_s": middle_s}))


if __name__ == "__main__":
    main()
