"""Load on one core: h2load for single calls, a grpc.aio client of our own for streams and where h2load is absent."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

from benchmarks.peers import INFER, STREAM

LOAD_CORE = "1"

CLIENT = """
import asyncio, sys, time
import grpc

async def main(address, method, path, count, window):
    body = open(path, "rb").read()
    channel = grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
    room = asyncio.Semaphore(window)
    started = time.perf_counter()
    if method.endswith("Stream"+"Infer"):
        call = channel.stream_stream(method)()
        async def send():
            for _ in range(count):
                await room.acquire()
                await call.write(body)
            await call.done_writing()
        sender = asyncio.create_task(send())
        answered = 0
        async for message in call:
            assert len(message) > 8, message
            answered += 1
            room.release()
        await sender
        assert answered == count, (answered, count)
    else:
        infer = channel.unary_unary(method)
        async def one():
            async with room:
                await infer(body)
        await asyncio.gather(*(one() for _ in range(count)))
    print(time.perf_counter() - started)

asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
"""


def on_load_core(*command: str) -> list[str]:
    """Return `command` on the load's core, where taskset is there."""
    return ["taskset", "-c", LOAD_CORE, *command] if shutil.which("taskset") else list(command)


def unary(address: str, request: bytes, count: int, folder: Path) -> float:
    """Send `count` requests over 4 connections with 8 in flight each; return the seconds it took."""
    body = folder / "body"
    if not shutil.which("h2load"):
        body.write_bytes(request)
        return _client(address, INFER, body, count)
    body.write_bytes(struct.pack(">BI", 0, len(request)) + request)
    command = ["h2load", "-t", "1", "-c", "4", "-m", "8", "-n", str(count), "-d", str(body)]
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    done = subprocess.run(
        on_load_core(*command, *headers, f"http://{address}{INFER}"),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    succeeded = re.search(r"requests: .* (\d+) succeeded", done.stdout)
    finished = re.search(r"finished in ([\d.]+)(ms|s)", done.stdout)
    if succeeded is None or finished is None or int(succeeded[1]) != count:
        raise RuntimeError(f"h2load lost requests:\n{done.stdout}")
    return float(finished[1]) / (1000 if finished[2] == "ms" else 1)


def stream(address: str, request: bytes, count: int, folder: Path) -> float:
    """Send `count` messages over one stream with 32 in flight; return the seconds it took."""
    body = folder / "message"
    body.write_bytes(request)
    return _client(address, STREAM, body, count)


def _client(address: str, method: str, body: Path, count: int) -> float:
    command = on_load_core(sys.executable, "-c", CLIENT, address, method, str(body), str(count), "32")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise RuntimeError(f"the load failed: {done.stderr[-2000:]}")
    return float(done.stdout)
