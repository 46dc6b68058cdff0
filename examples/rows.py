"""A table of rows over one stream: `python examples/rows.py [ADDRESS]`, against `mesh up`.

The model takes at most 64 rows at a time (its `max_batch_size`); the answers come in the order of the requests.
"""

import sys
from pathlib import Path

import numpy as np

from mesh_client import Client

ROWS = Path(__file__).resolve().parent.parent / "models/data/iris.csv"

table = np.loadtxt(ROWS, delimiter=",", skiprows=1, dtype=np.float32)
labels: list[int] = []
with Client(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001") as client, client.stream(timeout_s=30) as stream:
    for first in range(0, len(table), 64):
        stream.send("iris", {"x": table[first : first + 64, :4]})
    stream.half_close()
    for result in stream:
        labels.extend(result["label"])

right = int((np.array(labels) == table[:, 4]).sum())
print(f"{right} of {len(table)} rows as their label says")
