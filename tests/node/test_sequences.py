"""The queue of a copy whose requests are steps of sequences, on real Python and ONNX models."""

from __future__ import annotations

import asyncio
import time
from asyncio import Future
from collections.abc import Awaitable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mesh.api.describe import model_config
from mesh.api.snapshot import decode_snapshot, encode_snapshot
from mesh.core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    LoadFailed,
    ModelFailed,
    Overloaded,
    SessionLost,
    UnknownSequence,
)
from mesh.node.gauge import ON_LOOP_S, Gauge
from mesh.node.runtimes.base import Request
from tests.fixtures.etcd import eventually
from tests.fixtures.models import folder_of
from tests.fixtures.sessions import folded, folding_model
from tests.fixtures.stateful import Copy, load, scanned

T = TypeVar("T")


def x(value: int) -> dict[str, np.ndarray]:
    return {"x": np.array([[value]], np.int64)}


def value_of(ran: object) -> int:
    return int(ran.outputs["y"][0, 0])  # type: ignore[attr-defined] # a Ran


@pytest.fixture
async def copy(tmp_path: Path) -> Copy:
    folding_model(tmp_path, "fold")
    return Copy(tmp_path, "fold")


def summing_model(repository: Path, name: str, yaml: str = "", *, batch: str | int = "n") -> None:
    """Write an ONNX model that adds its input to its state; both are FP32 [n, 2]."""
    folder = folder_of(repository, name, f"runtime: onnx\n{yaml}")

    def tensor(called: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(called, TensorProto.FLOAT, [batch, 2])

    nodes = [helper.make_node("Add", ["x", "sum"], ["sum_next"]), helper.make_node("Identity", ["sum_next"], ["y"])]
    graph = helper.make_graph(nodes, name, [tensor("x"), tensor("sum")], [tensor("y"), tensor("sum_next")])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "model.onnx"
    )


STATE = "max_batch_size: 8\nsequence: {states: [{input: sum, output: sum_next}]}\n"


async def test_steps_of_many_sequences_run_together_each_on_its_own_state(copy: Copy) -> None:
    for at in range(3):
        asked = [copy.submit(x(n + at), sequence_id=n, sequence_start=at == 0) for n in range(1, 11)]
        answers = [value_of(await each) for each in asked]
        assert answers == [folded(range(n, n + at + 1))[at] for n in range(1, 11)]
    assert copy.statistics.executions < 30
    assert copy.queue.live == 10


async def test_a_sequence_whose_start_failed_has_not_begun(copy: Copy) -> None:
    with pytest.raises(ModelFailed):
        await copy.submit(x(-1), sequence_id=1, sequence_start=True)
    assert copy.queue.live == 0
    with pytest.raises(UnknownSequence):
        copy.submit(x(1), sequence_id=1)
    first = copy.submit(x(-1), sequence_id=2, sequence_start=True)
    rest = [copy.submit(x(1), sequence_id=2), copy.submit(x(4), sequence_id=2, sequence_start=True)]
    failed, behind, anew = await asyncio.gather(first, *rest, return_exceptions=True)
    assert (type(failed), type(behind)) == (ModelFailed, UnknownSequence)
    assert value_of(anew) == folded([4])[0]
    # A start on a live sequence that fails ends that one too: it was to begin anew.
    with pytest.raises(ModelFailed):
        await copy.submit(x(-1), sequence_id=2, sequence_start=True)
    with pytest.raises(UnknownSequence):
        copy.submit(x(1), sequence_id=2)


async def test_steps_of_one_sequence_run_one_after_another_in_their_order(copy: Copy) -> None:
    asked = [copy.submit(x(at), sequence_id="a", sequence_start=at == 0) for at in range(20)]
    assert [value_of(await each) for each in asked] == folded(range(20))
    assert copy.statistics.executions == 20


async def test_a_start_on_a_live_sequence_begins_anew_behind_what_waits(copy: Copy) -> None:
    asked = [copy.submit(x(1), sequence_id=1, sequence_start=at in {0, 2}) for at in range(4)]
    assert [value_of(await each) for each in asked] == [*folded([1, 1]), *folded([1, 1])]


async def test_an_ended_sequence_must_start_again(copy: Copy) -> None:
    await copy.submit(x(1), sequence_id=1, sequence_start=True, sequence_end=True)
    assert copy.queue.live == 0
    with pytest.raises(UnknownSequence, match="must specify the START flag"):
        copy.submit(x(1), sequence_id=1)


