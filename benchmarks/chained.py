"""A client that calls models one after another through tritonclient: what people do without pipelines.

Run as ``python -m benchmarks.chained ADDRESS SECONDS THREADS MODEL...``; prints the chains per second.
"""

from __future__ import annotations

import json
import sys
import threading
import time

import numpy as np
import tritonclient.grpc as triton

WIDTH = 64


def main() -> None:
    """Call until the time is up."""
    address, seconds, threads, models = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    counts = [0] * threads
    until_s = time.monotonic() + seconds

    def caller(at: int) -> None:
        client = triton.InferenceServerClient(address)
        while time.monotonic() < until_s:
            rows = np.ones((1, WIDTH), np.float32)
            for model in models:
                given = triton.InferInput("x", list(rows.shape), "FP32")
                given.set_data_from_numpy(rows)
                rows = client.infer(model, [given]).as_numpy("y")
            counts[at] += 1

    running = [threading.Thread(target=caller, args=(at,)) for at in range(threads)]
    began_s = time.monotonic()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    print(json.dumps({"rate": sum(counts) / (time.monotonic() - began_s)}))


if __name__ == "__main__":
    main()
