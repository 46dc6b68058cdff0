"""Answers the running sum of a sequence, as the public client examples of Triton expect."""

from __future__ import annotations

from typing import Any

import numpy as np

from mesh.core.errors import InvalidRequest


class Model:
    """Keeps each sequence's sum in its state."""

    def infer(self, inputs: dict[str, np.ndarray], sequences: list[Any]) -> dict[str, np.ndarray]:
        """Return OUTPUT INT32 [n, 1]: the sum of INPUT since the start, plus the number that the id spells at the end.

        Raises InvalidRequest for a sequence_id that spells no whole number.
        """
        totals = []
        for value, sequence in zip(inputs["INPUT"][:, 0], sequences, strict=True):
            total = sequence.state["sum"] = sequence.state.get("sum", 0) + int(value)
            totals.append(total + (_number(sequence.id) if sequence.end else 0))
        # Ids may be long and the output has 32 bits: the upper ones are dropped, as in C.
        return {"OUTPUT": np.array([[total & 0xFFFFFFFF] for total in totals], np.uint32).view(np.int32)}


def _number(id_: int | str) -> int:
    try:
        return int(id_)
    except ValueError as error:
        raise InvalidRequest(f"expected a sequence_id that spells a whole number; got {id_!r}") from error
