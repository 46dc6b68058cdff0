"""Text that an ONNX model makes step by step: what is drawn, when it ends, and that it goes on elsewhere."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mesh.api.snapshot import encode_snapshot
from mesh.core.errors import InvalidRequest, LoadFailed
from mesh.core.sessions.chance import drawn
from mesh.node.generation import responses
from mesh.node.runtimes.base import Request
from mesh.node.served import Served
from tests.fixtures.models import folder_of
from tests.fixtures.stateful import load, scanned

ALPHABET = "abcdefgh"


def counting_model(repository: Path, name: str, section: str = "", *, vocabulary: str = ALPHABET) -> None:
    """Write a model that finds the next letter likeliest, and adds to its state what it saw."""
    folder = folder_of(
        repository,
        name,
        "runtime: onnx\ndecoupled: true\nmax_batch_size: 8\ngeneration:\n  states: [{input: sum, output: sum_next}]\n"
        f"{section}",
    )
    (folder / "vocabulary.txt").write_text(vocabulary)
    size = len(ALPHABET)
    follows = np.roll(np.eye(size, dtype=np.float32) * 5, 1, axis=1)
    nodes = [
        helper.make_node("Gather", ["follows", "token"], ["rows"]),
        helper.make_node("Squeeze", ["rows", "one"], ["logits"]),
        helper.make_node("Cast", ["token"], ["seen"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["sum", "seen"], ["sum_next"]),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [
            helper.make_tensor_value_info("token", TensorProto.INT64, ["n", 1]),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n", 1]),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", size]),
            helper.make_tensor_value_info("sum_next", TensorProto.FLOAT, ["n", 1]),
        ],
        [numpy_helper.from_array(follows, "follows"), numpy_helper.from_array(np.array([1], np.int64), "one")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )


class Writer:
    """A copy of the model."""

    def __init__(self, repository: Path, name: str = "count") -> None:
        model = scanned(repository, name)
        loaded = load(model)
        self.served = Served(model, loaded, ThreadPoolExecutor(2), bytes_held=0, default_queue_size=100)

    async def write(self, prompt: str, state: bytes = b"", **parameters: Any) -> tuple[str, list[bytes]]:
        given = np.array([[prompt.encode()]], dtype=object)
        text, states = "", []
        async for outputs, told in responses(
            self.served, {"PROMPT": given}, Request("", parameters, state, tells=True), None
        ):
            text += outputs["TEXT"][0, 0].decode()
            states.append(told)
        return text, states


@pytest.fixture
async def writer(tmp_path: Path) -> Writer:
    counting_model(tmp_path, "count")
    return Writer(tmp_path)


async def test_the_likeliest_letter_follows_the_prompt(writer: Writer) -> None:
    assert (await writer.write("abc", max_tokens=7))[0] == "defghab"
    assert (await writer.write("", max_tokens=2))[0] == "bc"


async def test_it_ends_behind_the_letter_that_stops_it(writer: Writer) -> None:
    assert (await writer.write("abc", stop="f"))[0] == "def"


async def test_a_seed_makes_the_same_text_again_and_another_makes_another(writer: Writer) -> None:
    told: dict[str, Any] = {"temperature": 3.0, "max_tokens": 60}
    first, again, other = [(await writer.write("a", seed=seed, **told))[0] for seed in (1, 1, 2)]
    assert first == again != other
    assert set(first) <= set(ALPHABET)


async def test_generations_step_together_and_each_on_its_own_state(writer: Writer) -> None:
    alone = [(await writer.write(prompt, max_tokens=20))[0] for prompt in ("a", "bcd", "h")]
    before = writer.served.statistics.executions
    together = await asyncio.gather(*(writer.write(prompt, max_tokens=20) for prompt in ("a", "bcd", "h")))
    assert [text for text, _ in together] == alone
    assert writer.served.statistics.executions - before < 40


async def test_another_copy_goes_on_from_any_response(tmp_path: Path) -> None:
    counting_model(tmp_path, "count")
    one, other = Writer(tmp_path), Writer(tmp_path)
    told: dict[str, Any] = {"temperature": 2.0, "seed": 5, "max_tokens": 12}
    text, states = await one.write("abc", **told)
    for at, state in enumerate(states):
        assert (await other.write("abc", state, **told))[0] == text[at + 1 :]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"max_tokens": 0}, "expected max_tokens as a whole number of 1 or more, got 0"),
        ({"max_tokens": True}, "expected max_tokens as a whole number of 1 or more, got True"),
        ({"temperature": -1}, "expected temperature as a number from 0"),
        ({"temperature": "hot"}, "expected temperature as a number from 0"),
        ({"seed": 1.5}, "expected seed as a whole number, got 1.5"),
        ({"stop": 3}, "expected stop as a character to end behind, got 3"),
    ],
)
async def test_parameters_that_make_no_sense_are_refused(writer: Writer, parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        await writer.write("a", **parameters)


async def test_a_prompt_that_it_cannot_read_is_refused_and_fails_no_other(writer: Writer) -> None:
    good = asyncio.create_task(writer.write("a", max_tokens=50))
    with pytest.raises(InvalidRequest, match="does not know the character 'z'; it knows 'abcdefgh'"):
        await writer.write("xyz"[2])
    assert len((await good)[0]) == 50


@pytest.mark.parametrize(
    "state", [None, [], {"fed": 1}, {"fed": 0, "made": 0, "token": 99, "most": 1, "temperature": 0, "seed": 0}]
)
async def test_a_state_that_is_none_is_refused(writer: Writer, state: Any) -> None:
    told = encode_snapshot(state, count=1, digest=writer.served.model.digest)
    with pytest.raises(InvalidRequest, match="expected a state of a generation of model 'count'"):
        await writer.write("a", told)


@pytest.mark.parametrize(
    ("section", "vocabulary", "said"),
    [
        ("  token: letter\n", ALPHABET, "needs an input 'letter' INT64 or INT32"),
        ("  logits: scores\n", ALPHABET, "it has no output scores"),
        ("", "aab", "expected every character once in vocabulary.txt"),
        ("  vocabulary: none.txt\n", ALPHABET, "expected the characters of its vocabulary"),
    ],
)
def test_a_section_that_does_not_fit_fails_the_load(tmp_path: Path, section: str, vocabulary: str, said: str) -> None:
    counting_model(tmp_path, "bad", section, vocabulary=vocabulary)
    with pytest.raises(LoadFailed, match=said):
        load(scanned(tmp_path, "bad"))


def test_what_is_drawn_is_even_and_follows_from_its_place() -> None:
    numbers = [drawn(7, at) for at in range(10_000)]
    assert all(0 <= number < 1 for number in numbers)
    assert abs(sum(numbers) / len(numbers) - 0.5) < 0.01
    assert [drawn(7, at) for at in (5, 3)] == [numbers[5], numbers[3]]
    assert drawn(8, 0) != numbers[0]
    assert 0 <= drawn(-1, 0) < 1
