"""One end of the channel between a node and a worker: messages with arrays, as packets and shared memory.

A message is a tree of plain values and numpy arrays. A small one travels in its packet. A larger one is written once
into a region of shared memory (a sealed memfd of the sender's) and the receiver reads its arrays right there; a region
is free again when the receiver has dropped the last array of it, which it notices by reference counts and says with its
next message. Nothing here waits: the packets are somebody else's.

What a peer writes is read with distrust (`PortError`): it may be a model's process. Regions are sealed, so that a peer
cannot shrink one that is mapped here.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from .values import BadValue, codec

INLINE_BYTES = 32 * 1024
"""Messages up to this travel in their packet: two small copies in the kernel cost less than a region's upkeep."""

PACKET_BYTES = 64 * 1024
"""No packet is longer: half of what Linux lets a socket hold by default."""

KEPT_REGIONS, KEPT_BYTES = 3, 64 * 1024 * 1024
"""Free regions that are kept for the next large message, and their bytes."""

BUSY_REGIONS = 8
"""Of a peer's whose arrays may still be held: beyond it they are copied, so that who keeps them keeps no region."""

MOST_REGIONS = 256
"""Of a peer's that are mapped here: one that follows the rules has no use for a tenth of it."""

MAX_AXES = 32
_INLINE = struct.Struct("<BI")
_IN_REGION = struct.Struct("<BIIQQ")
_ARRAY = struct.Struct("<BBQQ")
_ALIGN = 16
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

_TYPES = ("|b1", "|u1", "<u2", "<u4", "<u8", "|i1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8", "<c8", "<c16")
_DTYPES = [np.dtype(each) for each in _TYPES]
_KIND_OF = {dtype: kind for kind, dtype in enumerate(_DTYPES)}
_TEXT = 255
_ARRAY_CODE = 1


class PortError(Exception):
    """The peer sent what is no message."""


class HeldText:
    """An array of text as it travels: the lengths of its elements, and then all of them.

    To make one of an array, and an array of one, takes some 0.1 us an element: long ones are made off the event loop.
    """

    __slots__ = ("octets", "shape")

    def __init__(self, octets: bytes, shape: tuple[int, ...]) -> None:
        self.octets = octets
        self.shape = shape

    @classmethod
    def of(cls, array: Any) -> HeldText:
        """Return `array` as it travels. Raises `BadValue`."""
        return cls(b"".join([bytes(each) for each in _text_buffers(array)[1]]), array.shape)

    def array(self) -> Any:
        """Return the array. Raises `BadValue`."""
        return _text_array(self.octets, math.prod(self.shape), self.shape)


class Rows:
    """Arrays of one type that are one array to the receiver, joined along axis 0. They are joined where they arrive."""

    __slots__ = ("dtype", "nbytes", "parts", "shape")

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts
        self.dtype = parts[0].dtype
        self.nbytes = sum(each.nbytes for each in parts)
        self.shape = (sum(each.shape[0] for each in parts), *parts[0].shape[1:])

    @staticmethod
    def can_join(parts: Sequence[Any]) -> bool:
        """Tell whether these arrays may be parts: all of one type that needs no conversion, alike behind axis 0."""
        first = parts[0]
        return first.dtype in _KIND_OF and all(
            each.dtype == first.dtype and each.ndim and each.shape[1:] == first.shape[1:] for each in parts
        )


class _Region:
    """Shared memory of one sender, mapped here. `root` is what every array in it refers to."""

    __slots__ = ("_mapped", "_rest", "root", "size")

    def __init__(self, fd: int, size: int) -> None:
        self._mapped = mmap.mmap(fd, size)
        self.size = size
        self.root = np.frombuffer(self._mapped, np.uint8)
        self._rest = sys.getrefcount(self.root)

    def is_free(self) -> bool:
        """Tell whether no array refers to it any more."""
        return sys.getrefcount(self.root) <= self._rest