async def test_a_step_behind_an_end_that_waits_must_start_too(copy: Copy) -> None:
    last = copy.submit(x(1), sequence_id=1, sequence_start=True, sequence_end=True)
    with pytest.raises(UnknownSequence, match="must specify the START flag"):
        copy.submit(x(1), sequence_id=1)
    assert value_of(await last) == folded([1])[0]


@pytest.mark.parametrize(
    ("parameters", "rows", "said"),
    [
        ({}, 1, "must specify a non-zero or non-empty correlation ID"),
        ({"sequence_id": 0}, 1, "must specify a non-zero or non-empty correlation ID"),
        ({}, 2, "must specify batch-size 1"),
        ({"sequence_id": True}, 1, "expected 'sequence_id' as a whole number or a text, got True"),
        ({"sequence_id": 1, "sequence_end": "no"}, 1, "expected 'sequence_end' as true or false, got 'no'"),
        (
            {"sequence_id": 1, "sequence_start": True},
            2,
            "^inference request to model 'fold' must specify batch-size 1 due to requirements of sequence batcher$",
        ),
    ],
)
async def test_what_is_no_step_is_refused(copy: Copy, parameters: dict[str, Any], rows: int, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        copy.submit(x(1), rows=rows, **parameters)


async def test_a_step_that_raises_fails_alone_and_leaves_its_state(copy: Copy) -> None:
    for n in (1, 2, 3):
        await copy.submit(x(5), sequence_id=n, sequence_start=True)
    good, bad, other = (copy.submit(x(value), sequence_id=n) for n, value in ((1, 6), (2, -1), (3, 6)))
    with pytest.raises(ModelFailed, match="a step that cannot be run"):
        await bad
    assert value_of(await good) == value_of(await other) == folded([5, 6])[1]
    assert value_of(await copy.submit(x(7), sequence_id=2)) == folded([5, 7])[1]


@pytest.mark.parametrize(("sequence", "rest"), [("{replayable: false}", ""), ("{}", "rerun_failed_batches: false\n")])
async def test_steps_that_may_not_be_repeated_fail_together(tmp_path: Path, sequence: str, rest: str) -> None:
    folding_model(tmp_path, "strict", sequence)
    config = tmp_path / "strict" / "model.yaml"
    config.write_text(config.read_text() + rest)
    copy = Copy(tmp_path, "strict")
    for n in (1, 2):
        await copy.submit(x(5), sequence_id=n, sequence_start=True)
    steps = [copy.submit(x(value), sequence_id=n) for n, value in ((1, 6), (2, -1))]
    failed = await asyncio.gather(*steps, return_exceptions=True)
    assert [type(each) for each in failed] == [ModelFailed, ModelFailed]
    assert value_of(await copy.submit(x(7), sequence_id=1)) == folded([5, 7])[1]


async def test_steps_that_fail_together_on_the_loop_are_run_one_by_one_in_threads(copy: Copy) -> None:
    copy.queue._gauge = gauge = Gauge(steady=True)
    for n in (1, 2):
        await copy.submit(x(5), sequence_id=n, sequence_start=True)
    gauge.measured(1e-6, 1_000_000)
    assert gauge.predicted_s(1) < ON_LOOP_S
    good, bad = copy.submit(x(6), sequence_id=1), copy.submit(x(-1), sequence_id=2)
    with pytest.raises(ModelFailed, match="a step that cannot be run"):
        await bad
    assert value_of(await good) == folded([5, 6])[1]
    assert copy.queue.running == 0


async def test_live_sequences_are_bounded_and_the_next_wait_for_one_that_ends(tmp_path: Path) -> None:
    folding_model(tmp_path, "few", "{max_live: 2}")
    copy = Copy(tmp_path, "few", queue=3)
    for n in (1, 2):
        await copy.submit(x(1), sequence_id=n, sequence_start=True)
    waits = [copy.submit(x(1), sequence_id=n, sequence_start=True) for n in (3, 4, 5)]
    await asyncio.sleep(0)
    assert not any(each.done() for each in waits)
    with pytest.raises(Overloaded, match=r"3 steps of 2 live sequences \(at most 2\) wait"):
        copy.submit(x(1), sequence_id=6, sequence_start=True)
    # The queue is full; a step of a live sequence must wait for room as well, and there is room when one of them ran.
    copy.queue.schedule.remove(copy.queue.schedule.find(1), 0.0)  # type: ignore[arg-type] # it is there
    assert value_of(await waits[0]) == folded([1])[0]


async def soon(waits: Awaitable[T]) -> T:
    """Return what comes; a waiter that nobody wakes is a failure, not a test without an end."""
    async with asyncio.timeout(60):
        return await waits


async def test_one_that_waits_has_the_place_of_one_that_is_idle_for_too_long(tmp_path: Path) -> None:
    folding_model(tmp_path, "single", "{max_live: 1, idle_s: 0.1}")
    copy = Copy(tmp_path, "single")
    await copy.submit(x(1), sequence_id=1, sequence_start=True)
    assert value_of(await soon(copy.submit(x(2), sequence_id=2, sequence_start=True))) == folded([2])[0]


async def test_many_abandoned_sequences_hold_nobody_up_for_long(tmp_path: Path) -> None:
    folding_model(tmp_path, "some", "{max_live: 100, idle_s: 0.3}")
    copy = Copy(tmp_path, "some", queue=5000)
    abandoned = [copy.submit(x(1), sequence_id=n, sequence_start=True) for n in range(1, 501)]
    honest = copy.submit(x(2), sequence_id="honest", sequence_start=True)
    assert value_of(await soon(honest)) == folded([2])[0]
    assert all(each.done() for each in abandoned)


async def test_a_caller_with_any_number_of_ids_keeps_no_other_out(tmp_path: Path) -> None:
    folding_model(tmp_path, "some", "{max_live: 50, idle_s: 600}")
    copy = Copy(tmp_path, "some", queue=20)
    refused = 0
    for n in range(1, 2001):
        try:
            copy.submit(x(1), sequence_id=n, sequence_start=True, caller="many").add_done_callback(Future.exception)
        except Overloaded:
            refused += 1
        if n % 50 == 0:
            await asyncio.sleep(0)
    assert refused > 0
    assert copy.queue.live == 50
    honest = [copy.submit(x(n), sequence_id=f"honest {n}", sequence_start=True, caller="few") for n in range(5)]
    assert [value_of(await soon(each)) for each in honest] == [folded([n])[0] for n in range(5)]
    assert value_of(await soon(copy.submit(x(1), sequence_id="honest 0", caller="few"))) == folded([0, 1])[1]
    with pytest.raises(UnknownSequence):
        copy.submit(x(1), sequence_id=1, caller="many")


async def test_one_that_waits_has_the_place_of_one_that_another_copy_took(tmp_path: Path) -> None:
    folding_model(tmp_path, "single", "{max_live: 1}")
    copy = Copy(tmp_path, "single")
    await copy.submit(x(1), sequence_id=1, sequence_start=True)
    waits = copy.submit(x(2), sequence_id=2, sequence_start=True)
    assert copy.queue.take(1) is not None
    assert value_of(await soon(waits)) == folded([2])[0]


async def test_one_that_waits_has_the_place_of_one_whose_caller_left_before_it_began(tmp_path: Path) -> None:
    folding_model(tmp_path, "single", "{max_live: 1}")
    copy = Copy(tmp_path, "single")
    left = asyncio.get_running_loop().create_future()
    waiter = SimpleNamespace(ran=left.set_result, failed=left.set_exception)
    flags = Request("", {"sequence_id": 1, "sequence_start": True})
    item = copy.queue.submit(x(1), flags, 1, waiter, deadline_s=None, queue_timeout_s=None)
    waits = copy.submit(x(2), sequence_id=2, sequence_start=True)
    copy.queue.withdraw(item)
    assert value_of(await soon(waits)) == folded([2])[0]


async def test_the_steps_of_a_live_sequence_do_not_time_out_in_its_own_queue(tmp_path: Path) -> None:
    folding_model(tmp_path, "fold")
    copy = Copy(tmp_path, "fold")
    copy.queue._gauge.measured(1.0, 1)  # Runs in a thread.
    asked = [
        copy.submit(x(at), sequence_id=1, sequence_start=at == 0, queue_timeout_s=0.0 if at else None)
        for at in range(5)
    ]
    assert [value_of(await soon(each)) for each in asked] == folded(range(5))


async def test_a_step_that_times_out_in_the_backlog_takes_its_sequence_along(tmp_path: Path) -> None:
    folding_model(tmp_path, "single", "{max_live: 1}")
    copy = Copy(tmp_path, "single")
    await copy.submit(x(1), sequence_id=1, sequence_start=True)
    first = copy.submit(x(2), sequence_id=2, sequence_start=True)
    second = copy.submit(x(3), sequence_id=2, queue_timeout_s=0.05)
    patient = copy.submit(x(4), sequence_id=3, sequence_start=True)
    for each in (second, first):
        with pytest.raises(Overloaded, match="Request timeout expired"):
            await soon(each)
    assert not patient.done()
    assert copy.queue.take(1) is not None
    assert value_of(await soon(patient)) == folded([4])[0]
    assert copy.queue.schedule.waiting == 0


async def test_idle_sequences_are_forgotten(tmp_path: Path) -> None:
    folding_model(tmp_path, "short", "{idle_s: 0.05}")
    copy = Copy(tmp_path, "short")
    await copy.submit(x(1), sequence_id=1, sequence_start=True)
    await eventually(lambda: not copy.queue.live, what="the sequence is forgotten")
    with pytest.raises(UnknownSequence):
        copy.submit(x(1), sequence_id=1)


async def test_a_deadline_that_passed_ends_a_step_before_it_runs(copy: Copy) -> None:
    with pytest.raises(DeadlineExceeded):
        await copy.submit(x(1), sequence_id=1, sequence_start=True, deadline_s=time.monotonic() - 1)
    # It never began: what follows has nothing to follow.
    with pytest.raises(UnknownSequence):
        await copy.submit(x(1), sequence_id=1)


async def test_the_state_is_told_to_those_who_keep_it_and_another_copy_goes_on_from_it(tmp_path: Path) -> None:
    folding_model(tmp_path, "fold")
    one, other = Copy(tmp_path, "fold"), Copy(tmp_path, "fold")
    first = await one.submit(x(3), sequence_id=1, sequence_start=True, tells=True)
    assert decode_snapshot(first.state).count == 1
    assert (await one.submit(x(4), sequence_id=1)).state == b""
    ran = await other.submit(x(4), sequence_id=1, restored=first.state, tells=True)
    assert value_of(ran) == folded([3, 4])[1]
    assert decode_snapshot(ran.state).count == 2


@pytest.mark.parametrize(("said", "told"), [("{snapshot_messages: 3}", [0, 0, 1, 0, 0, 1]), ("{}", [1] * 6)])
async def test_how_often_the_state_is_told_is_the_models_to_say(tmp_path: Path, said: str, told: list[int]) -> None:
    folding_model(tmp_path, "some", said)
    copy = Copy(tmp_path, "some")
    rans = [await copy.submit(x(1), sequence_id=1, sequence_start=at == 0, tells=True) for at in range(6)]
    assert [int(bool(ran.state)) for ran in rans] == told


async def test_a_state_of_other_files_or_of_another_shape_is_refused(copy: Copy) -> None:
    foreign = encode_snapshot({"total": 1}, count=1, digest="f" * 64)
    with pytest.raises(SessionLost, match="the state is of other files of model 'fold'"):
        copy.submit(x(1), sequence_id=1, restored=foreign)
    wrong = encode_snapshot([1], count=1, digest=copy.model.digest)
    with pytest.raises(InvalidRequest, match="expected a dict as the state of a sequence, got a list"):
        copy.submit(x(1), sequence_id=1, restored=wrong)
    with pytest.raises(InvalidRequest, match="expected the state of a sequence"):
        copy.submit(x(1), sequence_id=1, restored=b"\x00nonsense")


async def test_a_sequence_that_is_taken_is_not_here_any_more(copy: Copy) -> None:
    await copy.submit(x(1), sequence_id=1, sequence_start=True)
    state = copy.queue.take(1)
    assert state is not None
    assert copy.queue.take(1) is None
    with pytest.raises(UnknownSequence):
        copy.submit(x(1), sequence_id=1)
    assert value_of(await copy.submit(x(2), sequence_id=1, restored=state)) == folded([1, 2])[1]


async def test_an_onnx_models_state_is_kept_beside_its_inputs_and_outputs(tmp_path: Path) -> None:
    summing_model(tmp_path, "sum", STATE)
    copy = Copy(tmp_path, "sum")
    assert [spec.name for spec in copy.loaded.inputs] == ["x"]
    assert [spec.name for spec in copy.loaded.outputs] == ["y"]

    async def step(n: int, value: float, *, start: bool = False, restored: bytes = b"") -> list[float]:
        rows = {"x": np.full((1, 2), value, np.float32)}
        ran = await copy.submit(rows, sequence_id=n, sequence_start=start, restored=restored, tells=True)
        states.append(ran.state)
        assert set(ran.outputs) == {"y"}
        found: list[float] = ran.outputs["y"][0].tolist()
        return found

    states: list[bytes] = []
    assert await asyncio.gather(*(step(n, n, start=True) for n in (1, 2, 3))) == [[1, 1], [2, 2], [3, 3]]
    assert await asyncio.gather(*(step(n, 10) for n in (1, 2, 3))) == [[11, 11], [12, 12], [13, 13]]
    assert await step(9, 1, restored=states[-1]) == [14, 14]
    bad = encode_snapshot({"sum": b"123"}, count=1, digest=copy.model.digest)
    with pytest.raises(InvalidRequest, match="expected state 'sum' of model 'sum' as 8 bytes"):
        await step(9, 1, restored=bad)


async def test_a_model_without_a_batch_axis_steps_one_sequence_at_a_time(tmp_path: Path) -> None:
    summing_model(tmp_path, "one", "sequence: {states: [{input: sum, output: sum_next, initial: 5}]}\n", batch=1)
    copy = Copy(tmp_path, "one")
    asked = [copy.submit({"x": np.ones((1, 2), np.float32)}, sequence_id=n, sequence_start=True) for n in (1, 2)]
    assert [(await each).outputs["y"].tolist() for each in asked] == [[[6, 6]], [[6, 6]]]


async def test_the_initial_state_can_be_a_file(tmp_path: Path) -> None:
    said = "max_batch_size: 8\nsequence: {states: [{input: sum, output: sum_next, initial_file: begin.raw}]}\n"
    summing_model(tmp_path, "file", said)
    (tmp_path / "file" / "1" / "begin.raw").write_bytes(np.array([2, 3], np.float32).tobytes())
    copy = Copy(tmp_path, "file")
    ran = await copy.submit({"x": np.ones((1, 2), np.float32)}, sequence_id=1, sequence_start=True)
    assert ran.outputs["y"].tolist() == [[3, 4]]


@pytest.mark.parametrize(
    ("sequence", "said"),
    [
        ("states: [{input: nothing, output: sum_next, shape: [2]}]", "it has no input 'nothing'"),
        ("states: [{input: sum, output: sum_next, shape: [3]}]", "input 'sum' is FP32"),
        ("states: [{input: sum, output: sum_next, dtype: INT64}]", "input 'sum' is FP32"),
        ("states: [{input: sum, output: sum_next, initial_file: none}]", "expected 2 elements of FP32 in none"),
        ("controls: [{name: START, kind: start}], states: [{input: sum, output: sum_next}]", "no input 'START'"),
    ],
)
def test_a_section_that_does_not_fit_the_file_fails_the_load(tmp_path: Path, sequence: str, said: str) -> None:
    summing_model(tmp_path, "bad", f"max_batch_size: 8\nsequence: {{{sequence}}}\n")
    with pytest.raises(LoadFailed, match=said):
        load(scanned(tmp_path, "bad"))


async def test_half_of_the_slots_need_not_wait_for_the_others(tmp_path: Path) -> None:
    waits = "max_queue_delay_us: 600000000\n"
    folding_model(tmp_path, "half", "{minimum_slot_utilization: 0.03}", yaml=waits)
    folding_model(tmp_path, "full", "{}", yaml=waits)
    half, full = Copy(tmp_path, "half"), Copy(tmp_path, "full")
    first = half.submit(x(1), sequence_id=1, sequence_start=True)
    alone = full.submit(x(1), sequence_id=1, sequence_start=True)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not first.done()
    second = half.submit(x(2), sequence_id=2, sequence_start=True)
    full.submit(x(2), sequence_id=2, sequence_start=True)
    assert [value_of(await soon(each)) for each in (first, second)] == [folded([1])[0], folded([2])[0]]
    assert half.statistics.batches.keys() == {2}
    assert not alone.done()


def test_the_configuration_says_which_strategy_it_is(tmp_path: Path) -> None:
    folding_model(tmp_path, "half", "{minimum_slot_utilization: 0.5}", yaml="max_queue_delay_us: 700\n")
    folding_model(tmp_path, "full", "{max_live: 9}", yaml="max_queue_delay_us: 700\n")
    half, full = (model_config(scanned(tmp_path, name)).sequence_batching for name in ("half", "full"))
    assert half.WhichOneof("strategy_choice") == "direct"
    assert (half.direct.minimum_slot_utilization, half.direct.max_queue_delay_microseconds) == (0.5, 700)
    assert full.WhichOneof("strategy_choice") == "oldest"
    assert (full.oldest.max_candidate_sequences, full.oldest.max_queue_delay_microseconds) == (9, 700)
