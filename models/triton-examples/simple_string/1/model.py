"""Adds and subtracts numbers written as decimal text, as the public client examples of Triton expect."""

from __future__ import annotations

import numpy as np

from mesh.core.errors import InvalidRequest


class Model:
    """Keeps no state."""

    def infer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return OUTPUT0 = INPUT0 + INPUT1 and OUTPUT1 = INPUT0 - INPUT1, all BYTES [n,16] of decimal text.

        Raises InvalidRequest when an element is not a whole number.
        """
        first, second = _numbers("INPUT0", inputs["INPUT0"]), _numbers("INPUT1", inputs["INPUT1"])
        return {"OUTPUT0": _texts(first + second), "OUTPUT1": _texts(first - second)}


def _numbers(name: str, texts: np.ndarray) -> np.ndarray:
    # Python's own integers (object arrays) cannot overflow.
    numbers = np.empty(texts.shape, object)
    for place, text in np.ndenumerate(texts):
        try:
            numbers[place] = int(text)
        except ValueError as error:
            raise InvalidRequest(f"input '{name}' wants decimal numbers as text; got {text!r}") from error
    return numbers


def _texts(numbers: np.ndarray) -> np.ndarray:
    texts = np.empty(numbers.shape, object)
    for place, number in np.ndenumerate(numbers):
        texts[place] = str(number).encode()
    return texts
