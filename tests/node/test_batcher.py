from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core.errors import DeadlineExceeded, MeshError, ModelFailed, Overloaded
from mesh.core.types import Dtype, ModelName, ModelVersion, TensorSpec, Version
from mesh.node.batcher import Batcher
from mesh.node.item import Ran
from mesh.node.runtimes.base import Request, Tensors
from mesh.telemetry.statistics import Statistics


class Doubling:
    """A version that doubles its rows and remembers how many came in each run. It can be held, and can raise."""

    apart = None
    executor = None
    inputs: tuple[TensorSpec, ...] = (TensorSpec("x", Dtype.FP32, (-1, 1)),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec("y", Dtype.FP32, (-1, 1)),)
    parallel = 1
    steps = None
    steady = True
    batches = True

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.threads: set[int] = set()
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()

    def admit(self, inputs: Tensors) -> Tensors:
        return inputs

    def run(self, inputs: Tensors, request: Request) -> Tensors:
        self.runs.append(len(inputs["x"]))
        self.threads.add(threading.get_ident())
        self.entered.set()
        assert self.free.wait(60)
        if np.isnan(inputs["x"]).any():
            msg = "not a number"
            raise ValueError(msg)
        return {"y": inputs["x"] * 2}

    def stream(self, inputs: Tensors, request: Request) -> Iterator[Tensors]:
        yield self.run(inputs, request)

    def close(self) -> None:
        """Nothing is held."""


def batcher(
    loaded: Doubling,
    *,
    max_rows: int = 8,
    delay_us: int = 0,
    queue: int = 100,
    reruns: bool = True,
    in_order: bool = False,
) -> Batcher:
    model = ModelVersion(
        ModelName("m"),
        Version("1"),
        "python",
        "",
        "",
        0,
        max_batch_size=max_rows,
        max_queue_delay_us=delay_us,
        rerun_failed_batches=reruns,
        preserve_ordering=in_order,
    )
    return Batcher(model, loaded, ThreadPoolExecutor(2), Statistics(), default_queue_size=queue)


def rows(*values: float) -> Tensors:
    return {"x": np.array(values, dtype=np.float32).reshape(-1, 1)}


async def run(
    target: Batcher, given: Tensors, *, deadline_s: float | None = None, timeout_s: float | None = None
) -> Ran:
    return await target.run(given, Request(), len(given["x"]), deadline_s=deadline_s, queue_timeout_s=timeout_s)


async def held(target: Batcher, loaded: Doubling) -> asyncio.Task[Ran]:
    """Start a run that stays in the model until `loaded.free` is set."""
    loaded.free.clear()
    task = asyncio.create_task(run(target, rows(0)))
    assert await asyncio.to_thread(loaded.entered.wait, 60)
    return task


async def test_requests_that_wait_together_run_together() -> None:
    loaded = Doubling()
    target = batcher(loaded)
    first = await held(target, loaded)
    waiting = [asyncio.create_task(run(target, rows(value))) for value in range(5)]
    await asyncio.sleep(0)
    loaded.free.set()
    results = await asyncio.gather(first, *waiting)
    assert [result.outputs["y"].ravel().tolist() for result in results[1:]] == [[2.0 * value] for value in range(5)]
    assert loaded.runs == [1, 5]
    assert results[1].rows == 5


async def test_an_incomplete_batch_waits_for_company_no_longer_than_its_delay() -> None:
    loaded = Doubling()
    target = batcher(loaded, delay_us=50_000)
    started_s = time.monotonic()
    await run(target, rows(1))
    assert time.monotonic() - started_s >= 0.05
    full = [asyncio.create_task(run(target, rows(1, 2, 3, 4))) for _ in range(2)]
    await asyncio.gather(*full)
    assert loaded.runs == [1, 8]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=5), min_size=1, max_size=12))
def test_joined_answers_equal_those_alone(requests: list[list[float]]) -> None:
    async def together() -> list[list[float]]:
        target = batcher(Doubling())
        results = await asyncio.gather(*(run(target, rows(*values)) for values in requests))
        return [result.outputs["y"].ravel().tolist() for result in results]

    expected = [(np.array(values, dtype=np.float32) * 2).tolist() for values in requests]
    assert asyncio.run(together()) == expected


