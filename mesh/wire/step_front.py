"""The beginning of a step of a sequence: what stands before its tensors is the same again and again but for the id.

Real callers send step after step with other tensors and another `sequence_id` in it. Where the id is, is found once; a
message that is the same around it needs no parsing. A single byte that differs goes the long way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mesh.wire.peek import FRONT, Parameter, Peeked

CONSTANT: Final = frozenset({"sequence_id", "sequence_start", "sequence_end", "mesh_tokens"})
"""Parameters of steps that are remembered: others differ from step to step, and each would be one of its own."""
MOST_IDS: Final = 16_384
MOST_WHOLE: Final = 32_768
"""Fronts with their ids that are kept, of about 500 bytes each."""
MOST: Final = 1024
MOST_TAIL: Final = 512
"""Of several tensors the contents of the first are in between, and differ each time."""
MOST_PLACES: Final = 8
"""Lengths and places of ids that are tried: as many comparisons a message costs at most."""

_ENTRY: Final = b"\x0a\x0bsequence_id\x12"
"""The entry of the parameters with the id, up to the length of its value, as serializers write it."""
_INT64: Final = 0x10
_UINT64: Final = 0x28
_TEXT: Final = 0x1A
"""Tags of the fields of InferParameter."""

Place = tuple[int, int, int]
"""Length of the front; where the id begins in it, and its length."""


def place_of(front: bytes) -> Place | None:
    """Return where the id is; None when that cannot be told."""
    at = front.find(_ENTRY)
    if at < 0 or front.find(_ENTRY, at + 1) >= 0 or len(front) < at + len(_ENTRY) + 2:
        return None
    at += len(_ENTRY)
    size, tag = front[at], front[at + 1]
    if not 2 <= size <= 0x7F or len(front) < at + 1 + size:
        return None
    if tag in {_INT64, _UINT64}:
        return len(front), at + 2, size - 1
    if tag == _TEXT and front[at + 2] == size - 2:
        return len(front), at + 3, size - 2
    return None


def key_of(message: bytes, place: Place, start: int = 0) -> bytes:
    """Return the front of the message that begins at `start`, without the id."""
    size, at, width = place
    return message[start : start + at] + message[start + at + width : start + size]


class Ids:
    """Reads ids that are written as the one at `place` of `front`."""

    __slots__ = ("_at", "_end", "_known", "_tag")

    def __init__(self, front: bytes, place: Place) -> None:
        _, self._at, width = place
        self._end = self._at + width
        self._tag = front[self._at - 1] if front[self._at - 1] in {_INT64, _UINT64} else _TEXT
        self._known: dict[bytes, int | str] = {}
        """Those seen lately, by their bytes."""

    def read(self, message: bytes, start: int = 0) -> int | str | None:
        """Return the id; None when it is not written as such ids are."""
        data = message[start + self._at : start + self._end]
        found = self._known.get(data)
        if found is None:
            found = self.parse(data)
            if found is not None:
                if len(self._known) >= MOST_IDS:
                    self._known.clear()
                self._known[data] = found
        return found

    def of(self, front: bytes) -> int | str | None:
        """Return the id in a front that is seen once."""
        return self.parse(front[self._at : self._end])

    def parse(self, data: bytes) -> int | str | None:
        """Return what an id's bytes say; None when they say nothing."""
        if self._tag == _TEXT:
            try:
                return data.decode()
            except UnicodeDecodeError:
                return None
        if not data or data[-1] >= 0x80 or any(byte < 0x80 for byte in data[:-1]):
            return None
        number = 0
        for at, byte in enumerate(data):
            number |= (byte & 0x7F) << 7 * at
        number &= (1 << 64) - 1
        return number - (1 << 64) if self._tag == _INT64 and number >> 63 else number


