"""Steps of sequences that were seen before but for their sequence and their numbers.

What `plan` does for plain requests: the bytes before the tensors are what they were, but for those of the id.
"""

from __future__ import annotations

from collections.abc import Mapping

from mesh.api.carried import literals
from mesh.api.messages import ModelInferRequest
from mesh.node.asked import Asked
from mesh.node.plan import Plan, Wanted
from mesh.node.runtimes.base import Request, Tensors
from mesh.node.served import Served
from mesh.wire.step_front import Ids, Place


class StepPlan(Plan):
    """A `Plan` for the steps of any sequence that say the same otherwise."""

    __slots__ = ("_ids", "_parameters")

    def __init__(
        self,
        front: bytes,
        request: ModelInferRequest,
        served: Served,
        *,
        wanted: Wanted,
        inputs: Tensors,
        rows: int,
        place: Place,
    ) -> None:
        super().__init__(front, request, served, wanted=wanted, inputs=inputs, rows=rows)
        self._ids = Ids(front, place)
        self._parameters: Mapping[str, bool | int | float | str] = literals(request.parameters)

    def request(self, message: bytes, asked: Asked) -> Request | None:
        """Return what the step says; None when its id is not written as the plan's was, or it has to wait its turn."""
        id_ = self._ids.read(message)
        if id_ is None or self.served.reading is not None:
            return None
        said = {**self._parameters, "sequence_id": id_, **asked.forwarded}
        return Request("", said, b"", asked.tells, asked.caller)
