"""Inflating messages off the event loop, a step at a time, each counted for the connection before it is made."""

from __future__ import annotations

import asyncio

from mesh.core.traffic.held import CallerBytes
from mesh.wire.grpc_framing import STEP, Inflation


async def inflate(inflation: Inflation, caller: CallerBytes) -> bytes:
    """Return the message. Raises `TooMuchHeld`, and what `Inflation.step` does. Cancelled, it stops at its next step.

    Until it returns, its bytes are counted as the caller's; from then on it is for the caller of this to do so.
    """
    loop = asyncio.get_running_loop()
    taken = 0
    try:
        while not inflation.done:
            # Twice, as its pieces are joined in the end.
            caller.take(2 * STEP)
            taken += 2 * STEP
            await loop.run_in_executor(None, inflation.step)
        return await loop.run_in_executor(None, inflation.message)
    finally:
        caller.add(-taken)
