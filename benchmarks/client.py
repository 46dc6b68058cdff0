"""The load client: sends one message again and again over grpc.aio and prints the seconds it took.

Run as a script, so that it has a core and an interpreter of its own: `client.py HOST:PORT METHOD BODY ANSWER_BYTES
COUNT WINDOW`. Every answer must be `ANSWER_BYTES` long, the length of the answer that was checked before: in a stream
an error is a message like any other, and a fast one.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, slots=True)
class Job:
    """What to send: `body`, `count` times, at most `window` unanswered; each answer has `answer_bytes` bytes."""

    method: str
    body: bytes
    answer_bytes: int
    count: int
    window: int

    def expect(self, answer: bytes) -> None:
        """Raise RuntimeError unless `answer` has the size of the right one."""
        if len(answer) != self.answer_bytes:
            raise RuntimeError(f"expected an answer of {self.answer_bytes} bytes, got {len(answer)}: {answer[:300]!r}")


async def stream(channel: grpc.aio.Channel, job: Job) -> None:
    """Send everything over one stream."""
    room = asyncio.Semaphore(job.window)
    call = channel.stream_stream(job.method, None, None)(None)

    async def send() -> None:
        for _ in range(job.count):
            await room.acquire()
            await call.write(job.body)
        await call.done_writing()

    answered = 0
    async with asyncio.TaskGroup() as tasks:
        sender = tasks.create_task(send())
        async for answer in call:
            job.expect(answer)
            answered += 1
            room.release()
        # The call ended: a sender that still waits for room would wait for ever.
        if answered != job.count:
            sender.cancel()
    if answered != job.count:
        raise RuntimeError(f"expected {job.count} answers, got {answered}: the stream ended with {await call.code()}")


async def unary(channel: grpc.aio.Channel, job: Job) -> None:
    """Send everything as single calls."""
    infer = channel.unary_unary(job.method, None, None)
    left = iter(range(job.count))

    async def caller() -> None:
        for _ in left:
            job.expect(await infer(job.body))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(job.window):
            tasks.create_task(caller())


async def main(address: str, job: Job) -> float:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        # Connecting is no part of the run: the clock starts when the channel is up.
        await channel.channel_ready()
        started_s = time.monotonic()
        await (stream if job.method.endswith("/ModelStreamInfer") else unary)(channel, job)
        return time.monotonic() - started_s


if __name__ == "__main__":
    _, where, name, path, *numbers = sys.argv
    answer_bytes, times, in_flight = map(int, numbers)
    print(asyncio.run(main(where, Job(name, Path(path).read_bytes(), answer_bytes, times, in_flight))))
