"""The models of Triton's public client examples do what these examples check."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from mesh.core.errors import InvalidRequest
from tests.fixtures.stateful import Copy
from tests.models.repositories import DECOUPLED, EXAMPLES, python_model, session

VALUES = [11, 7, 5, 3, 2, 0, 1]


async def send(name: str, values: list[int], sequence_id: int | str) -> list[int]:
    """Send `values` as one sequence and return its outputs."""
    copy, last = Copy(EXAMPLES, name), len(values) - 1
    asked = [
        copy.submit(
            {"INPUT": np.array([[value]], np.int32)},
            sequence_id=sequence_id,
            sequence_start=at == 0,
            sequence_end=at == last,
        )
        for at, value in enumerate(values)
    ]
    results = []
    for each in asked:
        output = (await each).outputs["OUTPUT"]
        assert output.dtype == np.int32
        assert output.shape == (1, 1)
        results.append(int(output[0, 0]))
    return results


@pytest.mark.parametrize(("name", "dtype"), [("simple", np.int32), ("simple_int8", np.int8)])
def test_simple_adds_and_subtracts_and_wraps_around(name: str, dtype: type[np.signedinteger[Any]]) -> None:
    most = np.iinfo(dtype).max
    first = np.array([[most, *range(15)]] * 2, dtype)
    second = np.ones((2, 16), dtype)
    total, difference = session(EXAMPLES / name).run(None, {"INPUT0": first, "INPUT1": second})
    assert total.dtype == difference.dtype == dtype
    assert np.array_equal(total, first + second)
    assert total[0, 0] == np.iinfo(dtype).min
    assert np.array_equal(difference, first - second)


def test_simple_string_adds_and_subtracts_decimal_text() -> None:
    first = np.array([[str(index).encode() for index in range(16)]], object)
    second = np.array([[b"1"] * 15 + [b"-99999999999999999999"]], object)
    outputs = python_model(EXAMPLES / "simple_string").infer({"INPUT0": first, "INPUT1": second})
    assert outputs["OUTPUT0"][0, :3].tolist() == [b"1", b"2", b"3"]
    assert outputs["OUTPUT1"][0, :3].tolist() == [b"-1", b"0", b"1"]
    assert outputs["OUTPUT1"][0, 15] == b"100000000000000000014"


def test_simple_string_names_the_text_that_is_no_number() -> None:
    ones, bad = np.array([[b"1"] * 16], object), np.array([[b"x"] * 16], object)
    with pytest.raises(InvalidRequest, match=r"input 'INPUT1' wants decimal numbers as text; got b'x'"):
        python_model(EXAMPLES / "simple_string").infer({"INPUT0": ones, "INPUT1": bad})


def test_simple_identity_keeps_embedded_nuls() -> None:
    data = np.array([[b"a\x00b", b"\x00", b"", b"c\x00"]], object)
    assert python_model(EXAMPLES / "simple_identity").infer({"INPUT0": data})["OUTPUT0"].tolist() == data.tolist()


async def test_simple_sequence_adds_one_at_the_start_for_number_and_text_ids() -> None:
    assert await send("simple_sequence", [0, *VALUES], 1000) == [1, *VALUES]
    assert await send("simple_sequence", [100, *VALUES], "7e1c") == [101, *VALUES]


async def test_simple_dyna_sequence_adds_the_sequence_id_at_the_end() -> None:
    assert await send("simple_dyna_sequence", [0, *VALUES], 1000) == [1, *VALUES[:-1], VALUES[-1] + 1000]
    assert await send("simple_dyna_sequence", [1], 2**64 - 1) == [1], "start adds 1, the id's lower 32 bits are -1"


async def test_simple_string_dyna_sequence_sums_and_adds_the_id_at_the_end() -> None:
    expected = np.cumsum([20, *VALUES]).tolist()
    expected[-1] += 1002
    assert await send("simple_string_dyna_sequence", [20, *VALUES], "1002") == expected


async def test_dyna_sequences_want_ids_that_are_numbers() -> None:
    with pytest.raises(InvalidRequest, match="takes the sequence_id as UINT64: expected a number, got 'abc'"):
        await send("simple_dyna_sequence", [1], "abc")
    with pytest.raises(InvalidRequest, match="spells a whole number; got 'abc'"):
        await send("simple_string_dyna_sequence", [1], "abc")


def test_densenet_gives_1000_values_that_depend_on_the_picture() -> None:
    running = session(EXAMPLES / "densenet_onnx")
    pictures = np.random.default_rng(1).random((2, 3, 224, 224)).astype(np.float32)
    first, second = (running.run(None, {"data_0": picture})[0] for picture in pictures)
    assert first.shape == (1000,)
    assert not np.array_equal(first, second)
    assert (EXAMPLES / "densenet_onnx" / "1" / "model.onnx").stat().st_size < 100_000


def test_repeat_answers_once_per_element_after_its_delay_and_then_waits() -> None:
    model = python_model(DECOUPLED / "repeat_int32")
    inputs = {
        "IN": np.array([4, 2, 0], np.int32),
        "DELAY": np.array([20, 0, 30], np.uint32),
        "WAIT": np.array([40], np.uint32),
    }
    started = time.monotonic()
    answers = [(time.monotonic() - started, outputs) for outputs in model.infer(inputs)]
    ended = time.monotonic() - started
    assert [int(outputs["OUT"][0]) for _, outputs in answers] == [4, 2, 0]
    assert [int(outputs["IDX"][0]) for _, outputs in answers] == [0, 1, 2]
    assert answers[0][1]["OUT"].dtype == np.int32
    assert answers[0][1]["IDX"].dtype == np.uint32
    assert answers[0][0] >= 0.020
    assert answers[2][0] >= 0.050
    assert ended >= 0.090


def test_repeat_of_nothing_answers_nothing() -> None:
    none = {"IN": np.empty(0, np.int32), "DELAY": np.empty(0, np.uint32), "WAIT": np.zeros(1, np.uint32)}
    assert list(python_model(DECOUPLED / "repeat_int32").infer(none)) == []


def test_repeat_wants_one_delay_per_element() -> None:
    uneven = {"IN": np.zeros(2, np.int32), "DELAY": np.zeros(1, np.uint32), "WAIT": np.zeros(1, np.uint32)}
    with pytest.raises(InvalidRequest, match="one delay for each of the 2 elements of 'IN'; got 1"):
        list(python_model(DECOUPLED / "repeat_int32").infer(uneven))
