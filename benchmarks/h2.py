"""Just enough HTTP/2 for a load client: frames and header blocks as bytes. Does no I/O.

Frames are those of RFC 9113 §4.1, header blocks those of RFC 7541. What is the same in every call is put into the
server's dynamic table by the first call and is one byte each afterwards, what differs is a literal without indexing
and without Huffman coding: so grpc-core, and with it nearly every gRPC client, sends them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import hpack

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS, PADDED = 0x1, 0x1, 0x4, 0x8
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 4, 5

FRAME = struct.Struct(">HBBBL")
"""Length (16 and 8 bits), type, flags, stream."""
FIRST_WINDOW = 65_535
LARGEST_WINDOW = 2**31 - 1
SMALLEST_MAX_FRAME = 16_384
"""Every peer takes frames of this size, and few send larger ones."""
TABLE_BYTES = 4_096
"""The dynamic table that a server has unless its SETTINGS say less."""

_STATIC = [(":method", "POST", 0x83), (":scheme", "http", 0x86)]
_FIRST_DYNAMIC = 62


class ProtocolFailed(Exception):
    """The server did not answer as gRPC over HTTP/2 says."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    size = len(payload)
    return FRAME.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def window_update(stream: int, size: int) -> bytes:
    """Return the frame that gives the server room for `size` more bytes."""
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))


def opening() -> bytes:
    """Return what a client says first: every window as large as it gets, no dynamic table for answers.

    Without a table each block of an answer can be read for itself, and equal ones need to be read once only.
    """
    settings = struct.pack(">HLHL", HEADER_TABLE_SIZE, 0, INITIAL_WINDOW_SIZE, LARGEST_WINDOW)
    wider = window_update(0, LARGEST_WINDOW - FIRST_WINDOW)
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, settings) + wider


def settings_of(payload: bytes) -> dict[int, int]:
    """Return what a SETTINGS frame says."""
    return dict(struct.iter_unpack(">HL", payload))


def header_blocks(fields: Sequence[tuple[str, str]], *, table_bytes: int) -> tuple[bytes, bytes]:
    """Return the first and the later calls' block for the same `fields`, besides method and scheme.

    With a table of less than `TABLE_BYTES` nothing is put into it: the first block says so, and all are literals.
    """
    fixed = bytes(index for _, _, index in _STATIC)
    if table_bytes < TABLE_BYTES:
        literals = b"".join(literal(name, value) for name, value in fields)
        return b"\x20" + fixed + literals, fixed + literals
    adding = b"".join(b"\x40" + text(name.encode()) + text(value.encode()) for name, value in fields)
    # The newest entry has the lowest index.
    indexes = bytes(0x80 | (_FIRST_DYNAMIC + place) for place in reversed(range(len(fields))))
    return fixed + adding, fixed + indexes


def literal(name: str, value: str) -> bytes:
    """Return a field without indexing, its name spelled out (RFC 7541 §6.2.2)."""
    return b"\x00" + text(name.encode()) + text(value.encode())


def text(value: bytes) -> bytes:
    """Return a string of fewer than 127 bytes, not Huffman coded (RFC 7541 §5.2)."""
    assert len(value) < 127, f"expected fewer than 127 bytes, got {len(value)}"
    return bytes([len(value)]) + value


class Trailers:
    """Says whether trailers mean success. A block is decoded at most once as long as it stays the same."""

    def __init__(self) -> None:
        self._good: set[bytes] = set()

    def check(self, block: bytes) -> None:
        """Raise `ProtocolFailed` unless the block holds grpc-status 0. O(length of the block) in C."""
        if block in self._good or b"\x0bgrpc-status\x010" in block:
            return
        fields = decoded(block)
        if fields.get("grpc-status") != "0":
            raise ProtocolFailed(f"expected grpc-status 0, got {fields}")
        if len(self._good) < 1_000:  # trailers that differ every time are decoded every time
            self._good.add(block)


def decoded(block: bytes) -> dict[str, str]:
    """Return the fields of a block that needs no dynamic table. Raises `ProtocolFailed`."""
    try:
        return {str(name): str(value) for name, value in hpack.Decoder().decode(block)}
    except hpack.HPACKError as error:
        raise ProtocolFailed(f"expected a header block that needs no table, got {block!r}: {error}") from error
