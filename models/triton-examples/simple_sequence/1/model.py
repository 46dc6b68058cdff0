"""Answers INPUT + START for each request of a sequence, as the public client examples of Triton expect."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np

from mesh.core.errors import InvalidRequest

LIVE_SEQUENCES = 10_000
"""Sequences kept at once; past it the one unused longest is forgotten, so clients that never end one cost little."""


class Model:
    """Remembers which sequences have started and not ended."""

    def __init__(self) -> None:
        """Start with no sequence."""
        self._name = ""
        self._live: OrderedDict[int | str, None] = OrderedDict()

    def load(self, context: Any) -> None:
        """Keep the model's name for error texts."""
        self._name = context.name

    def infer(self, inputs: dict[str, np.ndarray], request: Any) -> dict[str, np.ndarray]:
        """Return OUTPUT INT32 [1,1]: INPUT, plus 1 when the request starts its sequence.

        Raises InvalidRequest without a sequence_id, without sequence_start at the first request, or for a batch.
        """
        value = inputs["INPUT"]
        sequence_id = request.parameters.get("sequence_id", 0)
        start = bool(request.parameters.get("sequence_start", False))
        end = bool(request.parameters.get("sequence_end", False))
        self._admit(sequence_id, value.shape[0], start=start)
        self._live[sequence_id] = None
        self._live.move_to_end(sequence_id)
        if end:
            del self._live[sequence_id]
        elif len(self._live) > LIVE_SEQUENCES:
            self._live.popitem(last=False)
        return {"OUTPUT": (value + int(start)).astype(np.int32)}

    def _admit(self, sequence_id: int | str, batch: int, *, start: bool) -> None:
        """Refuse what is no request of a sequence that is alive or starts here."""
        if sequence_id in {0, ""}:
            raise InvalidRequest(
                f"inference request to model '{self._name}' must specify a non-zero or non-empty correlation ID"
            )
        if batch != 1:
            raise InvalidRequest(
                f"inference request to model '{self._name}' must specify batch-size 1 in a sequence; got {batch}"
            )
        if not start and sequence_id not in self._live:
            raise InvalidRequest(
                f"inference request for sequence {sequence_id} to model '{self._name}' must specify the START flag on "
                "the first request of the sequence"
            )
