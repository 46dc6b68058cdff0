"""grpcio with default options under the contract of programs.py beside this folder."""

from __future__ import annotations

import argparse
import json
import queue
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc

INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
STREAM: Final = "/inference.GRPCInferenceService/ModelStreamInfer"
PATIENCE_S: Final = 60.0
"""Of a call that is waited for: only a lost answer takes so long."""
PENALTY_S: Final = 0.05
"""After a call that failed, as a client that is not paced would spin while a server is away."""
WRONG: Final = -1
GIVEN_UP: Final = (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)


class Tally:
    """What a run prints."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.calls = self.given_up = 0
        self.failures: dict[int, dict[str, Any]] = {}

    def done(self) -> None:
        with self._lock:
            self.calls += 1

    def gave_up(self) -> None:
        with self._lock:
            self.given_up += 1

    def failed(self, code: int, text: str) -> None:
        now_s = time.time()
        with self._lock:
            these = self.failures.setdefault(code, {"count": 0, "first_s": now_s, "text": text})
            these["count"] += 1
            these["last_s"] = now_s


class Soak:
    """The callers of one channel."""

    def __init__(self, channel: grpc.Channel, flags: argparse.Namespace) -> None:
        self.flags = flags
        self.request = flags.request.read_bytes()
        self.infer = channel.unary_unary(INFER, None, None)
        self.open = channel.stream_stream(STREAM, None, None)
        self.end_s = time.monotonic() + flags.seconds
        self.tally = Tally()

    def goes_on(self) -> bool:
        return bool(time.monotonic() < self.end_s)

    def check(self, answer: bytes) -> None:
        if len(answer) < self.flags.answer_bytes:
            text = f"expected an answer of at least {self.flags.answer_bytes} bytes, got {len(answer)}"
            self.tally.failed(WRONG, text)
        else:
            self.tally.done()

    def failed(self, error: Any) -> None:
        self.tally.failed(error.code().value[0], error.details() or "")
        time.sleep(PENALTY_S)

    def pause(self, number: int) -> None:
        if number % self.flags.burst == 0:
            time.sleep(self.flags.pause_ms / 1e3)

    def call(self) -> None:
        """Make calls one after the other."""
        number = 0
        while self.goes_on():
            try:
                self.check(self.infer(self.request, timeout=PATIENCE_S))
            except grpc.RpcError as error:
                self.failed(error)
            number += 1
            self.pause(number)

    def converse(self) -> None:
        """Send messages on one stream, one after the other, and open another where that fails."""
        while self.goes_on():
            requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
            answers = self.open(_until_none(requests))
            try:
                self._talk(requests, answers)
            except grpc.RpcError as error:
                requests.put(None)
                self.failed(error)

    def _talk(self, requests: queue.SimpleQueue[bytes | None], answers: Any) -> None:
        number = 0
        while self.goes_on():
            requests.put(self.request)
            self.check(next(answers, b""))
            number += 1
            self.pause(number)
        requests.put(None)
        if next(answers, None) is not None:
            self.tally.failed(WRONG, "expected the end of the stream, got a message")

    def give_up(self) -> None:
        """Begin calls and give each up within 2 ms: ten a second, or by deadlines as fast as it goes."""
        by_deadline = self.flags.gives_up == "deadline"
        while self.goes_on():
            soon_s = random.uniform(0, 0.002)
            call = self.infer.future(self.request, timeout=max(0.001, soon_s) if by_deadline else None)
            if not by_deadline:
                threading.Timer(soon_s, call.cancel).start()
            try:
                call.result()
            except grpc.FutureCancelledError:
                self.tally.gave_up()
            except grpc.RpcError as error:
                if error.code() in GIVEN_UP:
                    self.tally.gave_up()
                else:
                    self.failed(error)
            else:
                self.tally.gave_up()
            if not by_deadline:
                time.sleep(0.1)


def _until_none(requests: queue.SimpleQueue[bytes | None]) -> Iterator[bytes]:
    while (request := requests.get()) is not None:
        yield request


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--request", type=Path, required=True)
    parser.add_argument("--answer-bytes", type=int, default=0)
    parser.add_argument("--callers", type=int, default=1)
    parser.add_argument("--burst", type=int, default=1)
    parser.add_argument("--pause-ms", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--way", choices=("unary", "stream"), default="unary")
    parser.add_argument("--gives-up", choices=("none", "cancel", "deadline"), default="none")
    flags = parser.parse_args()
    with grpc.insecure_channel(flags.address) as channel:
        soak = Soak(channel, flags)
        work = [soak.converse if flags.way == "stream" else soak.call] * flags.callers
        if flags.gives_up != "none":
            work.append(soak.give_up)
        threads = [threading.Thread(target=each) for each in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    tally = soak.tally
    print(json.dumps({"calls": tally.calls, "given_up": tally.given_up, "failed": tally.failures}))


if __name__ == "__main__":
    main()
