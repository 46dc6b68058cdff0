"""Registry records as bytes: the frozen dataclasses of `mesh.core.types` in JSON, so that a person can read them.

Unknown fields are ignored and missing ones take their defaults, so that two releases can share a registry during a
rolling upgrade. Which key a record lives under is the affair of `mesh.registry.keys`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from mesh.core.pipeline.spec import Pipeline
from mesh.core.placement.forecast import AGES, LEVELS, Forecast
from mesh.core.suspects import Suspect
from mesh.core.types import Copy, ModelVersion, Node, Placement
from mesh.registry.store import Entry

Record = Node | Copy | ModelVersion | Placement | Pipeline | Forecast | Suspect

_NODE: Final = msgspec.json.Decoder(Node)
_COPY: Final = msgspec.json.Decoder(Copy)
_MODEL: Final = msgspec.json.Decoder(ModelVersion)
_PLACEMENT: Final = msgspec.json.Decoder(Placement)
_PIPELINE: Final = msgspec.json.Decoder(Pipeline)
_FORECAST: Final = msgspec.json.Decoder(Forecast)
_SUSPECT: Final = msgspec.json.Decoder(Suspect)


_NOTHING: Final[Mapping[str, str]] = {}


T = TypeVar("T")


class BadRecord(ValueError):
    """The bytes under a key are not the record that belongs there."""


def encode(record: Record) -> bytes:
    """Return `record` as JSON bytes; equal records give equal bytes when their mappings have one order."""
    return msgspec.json.encode(record)


def decode_node(value: bytes) -> Node:
    """Return the node record in `value`. Raises `BadRecord`."""
    return _decoded(_NODE, "a node", value)


def decode_copy(value: bytes) -> Copy:
    """Return the copy record in `value`. Raises `BadRecord`."""
    return _decoded(_COPY, "a copy", value)


def decode_model(value: bytes) -> ModelVersion:
    """Return the model version record in `value`. Raises `BadRecord`."""
    return _shared(_decoded(_MODEL, "a model version", value))


def decode_placement(value: bytes) -> Placement:
    """Return the placement record in `value`. Raises `BadRecord`."""
    return _decoded(_PLACEMENT, "a placement", value)


def placement_of(entry: Entry | None) -> Placement | None:
    """Return the placement under a key; None for none, and for one that cannot be read, which is to be written over."""
    try:
        return decode_placement(entry.value) if entry is not None else None
    except BadRecord:
        return None


def decode_pipeline(value: bytes) -> Pipeline:
    """Return the pipeline record in `value`. Raises `BadRecord`."""
    return _decoded(_PIPELINE, "a pipeline", value)


def decode_suspect(value: bytes) -> Suspect:
    """Return the record in `value` of a version that ended processes. Raises `BadRecord`."""
    return _decoded(_SUSPECT, "a suspect", value)


def suspect_of(entry: Entry | None) -> Suspect | None:
    """Return the suspect under a key; None for none, and for one that cannot be read, which is to be written over."""
    try:
        return decode_suspect(entry.value) if entry is not None else None
    except BadRecord:
        return None


def decode_forecast(value: bytes) -> Forecast:
    """Return the forecast record in `value`. Raises `BadRecord`."""
    found = _decoded(_FORECAST, "a forecast", value)
    if [len(row) for row in found.rates] != [AGES] * LEVELS:
        raise BadRecord(
            f"expected a forecast of {LEVELS} x {AGES} rates, got rows of {[len(row) for row in found.rates]}"
        )
    return found


_parts: Final[dict[Hashable, Any]] = {}
_MOST_PARTS: Final = 10_000


def _shared(model: ModelVersion) -> ModelVersion:
    """Let a record that was just decoded share its parts with equal ones of other models: half of its memory.

    Nobody else has seen it yet, so that what is frozen for all others may still be set here.
    """
    for name in ("runtime", "platform", "device", "version", "inputs", "outputs", "scaling"):
        part = getattr(model, name)
        object.__setattr__(model, name, _parts.setdefault(part, part))
    if model.files_digest == model.digest:
        object.__setattr__(model, "files_digest", model.digest)
    for name in ("node_labels", "parameters"):
        if not getattr(model, name):
            object.__setattr__(model, name, _NOTHING)
    if len(_parts) > _MOST_PARTS:
        _parts.clear()
    return model


def _decoded(decoder: msgspec.json.Decoder[T], what: str, value: bytes) -> T:
    try:
        return decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        told = f"expected {what} record in JSON, got {len(value)} bytes {value[:80]!r}: {error}"
        raise BadRecord(told) from error
