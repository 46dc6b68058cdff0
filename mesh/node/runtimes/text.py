"""Text from an ONNX model that steps character by character: many generations together, one step of each a run.

The model takes a token and its states and gives the logits of the next token and the next states. The characters of the
prompt are fed first; then each step's token is drawn from the logits of the step before, and is a response. What is
drawn follows from the seed and the position alone, so that a generation that goes on elsewhere says the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from mesh.core.errors import InvalidRequest, LoadFailed
from mesh.core.sessions.chance import drawn
from mesh.core.types import Dtype, Generation, ModelVersion, TensorSpec
from mesh.node.runtimes.base import Array, Tensors, Turn
from mesh.node.runtimes.stateful import States, initial_states

TOGETHER: Final = 64
"""Generations that step together where the model does not say how many (max_batch_size)."""
PROMPTS: Final = 1024
"""Prompts whose tokens are remembered."""


class TextSteps:
    """A `Steps` around `run`, which takes and gives whole batches. `specs` are all inputs that `run` takes."""

    generates = True

    def __init__(self, model: ModelVersion, folder: Path, specs: Mapping[str, TensorSpec], run: Any) -> None:
        """Raise `LoadFailed` when the model does not take what its generation section says."""
        assert model.generation is not None
        self._model = model
        self._told: Generation = model.generation
        self._run = run
        self.most_rows = model.max_batch_size or TOGETHER
        token = specs.get(self._told.token)
        if token is None or token.dtype not in {Dtype.INT64, Dtype.INT32}:
            raise LoadFailed(
                f"failed to load '{model.name}', its generation needs an input '{self._told.token}' INT64 or INT32 "
                "[-1, 1] for the token"
            )
        self._token_type = np.int64 if token.dtype is Dtype.INT64 else np.int32
        self._symbols = _vocabulary(model, folder)
        self._index = {symbol: at for at, symbol in enumerate(self._symbols)}
        self._initial = initial_states(model, self._told.states, folder, specs, batched=True)
        self._tokens = lru_cache(PROMPTS)(self._tokens_of)

    def step(self, turns: Sequence[Turn]) -> None:
        """Run one step of each together."""
        prompts = [self._tokens(_prompt(each, self._told.prompt)) for each in turns]
        states = [each.state or self._begin(each) for each in turns]
        tokens = [
            prompt[state["fed"]] if state["fed"] < len(prompt) else state["token"]
            for prompt, state in zip(prompts, states, strict=True)
        ]
        given: dict[str, Array] = {self._told.token: np.array(tokens, self._token_type).reshape(-1, 1)}
        for name in self._initial:
            given[name] = np.concatenate([state["states"][name] for state in states])
        answered = self._run(given)
        logits = answered[self._told.logits]
        for at, (each, prompt, state) in enumerate(zip(turns, prompts, states, strict=True)):
            held = {one.input: answered[one.output][at : at + 1].copy() for one in self._told.states}
            after = {**state, "fed": state["fed"] + 1, "states": held}
            if after["fed"] >= len(prompt):
                self._say(each, after, logits[at])
            each.state = after

    def packed(self, state: Any) -> Any:
        """Return the state with its arrays as bytes."""
        return {**state, "states": {name: array.tobytes() for name, array in state["states"].items()}}

    def unpacked(self, told: Any) -> Any:
        """Return the state again."""
        wrong = InvalidRequest(f"expected a state of a generation of model '{self._model.name}'")
        if not isinstance(told, dict) or told.keys() != _KEYS:
            raise wrong
        states = told["states"]
        if not isinstance(states, dict) or states.keys() != self._initial.keys():
            raise wrong
        numbers = [told[key] for key in ("fed", "made", "token", "most", "seed")]
        if [type(each) for each in numbers] != [int] * 5 or not isinstance(told["temperature"], int | float):
            raise wrong
        if not 0 <= told["token"] < len(self._symbols) or told["fed"] < 0 or not isinstance(told["stop"], str):
            raise wrong
        held: States = {}
        for name, initial in self._initial.items():
            if not isinstance(states[name], bytes) or len(states[name]) != initial.nbytes:
                raise wrong
            held[name] = np.frombuffer(states[name], initial.dtype).reshape(initial.shape)
        return {**told, "states": held}

    def _begin(self, turn: Turn) -> dict[str, Any]:
        told = turn.parameters
        most = told.get("max_tokens", self._told.max_tokens)
        temperature, seed, stop = told.get("temperature", 0.0), told.get("seed", 0), told.get("stop", "")
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise InvalidRequest(f"expected max_tokens as a whole number of 1 or more, got {most!r}")
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 <= temperature <= 100:
            raise InvalidRequest(f"expected temperature as a number from 0 (the likeliest) to 100, got {temperature!r}")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise InvalidRequest(f"expected seed as a whole number, got {seed!r}")
        if not isinstance(stop, str):
            raise InvalidRequest(f"expected stop as a character to end behind, got {stop!r}")
        return {
            "fed": 0,
            "made": 0,
            "token": 0,
            "most": most,
            "temperature": temperature,
            "seed": seed,
            "stop": stop,
            "states": self._initial,
        }

    def _say(self, turn: Turn, state: dict[str, Any], logits: Array) -> None:
        """Draw the next character, and answer with it."""
        if state["temperature"] == 0:
            token = int(logits.argmax())
        else:
            shares = np.exp((logits.astype(np.float64) - logits.max()) / state["temperature"])
            heights = np.cumsum(shares)
            token = int(np.searchsorted(heights, drawn(state["seed"], state["made"]) * heights[-1], side="right"))
            token = min(token, len(self._symbols) - 1)
        symbol = self._symbols[token]
        text = np.empty((1, 1), object)
        text[0, 0] = symbol.encode()
        turn.send({self._told.text: text})
        state["token"], state["made"] = token, state["made"] + 1
        turn.done = state["made"] >= state["most"] or (state["stop"] != "" and symbol == state["stop"])

    def _tokens_of(self, prompt: bytes) -> list[int]:
        try:
            found = [self._index[each] for each in prompt.decode()]
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"expected '{self._told.prompt}' in UTF-8: {error}") from error
        except KeyError as error:
            raise InvalidRequest(
                f"model '{self._model.name}' does not know the character {error}; it knows {''.join(self._symbols)!r}"
            ) from error
        return found or [0]


_KEYS: Final = {"fed", "made", "token", "most", "temperature", "seed", "stop", "states"}


def text_signature(generation: Generation) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs that callers see."""
    prompt = TensorSpec(generation.prompt, Dtype.BYTES, (-1, 1))
    return (prompt,), (TensorSpec(generation.text, Dtype.BYTES, (-1, 1)),)


def _prompt(turn: Turn, name: str) -> bytes:
    array: Tensors = turn.inputs
    value: Any = array[name].reshape(-1)
    if len(value) != 1:
        raise InvalidRequest(f"expected one prompt in '{name}', got {len(value)}")
    return value[0] if isinstance(value[0], bytes) else str(value[0]).encode()


def _vocabulary(model: ModelVersion, folder: Path) -> list[str]:
    assert model.generation is not None
    file = model.generation.vocabulary
    try:
        symbols = list((folder / file).read_bytes().decode())
    except (OSError, UnicodeDecodeError) as error:
        raise LoadFailed(
            f"failed to load '{model.name}', expected the characters of its vocabulary, in the order of their tokens, "
            f"in {file}: {error}"
        ) from error
    if len(set(symbols)) != len(symbols) or not symbols:
        raise LoadFailed(f"failed to load '{model.name}', expected every character once in {file}")
    return symbols
