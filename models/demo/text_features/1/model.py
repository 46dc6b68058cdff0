"""Turns pairs of product titles into numbers that say how alike they are: the first stage of the title matcher."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

import numpy as np

FEATURES = (
    "word_overlap",
    "words_contained",
    "edit_similarity",
    "trigram_overlap",
    "numbers_agree",
    "codes_conflict",
    "quantity_conflict",
    "accessory_on_one_side",
)
"""Column by column; each is between 0 and 1."""

_TOKEN = re.compile(r"[a-z]+|\d+(?:\.\d+)?")
_CODE = re.compile(r"\b([a-z]{1,3})-?(\d+)\b")
_UNITS = {"l": ("ml", 1000.0), "kg": ("g", 1000.0), "m": ("cm", 100.0)}
_KNOWN_UNITS = frozenset(
    ("v", "w", "g", "kg", "ml", "l", "mm", "cm", "m", "gb", "h", "bar", "pa", "db", "lm", "rpm", "keys", "pieces", "p")
)
_ACCESSORY = frozenset(("for", "compatible", "replacement", "spare", "case"))
_LONGEST = 200
"""Characters of a title that count: the edit distance costs the product of both lengths."""


class Model:
    """The class that the node makes one of per copy; it keeps no state."""

    def infer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return `features` FP32 [n,8] for the titles in `left` and `right`, BYTES [n,1] in UTF-8."""
        pairs = zip(inputs["left"].reshape(-1), inputs["right"].reshape(-1), strict=True)
        rows = [compare(_text(left), _text(right)) for left, right in pairs]
        return {"features": np.array(rows, np.float32).reshape(-1, len(FEATURES))}


def compare(left: str, right: str) -> tuple[float, ...]:
    """Return the features of one pair, in the order of `FEATURES`."""
    ours, theirs = _TOKEN.findall(left), _TOKEN.findall(right)
    our_words, their_words = _words(ours), _words(theirs)
    our_numbers, their_numbers = _numbers(ours), _numbers(theirs)
    common = len(our_words & their_words)
    fewer = min(len(our_words), len(their_words))
    return (
        _overlap(our_words, their_words),
        common / fewer if fewer else 0.0,
        _edit_similarity(" ".join(sorted(our_words)), " ".join(sorted(their_words))),
        _overlap(_trigrams(left), _trigrams(right)),
        _overlap(our_numbers, their_numbers),
        _codes_conflict(_codes(left), _codes(right)),
        _quantity_conflict(_quantities(ours), _quantities(theirs)),
        float(bool(our_words & _ACCESSORY) != bool(their_words & _ACCESSORY)),
    )


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")[:_LONGEST].lower()


def _words(tokens: list[str]) -> set[str]:
    return {token for token in tokens if token[0].isalpha() and token not in _KNOWN_UNITS}


def _codes(text: str) -> set[tuple[str, str]]:
    """Return what looks like a model code, such as HD-418, with or without its dash."""
    return set(_CODE.findall(text))


def _codes_conflict(ours: set[tuple[str, str]], theirs: set[tuple[str, str]]) -> float:
    return float(bool(ours) and bool(theirs) and not ours & theirs)


def _quantities(tokens: list[str]) -> dict[str, float]:
    """Return unit -> amount, in the smaller metric unit, for each number that is followed by a unit."""
    found = {}
    for amount, unit in pairwise(tokens):
        if amount[0].isdigit() and unit in _KNOWN_UNITS:
            base, factor = _UNITS.get(unit, (unit, 1.0))
            found[base] = float(amount) * factor
    return found


def _numbers(tokens: list[str]) -> set[float]:
    """Return every number, those with a unit in the smaller metric unit, so that 1.5 l and 1500 ml agree."""
    found = set()
    for index, token in enumerate(tokens):
        if token[0].isdigit():
            unit = tokens[index + 1] if index + 1 < len(tokens) else ""
            found.add(float(token) * _UNITS.get(unit, ("", 1.0))[1])
    return found


def _quantity_conflict(ours: dict[str, float], theirs: dict[str, float]) -> float:
    return float(any(ours[unit] != theirs[unit] for unit in ours.keys() & theirs.keys()))


def _trigrams(text: str) -> set[str]:
    joined = " ".join(_TOKEN.findall(text))
    return {joined[index : index + 3] for index in range(len(joined) - 2)}


def _overlap(ours: Iterable[object], theirs: Iterable[object]) -> float:
    """Return the Jaccard index: common members by all members, 0 when there are none."""
    left, right = set(ours), set(theirs)
    return len(left & right) / len(left | right) if left or right else 0.0


def _edit_similarity(left: str, right: str) -> float:
    """Return 1 minus the Levenshtein distance by the longer length. O(len(left) * len(right))."""
    if not left or not right:
        return 0.0
    row = list(range(len(right) + 1))
    for index, letter in enumerate(left, 1):
        diagonal, row[0] = row[0], index
        for column, other in enumerate(right, 1):
            cost = min(row[column] + 1, row[column - 1] + 1, diagonal + (letter != other))
            diagonal, row[column] = row[column], cost
    return 1.0 - row[-1] / max(len(left), len(right))
