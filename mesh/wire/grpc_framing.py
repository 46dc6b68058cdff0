"""gRPC over HTTP/2, the part that is bytes: messages with their 5-byte prefix, timeouts, statuses, metadata.

(gRPC's PROTOCOL-HTTP2 document: Length-Prefixed-Message, Timeout, Status-Message, Binary-Header)
"""

from __future__ import annotations

import base64
import binascii
import zlib
from struct import Struct
from typing import Final

from mesh.core.errors import Code, InvalidRequest, MeshError, TooLarge, Unimplemented
from mesh.core.texts import status_text
from mesh.wire.frames import ErrorCode

PREFIX_BYTES: Final = 5
_PREFIX: Final = Struct(">BI")
pack_prefix = _PREFIX.pack
unpack_prefix = _PREFIX.unpack_from

ACCEPTED: Final = b"identity,gzip,deflate"
"""What we say in grpc-accept-encoding."""

MAX_TIMEOUT_S: Final = 99_999_999 * 3600.0
_UNITS: Final = {0x48: 3600.0, 0x4D: 60.0, 0x53: 1.0, 0x6D: 1e-3, 0x75: 1e-6, 0x6E: 1e-9}
"""H, M, S, m, u, n."""


SMALL: Final = 1024
"""Pieces below this are copied together while they wait."""

SMALL_INFLATED: Final = 64 * 1024
"""Messages up to here are inflated at once, in about 0.1 ms."""

STEP: Final = 4 * 1024 * 1024
"""Bytes inflated at a time, in about 10 ms."""


class BadMessage(MeshError):
    """The bytes are no gRPC message."""

    code = Code.INTERNAL


class Packed(bytes):
    """A message that is still compressed: `Deframer.inflation` begins to inflate it."""

    __slots__ = ()


class Inflation:
    """A message being inflated, `STEP` bytes at a time. For one thread at a time."""

    __slots__ = ("_inflater", "_max_bytes", "_parts", "_prefixed", "_rest", "done", "size")

    def __init__(self, packed: bytes, compression: int, max_bytes: int, *, prefixed: bool) -> None:
        self._inflater = zlib.decompressobj(compression)
        self._rest: bytes = packed
        self._max_bytes = max_bytes
        self._prefixed = prefixed
        self._parts: list[bytes] = []
        self.size = 0
        """Bytes so far."""
        self.done = False

    def step(self, at_most: int = STEP) -> None:
        """Go on by about `at_most` bytes. Raises `BadMessage`, and `TooLarge` beyond the largest message."""
        inflater = self._inflater
        try:
            part = inflater.decompress(self._rest, min(at_most, self._max_bytes - self.size + 1))
        except zlib.error as error:
            raise BadMessage(f"cannot decompress a message: {error}") from error
        self._rest = inflater.unconsumed_tail
        self._parts.append(part)
        self.size += len(part)
        if self.size > self._max_bytes:
            raise TooLarge(f"a message of more than {self._max_bytes} bytes after decompression")
        if inflater.eof:
            if inflater.unused_data:
                raise BadMessage("more bytes behind a compressed message")
            self.done = True
        elif not part and not self._rest:
            raise BadMessage("a compressed message that is cut off")

    def message(self) -> bytes:
        """Return the whole, once it is `done`."""
        return b"".join([pack_prefix(0, self.size), *self._parts] if self._prefixed else self._parts)


