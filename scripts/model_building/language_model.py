"""Trains the small language model of the demo: characters in, the next character out, one GRU between them.

Plain numpy: back propagation through time over pieces of `LENGTH` characters, Adam, a fixed seed. What is exported is
one step, with the GRU's state as a tensor that goes in and comes out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import helper

from scripts.model_building.graphs import save_graph

F = npt.NDArray[np.float32]
Weights = dict[str, F]

HIDDEN = 160
EMBEDDED = 24
LENGTH = 48
BATCH = 32
ROUNDS = 2400
RATE = 4e-3
SEED = 11


def build_prose(root: Path, text: str) -> None:
    """Train on `text` and write models/demo/prose below `root`."""
    symbols = sorted(set(text))
    tokens = np.array([symbols.index(each) for each in text])
    weights = _trained(tokens, len(symbols))
    folder = root / "demo" / "prose" / "1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocabulary.txt").write_text("".join(symbols), encoding="utf-8")
    nodes = [
        helper.make_node("Gather", ["embedding", "token"], ["embedded"]),
        helper.make_node("Transpose", ["embedded"], ["x"], perm=[1, 0, 2]),
        helper.make_node("Unsqueeze", ["h", "first"], ["before"]),
        helper.make_node(
            "GRU", ["x", "w", "r", "b", "", "before"], ["", "after"], hidden_size=HIDDEN, linear_before_reset=1
        ),
        helper.make_node("Squeeze", ["after", "first"], ["h_next"]),
        helper.make_node("MatMul", ["h_next", "out"], ["scores"]),
        helper.make_node("Add", ["scores", "bias"], ["logits"]),
    ]
    held: dict[str, np.ndarray[Any, Any]] = {
        "embedding": weights["embedding"],
        "w": weights["w"].T[None],
        "r": weights["r"].T[None],
        "b": np.concatenate([weights["bw"], weights["br"]])[None],
        "out": weights["out"],
        "bias": weights["bias"],
        "first": np.array([0], np.int64),
    }
    save_graph(
        folder / "model.onnx",
        "prose",
        nodes,
        [("token", "INT64", ("n", 1)), ("h", "FP32", ("n", HIDDEN))],
        [("logits", "FP32", ("n", len(symbols))), ("h_next", "FP32", ("n", HIDDEN))],
        held,
    )


def _trained(tokens: npt.NDArray[np.int64], symbols: int) -> Weights:
    random = np.random.default_rng(SEED)

    def made(*shape: int) -> F:
        drawn: F = (random.normal(size=shape) / shape[0] ** 0.5).astype(np.float32)
        return drawn

    weights: Weights = {
        "embedding": made(symbols, EMBEDDED),
        "w": made(EMBEDDED, 3 * HIDDEN),
        "r": made(HIDDEN, 3 * HIDDEN),
        "bw": np.zeros(3 * HIDDEN, np.float32),
        "br": np.zeros(3 * HIDDEN, np.float32),
        "out": made(HIDDEN, symbols),
        "bias": np.zeros(symbols, np.float32),
    }
    first = {name: np.zeros_like(each) for name, each in weights.items()}
    second = {name: np.zeros_like(each) for name, each in weights.items()}
    h = np.zeros((BATCH, HIDDEN), np.float32)
    for turn, (given, wanted, fresh) in enumerate(_pieces(tokens), start=1):
        if turn > ROUNDS:
            break
        if fresh:
            h[:] = 0
        gradients, h = _gradients(weights, given, wanted, h)
        rate = RATE * (1 - turn / ROUNDS) + 1e-4
        for name, gradient in gradients.items():
            np.clip(gradient, -1, 1, out=gradient)
            first[name] += 0.1 * (gradient - first[name])
            second[name] += 0.001 * (gradient**2 - second[name])
            step = first[name] / (1 - 0.9**turn) / (np.sqrt(second[name] / (1 - 0.999**turn)) + 1e-8)
            weights[name] -= np.float32(rate) * step
    return weights


def _pieces(tokens: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], bool]]:
    """Yield pieces for ever: [BATCH, LENGTH] characters, those that follow each, and whether the text begins anew."""
    random = np.random.default_rng(SEED + 1)
    per_row = len(tokens) // BATCH
    while True:
        rolled = np.roll(tokens, int(random.integers(per_row)))
        rows = rolled[: per_row * BATCH].reshape(BATCH, per_row)
        for at in range(0, per_row - LENGTH - 1, LENGTH):
            yield rows[:, at : at + LENGTH], rows[:, at + 1 : at + LENGTH + 1], at == 0


def _gradients(
    weights: Weights, given: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64], h: F
) -> tuple[Weights, F]:
    """Return the gradients of the mean cross entropy, and the state behind the piece.

    The gates are in ONNX's order: z, r, h.
    """
    hs, kept = [h], []
    for at in range(LENGTH):
        x = weights["embedding"][given[:, at]]
        from_x, from_h = x @ weights["w"] + weights["bw"], h @ weights["r"] + weights["br"]
        z = _sigmoid(from_x[:, :HIDDEN] + from_h[:, :HIDDEN])
        r = _sigmoid(from_x[:, HIDDEN : 2 * HIDDEN] + from_h[:, HIDDEN : 2 * HIDDEN])
        n = np.tanh(from_x[:, 2 * HIDDEN :] + r * from_h[:, 2 * HIDDEN :])
        h = (1 - z) * n + z * h
        hs.append(h)
        kept.append((x, z, r, n, from_h[:, 2 * HIDDEN :]))
    scores = np.stack(hs[1:], axis=1) @ weights["out"] + weights["bias"]
    shares = np.exp(scores - scores.max(axis=2, keepdims=True))
    shares /= shares.sum(axis=2, keepdims=True)
    np.put_along_axis(shares, wanted[:, :, None], np.take_along_axis(shares, wanted[:, :, None], 2) - 1, 2)
    shares /= shares.shape[0] * LENGTH
    found = {name: np.zeros_like(each) for name, each in weights.items()}
    found["out"] = np.einsum("bth,btv->hv", np.stack(hs[1:], axis=1), shares, optimize=True).astype(np.float32)
    found["bias"] = shares.sum(axis=(0, 1))
    back = np.zeros_like(h)
    for at in reversed(range(LENGTH)):
        x, z, r, n, from_h = kept[at]
        back = back + shares[:, at] @ weights["out"].T
        to_n = back * (1 - z) * (1 - n**2)
        to_z = back * (hs[at] - n) * z * (1 - z)
        to_r = to_n * from_h * r * (1 - r)
        to_x = np.concatenate([to_z, to_r, to_n], axis=1)
        to_h = np.concatenate([to_z, to_r, to_n * r], axis=1)
        found["w"] += x.T @ to_x
        found["bw"] += to_x.sum(axis=0)
        found["r"] += hs[at].T @ to_h
        found["br"] += to_h.sum(axis=0)
        np.add.at(found["embedding"], given[:, at], to_x @ weights["w"].T)
        back = back * z + to_h @ weights["r"].T
    return found, hs[-1]


def _sigmoid(values: F) -> F:
    return (1 / (1 + np.exp(-values))).astype(np.float32)