async def test_a_full_queue_refuses() -> None:
    loaded = Doubling()
    target = batcher(loaded, queue=2)
    first = await held(target, loaded)
    waiting = [asyncio.create_task(run(target, rows(1))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="Exceeds maximum queue size"):
        await run(target, rows(1))
    loaded.free.set()
    await asyncio.gather(first, *waiting)


async def test_cancelled_while_queued_leaves_the_others_alone() -> None:
    loaded = Doubling()
    target = batcher(loaded)
    first = await held(target, loaded)
    waiting = [asyncio.create_task(run(target, rows(value))) for value in range(3)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    loaded.free.set()
    results = await asyncio.gather(first, *waiting, return_exceptions=True)
    assert isinstance(results[2], asyncio.CancelledError)
    assert loaded.runs == [1, 2]


async def test_a_deadline_that_passes_in_the_queue_is_told_without_running() -> None:
    loaded = Doubling()
    target = batcher(loaded)
    first = await held(target, loaded)
    late = asyncio.create_task(run(target, rows(1), deadline_s=time.monotonic()))
    impatient = asyncio.create_task(run(target, rows(1), timeout_s=0.0))
    await asyncio.sleep(0)
    loaded.free.set()
    await first
    with pytest.raises(DeadlineExceeded):
        await late
    with pytest.raises(Overloaded, match="Request timeout expired"):
        await impatient
    assert loaded.runs == [1]


async def test_a_caller_whose_queue_time_is_over_is_told_while_the_copy_is_still_busy() -> None:
    loaded = Doubling()
    target = batcher(loaded)
    first = await held(target, loaded)
    with pytest.raises(Overloaded, match="Request timeout expired"):
        await run(target, rows(1), timeout_s=0.01)
    assert not first.done()
    assert repr(target) == "<Batcher m waiting=0 running=1>"
    loaded.free.set()
    await first
    assert loaded.runs == [1]


async def test_cancelled_while_running_leaves_a_run_that_is_waited_for() -> None:
    loaded = Doubling()
    target = batcher(loaded)
    first = await held(target, loaded)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    drained = asyncio.create_task(target.drained())
    await asyncio.sleep(0)
    assert (target.running, drained.done()) == (1, False)
    loaded.free.set()
    await asyncio.wait_for(drained, 60)
    assert target.running == 0


async def test_cancelled_while_queued_at_the_same_instant_as_another_leaves_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = Doubling()
    target = batcher(loaded)
    first = await held(target, loaded)
    monkeypatch.setattr("mesh.node.batcher.time.monotonic", lambda: 7.0)
    waiting = [asyncio.create_task(run(target, rows(1, 2))) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    ended = await asyncio.gather(waiting[1], return_exceptions=True)
    assert isinstance(ended[0], asyncio.CancelledError)
    loaded.free.set()
    await asyncio.gather(first, waiting[0])
    assert loaded.runs == [1, 2]


async def failing_together(target: Batcher, loaded: Doubling, *values: float) -> list[Ran | BaseException]:
    """Return how requests ended that came in one batch."""
    first = await held(target, loaded)
    together = [asyncio.create_task(run(target, rows(value))) for value in values]
    await asyncio.sleep(0)
    loaded.free.set()
    await first
    return await asyncio.gather(*together, return_exceptions=True)


def told(results: list[Ran | BaseException]) -> list[object]:
    return [each.outputs["y"].tolist() if isinstance(each, Ran) else str(each) for each in results]


RAISED = "model 'm' raised ValueError: not a number"


async def test_each_request_of_a_batch_that_failed_gets_its_own_answer_or_error() -> None:
    loaded = Doubling()
    target = batcher(loaded)
    results = await failing_together(target, loaded, 1.0, float("nan"), 3.0)
    assert told(results) == [[[2.0]], RAISED, [[6.0]]]
    assert isinstance(results[1], ModelFailed)
    assert loaded.runs == [1, 3, 1, 1, 1]
    assert [each.rows for each in results if isinstance(each, Ran)] == [1, 1]
    assert (await run(target, rows(3))).outputs["y"].tolist() == [[6.0]]
    assert target.running == 0


async def test_a_batch_that_failed_on_the_loop_is_run_again_in_threads() -> None:
    loaded = Doubling()
    target = batcher(loaded)
    for _ in range(200):
        await run(target, rows(1))
    loaded.threads.clear()
    values = [1.0, float("nan"), 3.0]
    results = await asyncio.gather(*(run(target, rows(each)) for each in values), return_exceptions=True)
    assert told(results) == [[[2.0]], RAISED, [[6.0]]]
    assert loaded.runs[200:] == [3, 1, 1, 1]
    assert loaded.threads - {threading.get_ident()}
    await target.drained()
    assert target.running == 0


async def test_a_model_may_say_that_its_batches_are_not_run_again() -> None:
    loaded = Doubling()
    target = batcher(loaded, reruns=False)
    assert told(await failing_together(target, loaded, 1.0, float("nan"))) == [RAISED, RAISED]
    assert loaded.runs == [1, 2]


class _Unrepeatable(MeshError):
    reruns = False


async def test_a_failure_that_is_no_requests_own_is_not_repeated() -> None:
    class Dying(Doubling):
        def run(self, inputs: Tensors, request: Request) -> Tensors:
            super().run(inputs, request)
            if len(inputs["x"]) > 1:
                raise _Unrepeatable("gone")
            return {"y": inputs["x"]}

    loaded = Dying()
    assert told(await failing_together(batcher(loaded), loaded, 1.0, 2.0)) == ["gone", "gone"]
    assert loaded.runs == [1, 2]


async def test_an_answer_of_the_wrong_length_for_a_batch_is_asked_for_one_by_one() -> None:
    class Summing(Doubling):
        def run(self, inputs: Tensors, request: Request) -> Tensors:
            return {"y": super().run(inputs, request)["y"].sum(axis=0, keepdims=True)}

    loaded = Summing()
    assert told(await failing_together(batcher(loaded), loaded, 1.0, 2.0)) == [[[2.0]], [[4.0]]]


async def test_cancelled_while_a_failed_batch_is_run_again_is_not_run() -> None:
    loaded = Doubling()
    target = batcher(loaded)
    first = await held(target, loaded)
    values = [1.0, float("nan"), 3.0]
    together = [asyncio.create_task(run(target, rows(value))) for value in values]

    class Leaving(threading.Event):
        """Holds the run of the first of them until the third has left."""

        def wait(self, timeout: float | None = None) -> bool:
            if loaded.runs[-2:] == [3, 1]:
                asyncio.run_coroutine_threadsafe(leave(), loop).result(60)
            return True

    async def leave() -> None:
        together[2].cancel()
        await asyncio.gather(together[2], return_exceptions=True)

    loop = asyncio.get_running_loop()
    await asyncio.sleep(0)
    was, loaded.free = loaded.free, Leaving()
    was.set()
    await first
    results = await asyncio.gather(*together, return_exceptions=True)
    assert told(results[:2]) == [[[2.0]], RAISED]
    assert loaded.runs == [1, 3, 1, 1]


async def test_a_deadline_that_passes_before_its_turn_of_a_failed_batch_is_told() -> None:
    loaded = Doubling()
    target = batcher(loaded)
    first = await held(target, loaded)
    deadline_s = time.monotonic() + 3600
    together = [
        asyncio.create_task(run(target, rows(1.0))),
        asyncio.create_task(run(target, rows(float("nan")), deadline_s=deadline_s)),
    ]
    await asyncio.sleep(0)
    item = target._queue[1]

    class Late(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if loaded.runs[-2:] == [2, 1]:
                item.deadline_s = 0.0
            return True

    was, loaded.free = loaded.free, Late()
    was.set()
    await first
    results = await asyncio.gather(*together, return_exceptions=True)
    assert told(results) == [[[2.0]], "the deadline passed in the queue of model 'm'"]


async def test_code_that_may_sleep_never_runs_on_the_loop() -> None:
    loaded = Doubling()
    loaded.steady = False
    target = batcher(loaded)
    for _ in range(5):
        await run(target, rows(1))
    assert loaded.threads.isdisjoint({threading.get_ident()})


async def test_tiny_runs_come_to_stay_on_the_loop_and_large_ones_do_not() -> None:
    loaded = Doubling()
    target = batcher(loaded, max_rows=100_000)
    for _ in range(200):
        await run(target, rows(1))
    assert threading.get_ident() in loaded.threads
    loaded.threads.clear()
    await run(target, {"x": np.zeros((100_000, 1), dtype=np.float32)})
    assert loaded.threads.isdisjoint({threading.get_ident()})


class Gated(Doubling):
    """Runs two at a time, each until the gate of its value is open. A negative value raises."""

    parallel = 2
    steady = False

    def __init__(self) -> None:
        super().__init__()
        self.gates = {value: threading.Event() for value in (-2.0, -1.0, 1.0, 2.0, 3.0)}
        self.ended = {value: threading.Event() for value in self.gates}

    def run(self, inputs: Tensors, request: Request) -> Tensors:
        value = float(inputs["x"][0, 0])
        assert self.gates[value].wait(60)
        self.ended[value].set()
        if value < 0:
            raise ValueError("below zero")
        return {"y": inputs["x"] * 2}


async def ran(loaded: Gated, value: float) -> None:
    """Let the run of `value` end, and its answer go through the event loop."""
    loaded.gates[value].set()
    assert await asyncio.to_thread(loaded.ended[value].wait, 60)
    for _ in range(3):  # The answer of a thread takes a turn or two of the loop.
        await asyncio.to_thread(int)


@pytest.mark.parametrize("first", [1.0, -1.0])
async def test_answers_keep_the_order_of_requests_where_the_model_wants_that(first: float) -> None:
    loaded = Gated()
    target = batcher(loaded, max_rows=0, in_order=True)
    told: list[float] = []
    tasks = []
    for value in (first, 2.0, 3.0):
        tasks.append(asyncio.create_task(run(target, rows(value)), name=str(value)))
        tasks[-1].add_done_callback(lambda task: told.append(float(task.get_name())))
        await asyncio.sleep(0)
    await ran(loaded, 2.0)
    await ran(loaded, 3.0)
    assert told == []
    assert not target.is_free(1.0)
    loaded.gates[first].set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert told == [first, 2.0, 3.0]
    if first < 0:
        assert isinstance(answers[0], ModelFailed)
    assert [answer.outputs["y"].item() for answer in answers if isinstance(answer, Ran)] == [
        value * 2 for value in (first, 2.0, 3.0) if value > 0
    ]


async def test_without_it_whoever_is_ready_is_answered() -> None:
    loaded = Gated()
    target = batcher(loaded, max_rows=0)
    slow, quick = (asyncio.create_task(run(target, rows(value))) for value in (1.0, 2.0))
    loaded.gates[2.0].set()
    assert (await quick).outputs["y"].item() == 4.0
    assert not slow.done()
    loaded.gates[1.0].set()
    await slow


async def test_a_caller_who_left_holds_its_turn_until_its_run_ends() -> None:
    loaded = Gated()
    target = batcher(loaded, max_rows=0, in_order=True)
    left, stays = (asyncio.create_task(run(target, rows(value))) for value in (1.0, 2.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    left.cancel()
    await ran(loaded, 2.0)
    assert not stays.done()
    loaded.gates[1.0].set()
    assert (await stays).outputs["y"].item() == 4.0


async def test_requests_of_a_batch_that_failed_are_answered_in_order_too() -> None:
    loaded = Doubling()
    target = batcher(loaded, in_order=True)
    first = await held(target, loaded)
    told: list[int] = []
    tasks = []
    for at, value in enumerate((1.0, float("nan"), 3.0)):
        tasks.append(asyncio.create_task(run(target, rows(value)), name=str(at)))
        tasks[-1].add_done_callback(lambda task: told.append(int(task.get_name())))
        await asyncio.sleep(0)
    tasks[0].cancel()
    loaded.free.set()
    answers = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert told == [0, 1, 2]
    assert isinstance(answers[2], ModelFailed)
    assert isinstance(answers[3], Ran)
    assert answers[3].outputs["y"].item() == 6.0
    assert target.is_free(1.0) or target.running == 0
