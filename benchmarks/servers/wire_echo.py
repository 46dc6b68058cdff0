"""An echo on the mesh's own wire: `wire_echo.py HOST PORT` answers every message of a stream with itself.

The handler is a coroutine over bytes, as that of the grpc.aio echo beside it. On uvloop where it is installed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from mesh.wire.engine import Carrier
from mesh.wire.transport import MODEL_INFER, MODEL_STREAM_INFER, Call, HotMethods, Limits


async def unary(call: Call, message: bytes) -> bytes:  # noqa: ARG001 - a handler gets it
    """Return the message."""
    return message


async def stream(call: Call, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:  # noqa: ARG001 - a handler gets it
    """Yield the messages."""
    async for message in messages:
        yield message


async def main(host: str, port: str) -> None:
    """Serve until killed."""
    hot = HotMethods(unary={MODEL_INFER: unary}, stream={MODEL_STREAM_INFER: stream})
    server = Carrier("mesh", Limits(), asyncio.get_running_loop()).server(host, int(port), hot, [], tls=None)
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main(*sys.argv[1:]))
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main(*sys.argv[1:]))
