"""States that stay on a device. The CPU is the device here: ONNX Runtime's calls are the same."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.api.snapshot import decode_snapshot
from mesh.core.errors import ModelFailed
from mesh.core.types import Device, DeviceKind
from mesh.node.runtimes.bank import ONNX_TYPES, Bank, Place, rows_model
from mesh.node.runtimes.on_device import DeviceSteps
from mesh.node.runtimes.onnx import _options, has_cuda
from mesh.node.runtimes.stateful import TensorSteps
from tests.fixtures.stateful import Copy
from tests.node.test_sequences import STATE, summing_model

CPU = Place("cpu", 0, ("CPUExecutionProvider",))


class OnDevice(Copy):
    """A copy whose states are kept as on a GPU."""

    def __init__(self, repository: Path, name: str) -> None:
        super().__init__(repository, name, place=CPU)
        assert isinstance(self.loaded.steps, DeviceSteps)


def row(value: float) -> dict[str, np.ndarray]:
    return {"x": np.array([[value, -value]], np.float32)}


@pytest.mark.parametrize("dtype", sorted(ONNX_TYPES, key=str), ids=str)
@pytest.mark.parametrize("operator", ["Gather", "ScatterND"])
def test_the_models_of_rows_are_valid(operator: str, dtype: np.dtype[Any]) -> None:
    made = onnx.load_model_from_string(rows_model(operator, (3, 200), dtype))
    onnx.checker.check_model(made, full_check=True)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 150), unique=True, min_size=1, max_size=20), min_size=1, max_size=8),
    st.sampled_from((np.float32, np.int64, np.float16, np.bool_)),
)
def test_rows_are_what_was_written_last(written: list[list[int]], kind: type) -> None:
    bank = Bank((2,), np.dtype(kind), CPU, _options)
    model: dict[int, Any] = {}
    for number, at in enumerate(written):
        values: Any = (np.arange(2 * len(at)).reshape(-1, 2) + number).astype(kind)
        bank.write(np.array(at, np.int64), values)
        model.update(zip(at, values, strict=True))
    found = bank.read(np.array(sorted(model), np.int64)).numpy()
    assert found.dtype == np.dtype(kind)
    np.testing.assert_array_equal(found, [model[at] for at in sorted(model)])


async def test_steps_are_those_of_states_on_the_host(tmp_path: Path) -> None:
    """Many sequences that begin, step and end at any time, in batches that are never the same."""
    summing_model(tmp_path, "sum", STATE)
    copy = OnDevice(tmp_path, "sum")
    random = np.random.default_rng(5)
    sums: dict[int, float] = {}
    for _ in range(40):
        chosen = [int(n) for n in random.choice(100, size=int(random.integers(1, 30)), replace=False) + 1]
        asked = []
        for n in chosen:
            start, end = n not in sums or random.random() < 0.1, random.random() < 0.2
            value = float(random.integers(0, 100))
            sums[n] = value if start else sums[n] + value
            tells = bool(random.random() < 0.5)
            told: dict[str, Any] = {"sequence_id": n, "sequence_start": start, "sequence_end": end}
            asked.append((n, tells and not end, sums[n], copy.submit(row(value), tells=tells, **told)))
            if end:
                del sums[n]
        for n, tells, expected, future in asked:
            ran = await future
            assert ran.outputs["y"].tolist() == [[expected, -expected]], n
            if tells:
                state = decode_snapshot(ran.state).state
                assert np.frombuffer(state["sum"], np.float32).tolist() == [expected, -expected]
    assert copy.queue.live == len(sums)


async def test_a_state_is_given_away_long_after_its_last_step_and_goes_on_elsewhere(tmp_path: Path) -> None:
    summing_model(tmp_path, "sum", STATE)
    one, other = OnDevice(tmp_path, "sum"), OnDevice(tmp_path, "sum")
    for value in (1, 2):
        await one.submit(row(value), sequence_id=7, sequence_start=value == 1)
    await asyncio.gather(*(one.submit(row(9), sequence_id=n, sequence_start=True) for n in range(20, 60)))
    gc.collect()
    state = one.queue.take(7)
    assert state is not None
    ran = await other.submit(row(4), restored=state, sequence_id=7)
    assert ran.outputs["y"].tolist() == [[7, -7]]


async def test_rows_of_sequences_that_ended_are_used_again(tmp_path: Path) -> None:
    summing_model(tmp_path, "sum", STATE)
    copy = OnDevice(tmp_path, "sum")
    for n in range(1, 300):
        ran = await copy.submit(row(n), sequence_id=n, sequence_start=True, sequence_end=True)
        assert ran.outputs["y"].tolist() == [[n, -n]]
    assert isinstance(copy.queue._steps, DeviceSteps)
    assert copy.queue._steps.rows <= 2


async def test_a_step_that_fails_leaves_the_states_as_they_were(tmp_path: Path) -> None:
    summing_model(tmp_path, "sum", STATE)
    copy = OnDevice(tmp_path, "sum")
    await copy.submit(row(1), sequence_id=1, sequence_start=True)
    bad = copy.submit({"x": np.array([[1, 2, 3]], np.float32)}, sequence_id=1)
    good = copy.submit(row(5), sequence_id=2, sequence_start=True)
    with pytest.raises(ModelFailed):
        await bad
    assert (await good).outputs["y"].tolist() == [[5, -5]]
    assert (await copy.submit(row(2), sequence_id=1)).outputs["y"].tolist() == [[3, -3]]


async def test_a_state_that_cannot_be_read_fails_its_own_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device may refuse to give a state back; whoever ran along in the batch has an answer."""
    summing_model(tmp_path, "sum", STATE)
    copy = OnDevice(tmp_path, "sum")
    asked = [copy.submit(row(n), sequence_id=n, sequence_start=True, tells=n == 1) for n in range(1, 4)]

    def refuses(state: Any) -> Any:
        raise RuntimeError("CUDA failure 2: out of memory")

    monkeypatch.setattr(copy.loaded.steps, "packed", refuses)
    with pytest.raises(ModelFailed, match=r"cannot be read: CUDA failure 2"):
        await asyncio.wait_for(asked[0], 10)
    for n, future in enumerate(asked[1:], 2):
        assert (await asyncio.wait_for(future, 10)).outputs["y"].tolist() == [[n, -n]]


async def test_a_device_that_cannot_do_it_leaves_the_states_on_the_host(tmp_path: Path) -> None:
    summing_model(tmp_path, "sum", STATE)
    copy = Copy(tmp_path, "sum")
    loaded: Any = copy.loaded
    loaded.keeps_states(copy.model, Place("cuda", 7, ("CPUExecutionProvider",)))
    assert isinstance(loaded.steps, TensorSteps)


@pytest.mark.skipif(not has_cuda(), reason="this ONNX Runtime has no CUDA")
async def test_states_stay_on_a_gpu(tmp_path: Path) -> None:
    summing_model(tmp_path, "sum", STATE)
    copy = Copy(tmp_path, "sum", device=Device(DeviceKind.GPU, 0, "gpu", 1 << 30, 1 << 30))
    assert isinstance(copy.loaded.steps, DeviceSteps)
    for step in range(1, 4):
        asked = [copy.submit(row(n), sequence_id=n, sequence_start=step == 1, tells=True) for n in range(1, 100)]
        for n, future in enumerate(asked, 1):
            ran = await future
            assert ran.outputs["y"].tolist() == [[n * step, -n * step]]
            state = decode_snapshot(ran.state).state
            assert np.frombuffer(state["sum"], np.float32).tolist() == [n * step, -n * step]
