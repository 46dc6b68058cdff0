"""The plans of one node: learned from what went the long way, found by how a message begins."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from mesh.api.messages import ModelInferRequest
from mesh.api.raw_places import Raws, front_bytes
from mesh.node.plan import LONG_WAY, MAX_LENGTHS, Plan, Wanted
from mesh.node.runtimes.base import Tensors
from mesh.node.served import Served
from mesh.node.step_plan import StepPlan
from mesh.wire.step_front import CONSTANT, Place, key_of, place_of

MAX_PLANS: Final = 1024
"""Plans kept; then all are forgotten and learned again. A few hundred models with a few shapes each."""
MAX_FRONT_BYTES: Final = 1024
"""Longest part before the tensors that is kept: a name, and 20 inputs and outputs of 40 bytes."""


class Plans:
    """The plans of one node."""

    def __init__(self) -> None:
        self._plans: dict[bytes, Plan] = {}
        self._lengths: list[int] = []
        self._steps: dict[bytes, Plan] = {}
        """By the front without the sequence's id."""
        self._places: list[Place] = []

    def find(self, message: bytes) -> Plan | None:
        """Return the plan for a message that begins like one seen before. O(lengths)."""
        plans = self._plans
        for length in self._lengths:
            plan = plans.get(message[:length])
            if plan is not None:
                return plan
        for place in self._places:
            plan = self._steps.get(key_of(message, place))
            if plan is not None:
                return plan
        return None

    def learn(
        self,
        message: bytes,
        request: ModelInferRequest,
        served: Served,
        *,
        wanted: Wanted,
        inputs: Tensors,
        rows: int,
        raws: Raws,
    ) -> None:
        """Keep what was found out about `message`, which was read the long way and fits, if it can be kept.

        `raws` are its raw tensors, `inputs` are what the runtime gets, and `wanted` what it is asked for.
        """
        if request.id or not raws or request.session_state:
            return
        is_step = bool(request.parameters) and served.sequences is not None
        if request.parameters and not (is_step and set(request.parameters) <= CONSTANT):
            return
        long_way = any(tensor.parameters or tensor.datatype in LONG_WAY for tensor in request.inputs)
        if long_way or any(classes or spec.dtype in LONG_WAY for spec, classes in wanted):
            return
        size = front_bytes(message, raws)
        if size < 1 or size > MAX_FRONT_BYTES:
            return
        front = message[:size]
        try:
            ModelInferRequest.FromString(front)
        except DecodeError:
            # What looks like the tensors stands inside a field that nobody knows; the real ones are in the front.
            return
        if request.parameters:
            self._learn_step(front, request, served, wanted=wanted, inputs=inputs, rows=rows)
            return
        if len(self._plans) >= MAX_PLANS:
            self._plans.clear()
            self._lengths.clear()
        if len(front) not in self._lengths:
            if len(self._lengths) >= MAX_LENGTHS:
                gone = self._lengths.pop()
                self._plans = {key: plan for key, plan in self._plans.items() if len(key) != gone}
            self._lengths.insert(0, len(front))
        self._plans[front] = Plan(front, request, served, wanted=wanted, inputs=inputs, rows=rows)

    def _learn_step(
        self, front: bytes, request: ModelInferRequest, served: Served, *, wanted: Wanted, inputs: Tensors, rows: int
    ) -> None:
        place = place_of(front)
        if place is None:
            return
        if len(self._steps) >= MAX_PLANS or (place not in self._places and len(self._places) >= MAX_LENGTHS):
            self._steps.clear()
            self._places.clear()
        if place not in self._places:
            self._places.append(place)
        plan = StepPlan(front, request, served, wanted=wanted, inputs=inputs, rows=rows, place=place)
        self._steps[key_of(front, place)] = plan

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<Plans {len(self._plans)} lengths={self._lengths}>"
