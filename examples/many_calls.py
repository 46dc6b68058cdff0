"""Two hundred calls at a time, in one thread: `python examples/many_calls.py [ADDRESS]`, against `mesh up`.

The node joins calls that come together into one run of the model; a failed call is an exception of its own.
"""

import asyncio
import sys
import time
from pathlib import Path

import numpy as np

from mesh_client import AsyncClient, MeshClientError

ROWS = Path(__file__).resolve().parent.parent / "models/data/digits.csv"


async def main(address: str) -> None:
    table = np.loadtxt(ROWS, delimiter=",", skiprows=1, dtype=np.float32)
    images, labels = table[:, :64].reshape(-1, 1, 8, 8), table[:, 64]
    async with AsyncClient(address, timeout_s=30, transport="wire") as client:
        await client.infer("digits", {"image": images[0]})  # loads it, where it is cold
        began_s = time.monotonic()
        calls = (client.infer("digits", {"image": image}) for image in images)
        results = await asyncio.gather(*calls, return_exceptions=True)
        took_s = time.monotonic() - began_s
    right = failed = 0
    for result, label in zip(results, labels, strict=True):
        if isinstance(result, MeshClientError):
            failed += 1
        elif isinstance(result, BaseException):
            raise result
        else:
            right += int(result["label"][0] == label)
    print(f"{len(images)} calls in {took_s * 1000:.0f} ms: {right} digits read rightly, {failed} calls failed")


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001"))
