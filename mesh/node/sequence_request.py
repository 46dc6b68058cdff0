"""What a request says of the sequence it is a step of: id, flags, and a state to begin from. The texts are Triton's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from mesh.api.snapshot import DIGEST_CHARS, Snapshot, decode_snapshot
from mesh.core.errors import InvalidRequest, SessionLost
from mesh.core.sessions.schedule import SequenceId
from mesh.core.types import Sequencing
from mesh.node.runtimes.base import Request

GENERATING: Final = Sequencing(max_live=1_000_000, idle_s=1e9)
"""Of generations, whose number the queue bounds and which end by themselves."""


class Flags(NamedTuple):
    """Which sequence, and whether the step is its first or last."""

    id: SequenceId
    start: bool
    end: bool


def flags_of(request: Request, rows: int, model: str) -> Flags:
    """Return a request's sequence. Raises `InvalidRequest` for an id or flag of another type, and for a batch."""
    told, of = request.parameters, f"inference request to model '{model}'"
    if rows != 1:
        raise InvalidRequest(f"{of} must specify batch-size 1 due to requirements of sequence batcher")
    id_ = told.get("sequence_id", 0)
    if isinstance(id_, bool) or not isinstance(id_, int | str):
        raise InvalidRequest(f"{of}: expected 'sequence_id' as a whole number or a text, got {id_!r}")
    if id_ in {0, ""}:
        raise InvalidRequest(f"{of} must specify a non-zero or non-empty correlation ID")
    return Flags(id_, _flag(told, "sequence_start", of), _flag(told, "sequence_end", of))


def restored(state: bytes, digest: str, model: str) -> Snapshot:
    """Return a state that came from outside. Raises `InvalidRequest`, and `SessionLost` for one of other files."""
    found = decode_snapshot(state)
    if found.digest != digest[:DIGEST_CHARS]:
        raise SessionLost(
            f"the state is of other files of model '{model}' than those that are loaded: begin the sequence anew"
        )
    return found


def _flag(told: Mapping[str, bool | int | str | float], name: str, of: str) -> bool:
    value = told.get(name, False)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{of}: expected '{name}' as true or false, got {value!r}")
    return value
