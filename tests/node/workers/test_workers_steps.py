"""Sequences, generations and ONNX files in workers answer as they do in the node, whatever becomes of the workers."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mesh.api.snapshot import decode_snapshot
from mesh.core.errors import ModelFailed, WorkerDied
from mesh.node.item import Ran
from mesh.node.runtimes.base import Request
from mesh.node.sequences import SequenceBatcher
from mesh.node.workers.copy import WorkerCopy
from mesh.telemetry.statistics import Statistics
from tests.fixtures.models import onnx_model
from tests.fixtures.sessions import folded, folding_model
from tests.fixtures.workers import Bench, kill, until


class Steps:
    """The queue of a copy whose requests are steps."""

    def __init__(self, copy: WorkerCopy) -> None:
        self.copy = copy
        self.queue = SequenceBatcher(copy.model, copy, ThreadPoolExecutor(2), Statistics(), default_queue_size=1000)

    async def step(self, id_: int, value: int, *, start: bool = False, end: bool = False, tells: bool = False) -> Ran:
        ended: asyncio.Future[Ran] = asyncio.get_running_loop().create_future()
        parameters = {"sequence_id": id_, "sequence_start": start, "sequence_end": end}
        inputs = {"x": np.array([[value]], np.int64)}
        self.queue.submit(
            inputs, Request("", parameters, b"", tells), 1, _Waiter(ended), deadline_s=None, queue_timeout_s=None
        )
        return await ended


class _Waiter:
    def __init__(self, ended: asyncio.Future[Ran]) -> None:
        self.ended = ended

    def ran(self, ran: Ran) -> None:
        self.ended.set_result(ran)

    def failed(self, error: Exception) -> None:
        self.ended.set_exception(error)


def value_of(ran: Ran) -> int:
    return int(ran.outputs["y"][0, 0])


async def loaded(workers: Bench, name: str) -> WorkerCopy:
    copy = await workers.runtime.load(workers.spec(name))
    workers.copies.append(copy)
    return copy


async def test_steps_of_many_sequences_run_in_workers_and_survive_their_ends(workers: Bench) -> None:
    """The node has the state behind every step: a worker that is killed between two takes no sequence with it."""
    folding_model(workers.repository, "fold", yaml="instances: 2\n")
    steps = Steps(await loaded(workers, "fold"))
    expected = {id_: folded(range(id_, id_ + 10)) for id_ in range(1, 21)}

    async def sequence(id_: int) -> list[int]:
        found = []
        for at in range(10):
            while True:
                try:
                    found.append(value_of(await steps.step(id_, id_ + at, start=not at, end=at == 9)))
                    break
                except WorkerDied:
                    # Killed in the middle of it: the state is the one before, and the step can be taken again.
                    continue
        return found

    async def killer() -> None:
        for _ in range(3):
            await until(lambda: steps.copy.parallel == 2, "both workers are there")
            pid = max(steps.copy.pids())
            kill(pid)
            await until(lambda pid=pid: pid not in steps.copy.pids(), "it is gone")  # type: ignore[misc] # bound

    first = {id_: value_of(await steps.step(id_ + 100, 1, start=True)) for id_ in (1, 2)}
    assert len(set(first.values())) == 1
    found, _ = await asyncio.gather(asyncio.gather(*[sequence(id_) for id_ in expected]), killer())
    assert dict(zip(expected, found, strict=True)) == expected
    assert value_of(await steps.step(101, 5)) == folded([1, 5])[1]
    steps.queue.close()


async def test_a_step_that_raises_changes_no_state_and_fails_no_other(workers: Bench) -> None:
    folding_model(workers.repository, "fold")
    steps = Steps(await loaded(workers, "fold"))
    for id_ in (1, 2):
        await steps.step(id_, 3, start=True)
    failed, fine = await asyncio.gather(steps.step(1, -1), steps.step(2, 4), return_exceptions=True)
    assert isinstance(failed, ModelFailed)
    assert isinstance(fine, Ran)
    assert value_of(fine) == folded([3, 4])[1]
    ran = await steps.step(1, 4, tells=True)
    assert value_of(ran) == folded([3, 4])[1]
    if ran.state:
        assert decode_snapshot(ran.state).state == {"total": folded([3, 4])[1]}
    steps.queue.close()


async def test_a_state_that_cannot_be_kept_is_the_steps_failure(workers: Bench) -> None:
    copy = await workers.load(
        """
        class Model:
            def infer(self, inputs, sequences):
                for each in sequences:
                    each.state["kept"] = object() if inputs["x"].any() else [1, "a", b"b", None, inputs["x"] + 1]
                return {"y": inputs["x"]}
        """,
        """\
        sequence: {}
        inputs: [{name: x, dtype: INT64, shape: [-1, 1]}]
        outputs: [{name: y, dtype: INT64, shape: [-1, 1]}]
        """,
    )
    steps = Steps(copy)
    await steps.step(1, 0, start=True)
    with pytest.raises(ModelFailed, match="the state of a sequence cannot be kept: expected None, numbers, text"):
        await steps.step(1, 7)
    assert value_of(await steps.step(1, 0)) == 0
    assert workers.deaths == []
    steps.queue.close()


async def test_an_onnx_file_may_run_in_a_worker(workers: Bench, tmp_path: Path) -> None:
    onnx_model(tmp_path, "adds", "isolation: process\n", "Add", ["x", "x"])
    copy = await loaded(workers, "adds")
    assert [each.name for each in copy.inputs] == ["x"]
    assert [each.name for each in copy.outputs] == ["y"]
    for rows in (1, 50_000):
        x = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
        assert np.array_equal((await copy.run_alone({"x": x}, Request()))["y"], x + x)
    (pid,) = copy.pids()
    kill(pid)
    await until(lambda: copy.pids() - {pid}, "another worker is there")
    assert (await copy.run_alone({"x": np.ones((1, 2), np.float32)}, Request()))["y"].tolist() == [[2.0, 2.0]]
