"""HTTP/2 frames as numbers and bytes: kinds, flags, settings, error codes, and how each frame is written.

Reading is `connection`'s, where it is one loop. (RFC 9113 §4, §6, §7)
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

HEADER_TABLE_SIZE: Final = 0x1
ENABLE_PUSH: Final = 0x2
MAX_CONCURRENT_STREAMS: Final = 0x3
INITIAL_WINDOW_SIZE: Final = 0x4
MAX_FRAME_SIZE: Final = 0x5
MAX_HEADER_LIST_SIZE: Final = 0x6

DEFAULT_WINDOW: Final = 65_535
DEFAULT_MAX_FRAME: Final = 16_384
MAX_WINDOW: Final = (1 << 31) - 1
MAX_STREAM_ID: Final = (1 << 31) - 1
HEAD_BYTES: Final = 9


class ErrorCode(IntEnum):
    """Why a stream or connection ends early (RFC 9113 §7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class ConnectionFault(Exception):
    """The peer broke the protocol in a way that ends the connection."""

    def __init__(self, code: ErrorCode, why: str) -> None:
        """Keep the code that GOAWAY carries, and the reason."""
        super().__init__(f"{code.name}: {why}")
        self.code = code
        self.why = why


class StreamFault(Exception):
    """The peer broke the protocol in a way that ends one stream."""

    def __init__(self, stream_id: int, code: ErrorCode, why: str) -> None:
        """Keep the code that RST_STREAM carries, and the reason."""
        super().__init__(f"stream {stream_id}: {code.name}: {why}")
        self.stream_id = stream_id
        self.code = code
        self.why = why


_HEAD: Final = Struct(">IBI")
"""Length and kind in one number (length << 8 | kind), flags, stream id: 9 bytes, as they travel."""

pack_head = _HEAD.pack
unpack_head = _HEAD.unpack_from

_U32: Final = Struct(">I")
_SETTING: Final = Struct(">HI")


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Return one frame. The payload is not checked against the peer's limits."""
    return pack_head(len(payload) << 8 | kind, flags, stream_id) + payload


def headers(block: bytes, stream_id: int, *, end: bool, max_frame: int) -> bytes:
    """Return HEADERS, and CONTINUATION frames where `block` is longer than `max_frame`."""
    last = END_STREAM if end else 0
    if len(block) <= max_frame:
        return pack_head(len(block) << 8 | HEADERS, last | END_HEADERS, stream_id) + block
    parts = [block[start : start + max_frame] for start in range(0, len(block), max_frame)]
    frames = [frame(HEADERS, last, stream_id, parts[0])]
    frames += [frame(CONTINUATION, 0, stream_id, part) for part in parts[1:-1]]
    frames.append(frame(CONTINUATION, END_HEADERS, stream_id, parts[-1]))
    return b"".join(frames)


def settings(values: dict[int, int]) -> bytes:
    """Return a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in values.items()))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Return the settings in `payload`, whose length is a multiple of 6, in their order."""
    return list(_SETTING.iter_unpack(payload))


def window_update(stream_id: int, increment: int) -> bytes:
    """Return WINDOW_UPDATE; stream 0 is the connection."""
    return pack_head(4 << 8 | WINDOW_UPDATE, 0, stream_id) + _U32.pack(increment)


def rst_stream(stream_id: int, code: int) -> bytes:
    """Return RST_STREAM."""
    return pack_head(4 << 8 | RST_STREAM, 0, stream_id) + _U32.pack(code)


def goaway(last_stream_id: int, code: int, debug: bytes = b"") -> bytes:
    """Return GOAWAY. `debug` is text for the peer's logs."""
    return frame(GOAWAY, 0, 0, _U32.pack(last_stream_id) + _U32.pack(code) + debug)


def check_size(payload: bytes, size: int, what: str) -> None:
    """Raise `ConnectionFault` for a frame that is of another size than its kind has."""
    if len(payload) != size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"{what} of {len(payload)} bytes, not {size}")


def ping(opaque: bytes, *, ack: bool) -> bytes:
    """Return PING with 8 bytes."""
    return frame(PING, ACK if ack else 0, 0, opaque)


def u32(payload: bytes, offset: int = 0) -> int:
    """Return the 32-bit number at `offset`."""
    number: int = _U32.unpack_from(payload, offset)[0]
    return number