class Port:
    """Encodes messages for a peer and decodes its own. Used by one thread at a time."""

    def __init__(self, held_elements: int = sys.maxsize) -> None:
        """`held_elements`: arrays of text with more are given as `HeldText`."""
        self._held_elements = held_elements
        self._serial = 0
        self._mine: dict[int, _Region] = {}
        self._free: list[int] = []
        """Of `mine`, those that the peer does not use."""
        self._dropped: list[int] = []
        self._theirs: dict[int, _Region] = {}
        self._told: set[int] = set()
        self._used: set[int] = set()
        """Of `theirs`, those whose arrays may still be held here."""
        self._gone: set[int] = set()
        self._buffers: list[Any] = []
        self._size = 0
        self._data: Any = b""
        self._encode, self._decode = codec(self._pack, self._unpack)

    # -- sending -------------------------------------------------------------------------------------------------

    def encode(self, message: Sequence[Any]) -> tuple[bytes, int]:
        """Return a packet, and a file descriptor to send with it and to close then, or -1. Raises `BadValue`."""
        self._buffers, self._size = [], 0
        try:
            header = self._encode([self._to_free(), self._dropped, *message])
            packet = self._packed(header)
        except (OSError, MemoryError) as error:
            raise BadValue(f"no shared memory for {self._size} bytes: {error}") from error
        else:
            # Only now, as what could not be encoded never tells it.
            self._used -= self._told
            self._dropped = []
            return packet
        finally:
            self._buffers = []

    def _packed(self, header: bytes) -> tuple[bytes, int]:
        if not self._size and len(header) <= PACKET_BYTES - _ALIGN:
            return _INLINE.pack(0, len(header)) + header, -1
        total = _aligned(len(header) + _INLINE.size) + self._size
        if total > INLINE_BYTES:
            return self._into_region(header)
        parts = [_INLINE.pack(0, len(header)), header, bytes(total - self._size - _INLINE.size - len(header))]
        return b"".join([*parts, *[part for buffers in self._buffers for part in _padded(buffers)]]), -1

    def _to_free(self) -> list[int]:
        """Return the peer's regions that were let go of since."""
        self._told = {each for each in self._used if self._theirs[each].is_free()}
        return list(self._told)

    def _into_region(self, header: bytes) -> tuple[bytes, int]:
        start = _aligned(len(header))
        total = start + self._size
        number, fd = self._room(total)
        # Through a view of it that goes: what refers to `root` itself counts as an array in use.
        target: Any = memoryview(self._mine[number].root)  # type: ignore[arg-type] # an array is a buffer
        target[: len(header)] = header
        at = start
        for buffers in self._buffers:
            for octets in _padded(buffers):
                target[at : at + len(octets)] = octets
                at += len(octets)
        return _IN_REGION.pack(1, number, len(header), start, total), fd

    def _room(self, total: int) -> tuple[int, int]:
        """Return the number of a free region of `total` bytes, and its descriptor when it is new."""
        fitting = [each for each in self._free if self._mine[each].size >= total]
        if fitting:
            number = min(fitting, key=lambda each: self._mine[each].size)
            self._free.remove(number)
            return number, -1
        size = _size_for(total)
        fd = os.memfd_create("mesh-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.truncate(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            self._serial += 1
            self._mine[self._serial] = _Region(fd, size)
        except BaseException:
            os.close(fd)
            raise
        return self._serial, fd

    def _freed(self, number: int) -> None:
        if number not in self._mine or number in self._free:
            raise PortError(f"region {number} was not in use")
        self._free.append(number)
        # The largest go first: one huge message must not be remembered by its room for ever.
        while len(self._free) > KEPT_REGIONS or sum(self._mine[each].size for each in self._free) > KEPT_BYTES:
            largest = max(self._free, key=lambda each: self._mine[each].size)
            self._free.remove(largest)
            del self._mine[largest]
            self._dropped.append(largest)

    def _pack(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return _ARRAY_CODE, self._place(value)
        if isinstance(value, HeldText):
            return _ARRAY_CODE, self._placed(_TEXT, value.shape, len(value.octets), [value.octets])
        if isinstance(value, Rows):
            return _ARRAY_CODE, self._placed(_KIND_OF[value.dtype], value.shape, value.nbytes, value.parts)
        if isinstance(value, np.generic):
            return value.item()
        raise BadValue(f"expected plain values and arrays, got a {type(value).__name__}")

    def _place(self, array: Any) -> bytes:
        """Give an array its place in the data of the message; return what is said of it in the header."""
        if array.ndim > MAX_AXES:
            raise BadValue(f"expected an array of at most {MAX_AXES} axes, got {array.ndim}")
        kind = _KIND_OF.get(array.dtype)
        if kind is None:
            if array.dtype.kind in "OSUT":
                size, parts = _text_buffers(array)
                return self._placed(_TEXT, array.shape, size, parts)
            # The node holds BF16 as float32.
            held = np.float32 if array.dtype.name == "bfloat16" else array.dtype.newbyteorder("<")
            array = array.astype(held, copy=False)
            kind = _KIND_OF.get(array.dtype)
        if kind is None:
            raise BadValue(f"expected an array of bool, integers, floats, complex or text, got {array.dtype}")
        return self._placed(kind, array.shape, array.nbytes, [array])

    def _placed(self, kind: int, shape: tuple[int, ...], size: int, buffers: Sequence[Any]) -> bytes:
        said = _ARRAY.pack(kind, len(shape), self._size, size) + struct.pack(f"<{len(shape)}q", *shape)
        self._buffers.append(buffers)
        self._size += _aligned(size)
        return said

    # -- receiving -----------------------------------------------------------------------------------------------

    def decode(self, packet: bytes, fd: int = -1) -> list[Any]:
        """Return the message of a packet and the descriptor that came with it (-1: none), which is closed here.

        Arrays are writable, and views: of the packet's copy or of the sender's region. Raises `PortError` for anything
        that is no message.
        """
        try:
            header, self._data = self._parts(packet, fd)
            message = self._decode(header)
            if not isinstance(message, list) or len(message) < 3:
                raise PortError("expected a message")
            for number in _numbers(message[0]):
                self._freed(number)
            for number in _numbers(message[1]):
                self._gone.add(number)
        except (BadValue, struct.error) as error:
            raise PortError(f"expected a message: {error}") from error
        finally:
            self._data = b""
            if fd >= 0:
                os.close(fd)
        self._unmap()
        return message[2:]

    def _parts(self, packet: bytes, fd: int) -> tuple[bytes, Any]:
        """Return a message's header and data."""
        if packet[:1] == b"\0":
            length = _INLINE.unpack_from(packet)[1]
            end = _INLINE.size + length
            if end > len(packet):
                raise PortError(f"expected a header of {length} bytes, got {len(packet) - _INLINE.size}")
            start = _aligned(end)
            return packet[_INLINE.size : end], (bytearray(packet[start:]) if start < len(packet) else b"")
        _, number, length, start, total = _IN_REGION.unpack(packet)
        if fd >= 0:
            self._map(number, fd)
        region = self._theirs.get(number)
        if region is None or number in self._used or not length <= start <= total <= region.size:
            raise PortError(f"expected {total} bytes in a region of its own, got region {number}")
        self._used.add(number)
        # The header is copied out before it is read, as its writer can still reach it.
        data = region.root[start:total]
        return region.root[:length].tobytes(), data.copy() if len(self._used) > BUSY_REGIONS else data

    def _map(self, number: int, fd: int) -> None:
        if number in self._theirs or len(self._theirs) >= MOST_REGIONS:
            raise PortError(f"region {number} is there already, or one more than {MOST_REGIONS}")
        try:
            if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise PortError("expected a sealed region")
            self._theirs[number] = _Region(fd, os.fstat(fd).st_size)
        except (OSError, ValueError) as error:
            raise PortError(f"a region that cannot be mapped: {error}") from error

    def _unmap(self) -> None:
        for number in [each for each in self._gone if each not in self._used]:
            self._gone.discard(number)
            self._theirs.pop(number, None)

    def _unpack(self, code: int, said: bytes) -> Any:
        if code != _ARRAY_CODE:
            raise BadValue(f"an extension with code {code}")
        kind, axes, at, size = _ARRAY.unpack_from(said)
        shape = struct.unpack_from(f"<{axes}q", said, _ARRAY.size)
        if axes > MAX_AXES or any(each < 0 for each in shape) or at + size > len(self._data):
            raise BadValue(f"an array {shape} of {size} bytes at {at} in {len(self._data)}")
        count = math.prod(shape)
        data = (memoryview(self._data) if isinstance(self._data, bytearray) else self._data)[at : at + size]
        if kind == _TEXT:
            held = HeldText(bytes(data), shape)
            return held if count > self._held_elements else held.array()
        if kind >= len(_DTYPES) or count * _DTYPES[kind].itemsize != size:
            raise BadValue(f"an array {shape} of type {kind} in {size} bytes")
        if isinstance(data, np.ndarray):
            return data.view(_DTYPES[kind]).reshape(shape)
        return np.frombuffer(data, _DTYPES[kind]).reshape(shape) if size else np.empty(shape, _DTYPES[kind])

    def close(self) -> None:
        """Let go of all shared memory, as the codec and this keep each other. Arrays that are held keep theirs."""
        self._mine, self._theirs = {}, {}

    def __repr__(self) -> str:
        """Show the regions."""
        return f"<Port mine={len(self._mine)} free={len(self._free)} theirs={len(self._theirs)} used={len(self._used)}>"


def _numbers(found: Any) -> list[int]:
    if not isinstance(found, list) or any(type(each) is not int for each in found):
        raise PortError("expected numbers of regions")
    return found


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _padded(buffers: Sequence[Any]) -> list[Any]:
    """Return the bytes of buffers that follow each other, and what fills them up to where the next ones begin."""
    octets = [_octets(each) for each in buffers]
    size = sum(each.nbytes for each in octets)
    return [*octets, bytes(_aligned(size) - size)]


def _octets(buffer: Any) -> memoryview:
    """Return the bytes of an array, row-major, or of bytes. A copy is made of an array in another order."""
    if isinstance(buffer, np.ndarray):
        flat: Any = np.ascontiguousarray(buffer).reshape(-1).view(np.uint8)
        return memoryview(flat)
    return memoryview(buffer)


def _size_for(total: int) -> int:
    """Return the size of a region for a message of `total` bytes: the next of four steps between powers of two."""
    step = max(mmap.PAGESIZE, 1 << max(0, total.bit_length() - 3))
    return -(-total // step) * step


def _text_buffers(array: Any) -> tuple[int, list[Any]]:
    """Return the size and the parts of an array of text: the lengths of its elements, and then all of them."""
    items = array.ravel().tolist()
    try:
        items = [each if type(each) is bytes else _element(each) for each in items]
    except UnicodeEncodeError as error:
        raise BadValue(f"expected str elements that UTF-8 can carry, got {str(error.object)[:40]!r}") from error
    lengths = np.fromiter(map(len, items), np.uint32, len(items))
    joined = b"".join(items)
    return lengths.nbytes + len(joined), [lengths, joined]


def _element(each: Any) -> bytes:
    if isinstance(each, str):
        return each.encode()
    if isinstance(each, (bytes, bytearray, memoryview)):
        return bytes(each)
    raise BadValue(f"expected str or bytes elements, got {type(each).__name__}: convert them first")


def _text_array(data: bytes, count: int, shape: tuple[int, ...]) -> Any:
    if count * 4 > len(data):
        raise BadValue(f"{count} elements of text in {len(data)} bytes")
    ends = np.cumsum(np.frombuffer(data, np.uint32, count), dtype=np.int64) + count * 4
    if (int(ends[-1]) if count else 0) != (len(data) if count else 0):
        raise BadValue("elements of text that do not fill their bytes")
    places = ends.tolist()
    array: Any = np.empty(count, object)
    array[:] = [data[start:end] for start, end in zip([count * 4, *places], places)]  # noqa: B905 - one start too many
    return array.reshape(shape)