class StepFronts:
    """The fronts of steps that a router saw, with what `peek_front` reads of them."""

    def __init__(self) -> None:
        self._fronts: dict[bytes, tuple[Peeked, Ids]] = {}
        self._places: list[Place] = []
        self._sizes: tuple[int, ...] = ()
        """Lengths of fronts, as in `_places`."""
        self._tails: dict[int, bytes] = {}
        """By length, what stands behind fronts, up to the contents of the last tensor: what says how it is built."""
        self._whole: dict[bytes, Peeked] = {}
        """Fronts that came lately, ids and all: a sequence sends the same one with each step."""

    def find(self, data: bytes, start: int) -> Peeked | None:
        """Return the routing fields of the whole message that begins at `start`; None when it is not known.

        What is returned is kept, and the same the next time.
        """
        for size in self._sizes:
            end = start + size
            front = data[start:end]
            found = self._whole.get(front)
            if found is None:
                found = self._other_id(front)
            if found is not None:
                tail = self._tails.get(len(data) - end)
                if (tail is not None and data.startswith(tail, end)) or self._tensors_alone(data, end):
                    return found
        return None

    def _tensors_alone(self, data: bytes, position: int) -> bool:
        """Tell whether the fields from here on are tensors alone, whole, to the end of `data`."""
        last = _last_tensor(data, position)
        if last is None:
            return False
        if last - position <= MOST_TAIL:
            if len(self._tails) >= MOST:
                self._tails.clear()
            self._tails[len(data) - position] = data[position:last]
        return True

    def _other_id(self, front: bytes) -> Peeked | None:
        """Return what a front says that is known but for its id."""
        for place in self._places:
            known = self._fronts.get(key_of(front, place)) if place[0] == len(front) else None
            if known is not None:
                peeked, ids = known
                id_ = ids.of(front)
                if id_ is not None:
                    parameters = {**peeked.parameters, "sequence_id": id_}
                    found = Peeked(peeked.model_name, peeked.model_version, "", parameters)
                    if len(self._whole) >= MOST_WHOLE:
                        self._whole.clear()
                    self._whole[front] = found
                    return found
        return None

    def learn(self, data: bytes, start: int, peeked: Peeked) -> None:
        """Keep what was read of a whole message."""
        parameters: Mapping[str, Parameter] = peeked.parameters
        if "sequence_id" not in parameters or peeked.id or not parameters.keys() <= CONSTANT:
            return
        end = _front_end(data, start)
        front = data[start:end]
        place = place_of(front)
        if place is None or _last_tensor(data, end) is None:
            return
        ids = Ids(front, place)
        if ids.of(front) != parameters["sequence_id"]:
            return
        if len(self._fronts) >= MOST or (place not in self._places and len(self._places) >= MOST_PLACES):
            self._fronts.clear()
            self._places.clear()
        if place not in self._places:
            self._places.append(place)
            self._sizes = tuple(dict.fromkeys(size for size, _, _ in self._places))
        self._fronts[key_of(front, place)] = (peeked, ids)


def _front_end(data: bytes, start: int) -> int:
    position = start
    while position < len(data) and data[position] in FRONT:
        _, position = _field(data, position)
    return position


def _last_tensor(data: bytes, position: int) -> int | None:
    """Return where the contents of the last field begin, all from here on being tensors, whole, to the end of `data`.

    None when it is not so. With no fields it is the end.
    """
    size, last = len(data), position
    while position < size:
        if data[position] not in _TENSORS:
            return None
        last, position = _field(data, position)
    return last if position == size else None


_TENSORS: Final = frozenset({0x2A, 0x32, 0x3A})
"""The tags of inputs, outputs and raw_input_contents."""


def _field(data: bytes, position: int) -> tuple[int, int]:
    """Return where the contents of the length-delimited field at `position` begin and end.

    They end behind the data when it is cut off.
    """
    length = shift = 0
    position += 1
    while position < len(data):
        byte = data[position]
        position += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return position, position + length
        shift += 7
    return position, len(data) + 1
