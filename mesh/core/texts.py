"""Texts for people, cut to a length: whatever a caller wrote may be quoted in an error, and goes out in a trailer."""

from __future__ import annotations

from typing import Final

MAX_BYTES: Final = 4096
"""Of a status text as it travels, percent-encoded: half of the 8 KiB of headers that grpcio takes by default."""

MAX_CHARACTERS: Final = 4096
"""Of an error's text where it is made, so that no error keeps a request's bytes."""

_SURELY_SHORT: Final = MAX_BYTES // 12
"""A character is at most 4 bytes in UTF-8, and each byte 3 characters percent-encoded."""

_TAIL: Final = 4
"""One part of so many is kept of the end, where our texts say which model it was and what to do."""

_MARK: Final = 60
"""Room for what stands where something was left out."""


def shortened(text: str, at_most: int = MAX_CHARACTERS) -> str:
    """Return `text` with its middle left out, and a mark that says so, where it has more characters. `at_most` > 60."""
    if len(text) <= at_most:
        return text
    room = at_most - _MARK
    tail = room // _TAIL
    return _joined(text, room - tail, tail)


def status_text(text: str) -> str:
    """Return `text`, its middle left out where it would have more than `MAX_BYTES` as a grpc-message.

    O(1) for short texts, else O(characters).
    """
    if len(text) <= _SURELY_SHORT or (len(text) <= MAX_BYTES and sum(map(_cost, text)) <= MAX_BYTES):
        return text
    room = MAX_BYTES - _MARK
    tail = _fitting(text[: -MAX_BYTES - 1 : -1], room // _TAIL)
    return _joined(text, _fitting(text[:MAX_BYTES], room - room // _TAIL), tail)


def _fitting(text: str, room: int) -> int:
    """Return how many of the first characters fit into `room` bytes."""
    for at, character in enumerate(text):
        room -= _cost(character)
        if room < 0:
            return at
    return len(text)


def _cost(character: str) -> int:
    """Return the bytes of a character in a grpc-message. A lone surrogate travels as a question mark."""
    if " " <= character <= "~" and character != "%":
        return 1
    return 3 * len(character.encode("utf-8", "replace"))


def _joined(text: str, head: int, tail: int) -> str:
    return f"{text[:head]}... [{len(text) - head - tail} characters cut] ...{text[len(text) - tail :]}"
