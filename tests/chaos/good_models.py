"""Models that answer rightly, a pipeline of two of them, and who knows the right answers: what chaos must not hurt."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Final

import numpy as np

from mesh_client import AsyncClient, Client, Pipeline
from tests.fixtures.cluster import copies
from tests.fixtures.mesh import MODELS, until
from tests.fixtures.models import python_model
from tests.fixtures.sessions import folding_model
from tests.models.repositories import session

NAMES: Final = ("iris", "echo", "fold")
TIMEOUT_S: Final = 60.0
ECHO: Final = """\
inputs: [{name: x, dtype: FP32, shape: [-1, 4]}]
outputs: [{name: y, dtype: FP32, shape: [-1, 4]}]
"""
ROWS: Final = np.random.default_rng(6).uniform(0.1, 7.0, (200, 4)).astype(np.float32)


def add_good_models(repository: Path, yaml: str = "") -> None:
    """Write them, each with `yaml` in its model.yaml too: one in the node, one in a worker, one with state."""
    shutil.copytree(MODELS / "demo" / "iris", repository / "iris")
    with (repository / "iris" / "model.yaml").open("a") as file:
        file.write(yaml)
    python_model(repository, "echo", ECHO + yaml, "return {'y': inputs['x']}")
    folding_model(repository, "fold", yaml=yaml)


def load_good_models(client: Client, *, each: int = 1) -> None:
    """Load them once they are known, wait for so many copies of `each`, and apply the pipeline `both`."""
    for name in NAMES:
        until(lambda name=name: client.model_ready(name), what=f"{name} is known")  # type: ignore[misc] # bound
        client.load(name)
        until(lambda name=name: len(copies(client, name)) >= each, what=f"{each} copies of {name}")  # type: ignore[misc] # bound
    pipeline = Pipeline("both")
    echoed = pipeline.step("echoed", "echo", {"x": pipeline.input("x")})
    judged = pipeline.step("judged", "iris", {"x": echoed["y"]})
    pipeline.output("label", judged["label"])
    client.apply_pipeline(pipeline)


class Answers:
    """Calls whose right answers are known."""

    def __init__(self) -> None:
        self._labels, _ = session(MODELS / "demo" / "iris").run(None, {"x": ROWS})

    async def judged(self, client: AsyncClient, model: str, random_: random.Random) -> bool:
        """Ask `iris` or `both` about some rows; tell whether the answer was right."""
        at = random_.randrange(len(ROWS) - 8)
        rows = slice(at, at + random_.randint(1, 8))
        answer = await client.infer(model, {"x": ROWS[rows]}, timeout_s=TIMEOUT_S)
        return np.array_equal(answer["label"], self._labels[rows])

    async def echoed(self, client: AsyncClient, random_: random.Random) -> bool:
        """Ask `echo`; small requests travel in a packet to the worker, large ones in shared memory."""
        sent = np.full((random_.choice((1, 5, 40_000)), 4), random_.random(), np.float32)
        sent[0, 0] = random_.random()
        answer = await client.infer("echo", {"x": sent}, timeout_s=TIMEOUT_S)
        return np.array_equal(answer["y"], sent)
