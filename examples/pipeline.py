"""Two models as one: `python examples/pipeline.py [ADDRESS]`, against `mesh up`.

Features of two product titles are made in Python, their score in ONNX Runtime; callers see one model.
"""

import csv
import sys
from pathlib import Path

import numpy as np

from mesh_client import Client, Pipeline

ROWS = Path(__file__).resolve().parent.parent / "models/data/titles.csv"

pipeline = Pipeline("same-product")
features = pipeline.step("features", "text_features", {"left": "$title1", "right": "$title2"})
score = pipeline.step("score", "text_score", {"features": features["features"]})
pipeline.output("match", score["score"])

with ROWS.open() as file:
    rows = list(csv.DictReader(file))
match = [row["match"] == "1" for row in rows]

found: list[bool] = []
with Client(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001", timeout_s=30) as client:
    applied = client.apply_pipeline(pipeline)
    if applied.problems:
        sys.exit("\n".join(f"{problem.path}: {problem.message}" for problem in applied.problems))
    with client.stream() as stream:
        for first in range(0, len(rows), 64):
            some = rows[first : first + 64]
            left, right = (np.array([[row[side]] for row in some], object) for side in ("left", "right"))
            stream.send("same-product", {"title1": left, "title2": right})
        stream.half_close()
        for result in stream:
            found.extend(result["match"][:, 0] > 0.5)
    client.delete_pipeline("same-product")

right_ones = sum(one == other for one, other in zip(found, match, strict=True))
print(f"{right_ones} of {len(rows)} pairs of titles are judged rightly")