class Deframer:
    """Cuts a body into messages, however it was split. Holds at most one unfinished message, and copies it once.

    A compressed message above `SMALL_INFLATED` comes as it is, `Packed`: inflating it takes too long for an event loop.
    """

    __slots__ = ("_compression", "_cut", "_flag", "_held", "_left", "_max_bytes", "_parts")

    def __init__(self, max_message_bytes: int, *, compression: int = 0, keep_prefix: bool = False) -> None:
        self._cut = 0 if keep_prefix else PREFIX_BYTES
        """What of the prefix is left out of messages: for one who passes them on, nothing."""
        self._max_bytes = max_message_bytes
        self._compression = compression
        self._parts: list[bytes | bytearray] = []
        self._held = 0
        self._flag = 0
        self._left = -1
        """Bytes that the message being held lacks; -1 while its prefix is not whole."""

    @property
    def held(self) -> int:
        """Bytes of a message that is not whole yet, its prefix included; 0 between messages."""
        return self._held

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that `data` completes, uncompressed but for the `Packed` among them.

        Raises `TooLarge` for a message above the limit (before its bytes are kept), `BadMessage` for what is no message
        or cannot be decompressed.
        """
        messages: list[bytes] = []
        position, size = 0, len(data)
        if self._held:
            position = self._resume(data, messages)
        while size - position >= PREFIX_BYTES:
            flag, length = unpack_prefix(data, position)
            start = position + PREFIX_BYTES
            end = start + length
            if flag or length > self._max_bytes:
                self._check(flag, length)
            if end > size:
                self._flag, self._left = flag, end - size
                self._held = size - position
                self._parts.append(data[start:])
                return messages
            messages.append(self._expanded(data[start:end]) if flag else data[position + self._cut : end])
            position = end
        if position < size:
            self._parts.append(data[position:])
            self._held, self._left = size - position, -1
        return messages

    def _check(self, flag: int, length: int) -> None:
        if flag > 1:
            raise BadMessage(f"a message begins with {flag}, not with 0 or 1: is this gRPC?")
        if length > self._max_bytes:
            raise TooLarge(f"a message of {length} bytes, at most {self._max_bytes} are taken")

    def _resume(self, data: bytes, messages: list[bytes]) -> int:
        """Go on with the message that is held; return how much of `data` went into it."""
        taken = 0
        if self._left < 0:
            taken = PREFIX_BYTES - self._held
            prefix = b"".join(self._parts) + data[:taken]
            if len(prefix) < PREFIX_BYTES:
                self._parts, self._held = [prefix], len(prefix)
                return len(data)
            self._flag, self._left = unpack_prefix(prefix)
            self._check(self._flag, self._left)
            self._parts, self._held = [], PREFIX_BYTES
        body = data[taken : taken + self._left] if taken or len(data) > self._left else data
        if len(body) < SMALL and self._parts:
            # An object for each of many tiny pieces would cost many times what it holds.
            last = self._parts[-1]
            if last.__class__ is not bytearray:
                self._parts.append(last := bytearray())
            last += body
        else:
            self._parts.append(body)
        self._held += len(body)
        self._left -= len(body)
        if self._left == 0:
            if not self._flag and not self._cut:
                self._parts.insert(0, pack_prefix(0, self._held - PREFIX_BYTES))
            message = b"".join(self._parts)
            self._parts, self._held, self._left = [], 0, -1
            messages.append(self._expanded(message) if self._flag else message)
        return taken + len(body)

    def _expanded(self, message: bytes) -> bytes:
        if not self._compression:
            raise BadMessage("a compressed message, but grpc-encoding named no compression")
        inflation = self.inflation(message)
        while not inflation.done:
            if inflation.size > SMALL_INFLATED:
                return Packed(message)
            inflation.step(SMALL_INFLATED + 1)
        return inflation.message()

    def inflation(self, packed: bytes) -> Inflation:
        """Return what inflates a message of this body."""
        return Inflation(packed, self._compression, self._max_bytes, prefixed=not self._cut)


def framed(message: bytes) -> bytes:
    """Return `message` with its prefix."""
    return pack_prefix(0, len(message)) + message


def timeout_s(text: bytes) -> float:
    """Return a grpc-timeout in seconds. Raises `InvalidRequest` for anything but 1 to 8 digits and a unit."""
    digits = text[:-1]
    if 1 <= len(digits) <= 8 and digits.isdigit() and (unit := _UNITS.get(text[-1])) is not None:
        return int(digits) * unit
    raise InvalidRequest(f"grpc-timeout {text!r}: expected 1 to 8 digits and one of H M S m u n")


def timeout_text(seconds: float) -> bytes:
    """Return `seconds` as a grpc-timeout, rounded down, never to 0, in ms where they fit."""
    seconds = min(seconds, 99_999_999.0)
    ms = int(seconds * 1e3)
    if ms >= 100:
        return b"%dm" % ms if ms < 100_000_000 else b"%dS" % int(seconds)
    return b"%du" % max(1, int(seconds * 1e6))


def percent_encoded(text: str) -> bytes:
    """Return a Status-Message: UTF-8 with everything outside printable ASCII, and %, as %XX; cut where it is long."""
    text = status_text(text)
    raw = text.encode("utf-8", "replace")
    if raw.isascii() and b"%" not in raw and text.isprintable():
        return raw
    return b"".join([bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte for byte in raw])


def percent_decoded(raw: bytes) -> str:
    """Return the text of a Status-Message; what is no %XX stays as it is."""
    if b"%" not in raw:
        return raw.decode("utf-8", "replace")
    out = bytearray()
    position = 0
    while position < len(raw):
        digits = raw[position + 1 : position + 3]
        if raw[position] == 0x25 and len(digits) == 2 and _HEX.issuperset(digits):
            out.append(int(digits, 16))
            position += 3
        else:
            out.append(raw[position])
            position += 1
    return out.decode("utf-8", "replace")


_HEX: Final = frozenset(b"0123456789abcdefABCDEF")


def binary_text(value: bytes) -> bytes:
    """Return the value of a -bin header: base64 without padding."""
    return base64.b64encode(value).rstrip(b"=")


def binary_values(text: bytes) -> list[bytes]:
    """Return the values of a -bin header, which may be joined by commas. Raises `InvalidRequest` for bad base64."""
    try:
        return [base64.b64decode(part + b"=" * (-len(part) % 4), validate=True) for part in text.split(b",")]
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"a -bin header that is no base64: {error}") from error


_COMPRESSIONS: Final = {b"": 0, b"identity": 0, b"gzip": 31, b"deflate": 15}
"""zlib's window bits, which also say the format."""


def check_encoding(encoding: bytes) -> int:
    """Return the compression of messages, for `Deframer`. Raises `Unimplemented` for one that we do not know."""
    known = _COMPRESSIONS.get(encoding)
    if known is not None:
        return known
    raise Unimplemented(f"grpc-encoding {encoding.decode('latin-1')!r} is not one of {ACCEPTED.decode()}")


_OF_RESET: Final = {
    ErrorCode.REFUSED_STREAM: Code.UNAVAILABLE,
    ErrorCode.CANCEL: Code.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Code.PERMISSION_DENIED,
}


def code_of_reset(code: int) -> Code:
    """Return the status of a call whose stream was reset with `code`."""
    return _OF_RESET.get(code, Code.INTERNAL)  # type: ignore[call-overload,no-any-return] # any number may come


_OF_HTTP: Final = {
    b"400": Code.INTERNAL,
    b"401": Code.UNAUTHENTICATED,
    b"403": Code.PERMISSION_DENIED,
    b"404": Code.UNIMPLEMENTED,
    b"429": Code.UNAVAILABLE,
    b"502": Code.UNAVAILABLE,
    b"503": Code.UNAVAILABLE,
    b"504": Code.UNAVAILABLE,
}


def code_of_http(status: bytes) -> Code:
    """Return the status of an answer that was not gRPC's (gRPC's HTTP-status mapping)."""
    return _OF_HTTP.get(status, Code.UNKNOWN)
