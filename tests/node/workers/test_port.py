"""Messages between a node and a worker: what is carried, what memory it takes, and that any bytes are only refused."""

from __future__ import annotations

import fcntl
import math
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mesh.node.workers.inside import msgpack, port, values
from mesh.node.workers.inside.port import HeldText, Port, PortError, Rows
from mesh.node.workers.inside.values import BadValue, decode_state, encode_state

KINDS = ("?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "c8", "c16")
LARGE = port.INLINE_BYTES + 1


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """An array as a model may give it: any type, order and byte order, empty, without axes, or a part of another."""
    kind = draw(st.sampled_from(KINDS))
    dtype = np.dtype(draw(st.sampled_from("<>")) + kind)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    array = draw(hnp.arrays(dtype, shape))
    if draw(st.booleans()) and array.ndim:
        array = np.repeat(array, draw(st.sampled_from((1, 3000))), axis=0)
    how = draw(st.sampled_from(("as it is", "fortran", "transposed", "every second", "backwards", "broadcast")))
    if how == "fortran":
        array = np.asfortranarray(array)
    elif how == "transposed":
        array = array.T
    elif how == "every second" and array.ndim:
        array = array[::2]
    elif how == "backwards" and array.ndim:
        array = array[::-1]
    elif how == "broadcast":
        array = np.broadcast_to(array, (2, *array.shape))
    return array


@st.composite
def texts(draw: st.DrawFn) -> Any:
    """An array of text, as bytes and str, in each of the forms that numpy has for it."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    count = math.prod(shape)
    element = st.one_of(st.binary(max_size=20), st.text(max_size=20))
    items = draw(st.lists(element, min_size=count, max_size=count))
    array: Any = np.empty(count, object)
    array[:] = items
    return array.reshape(shape)


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    """Arrays that are one to the receiver."""
    dtype, tail = draw(st.sampled_from(KINDS)), draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3))
    sizes = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    return Rows([draw(hnp.arrays(np.dtype(f"<{dtype}"), (size, *tail))) for size in sizes])


NUMBERS = st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False)
PLAIN = st.none() | st.booleans() | NUMBERS | st.text(max_size=10) | st.binary(max_size=10)
LEAVES = PLAIN | arrays() | texts() | rows()
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
MESSAGES = st.lists(TREES, min_size=1, max_size=4)


def carry(sender: Port, receiver: Port, *message: Any) -> list[Any]:
    return receiver.decode(*sender.encode(message))


def expected(value: Any) -> Any:
    """Return what arrives for what is sent."""
    if isinstance(value, Rows):
        return np.concatenate(value.parts)
    if isinstance(value, HeldText):
        return value.array()
    if isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
        flat: Any = np.empty(value.size, object)
        flat[:] = [each.encode() if isinstance(each, str) else bytes(each) for each in value.ravel().tolist()]
        return flat.reshape(value.shape)
    return value


def same(found: Any, sent: Any) -> bool:
    """Tell whether `found` is what arrives for `sent`, array by array and bit by bit."""
    want = expected(sent)
    if isinstance(want, np.ndarray):
        if not isinstance(found, np.ndarray) or found.shape != want.shape or not found.flags.writeable:
            return False
        if want.dtype == object:
            return found.dtype == object and found.ravel().tolist() == want.ravel().tolist()
        little = want.astype(want.dtype.newbyteorder("<"))
        return found.dtype == little.dtype and found.tobytes() == little.tobytes()
    if isinstance(want, list):
        return len(found) == len(want) and all(map(same, found, want))
    if isinstance(want, dict):
        return found.keys() == want.keys() and all(same(found[name], want[name]) for name in want)
    return type(found) is type(want) and bool(found == want)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a name per file is all


@settings(max_examples=200, deadline=None)
@given(messages=st.lists(MESSAGES, min_size=1, max_size=4))
def test_what_is_sent_arrives(messages: list[Any]) -> None:
    sender, receiver = Port(), Port()
    for message in messages:
        found = carry(sender, receiver, *message)
        assert same(found, list(message)), (found, message)


@settings(max_examples=100, deadline=None)
@given(array=texts())
def test_text_arrives_as_it_travels_where_that_is_wanted(array: Any) -> None:
    (found,) = carry(Port(), Port(held_elements=-1), array)
    assert isinstance(found, HeldText)
    assert found.shape == array.shape
    (again,) = carry(Port(), Port(), found)
    assert same(again, array)
    assert same(carry(Port(), Port(), HeldText.of(array))[0], array)


@pytest.mark.parametrize("kind", ["S3", "U3"])
@pytest.mark.parametrize("count", [2, LARGE])
def test_text_of_a_fixed_width_arrives(kind: str, count: int) -> None:
    array = np.array(["ab", "c"] * count, kind)
    (found,) = carry(Port(), Port(), array)
    assert found.tolist() == [b"ab", b"c"] * count


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(0, 3 * LARGE), min_size=2, max_size=20), keep=st.sets(st.integers(0, 19)))
def test_an_array_that_is_kept_stays_as_it_is(sizes: list[int], keep: set[int]) -> None:
    """Also what is written to one changes no other."""
    sender, receiver = Port(), Port()
    kept = []
    for at, size in enumerate(sizes):
        (found,) = carry(sender, receiver, np.full(size, at, np.uint8))
        assert (found == at).all()
        if at in keep:
            found[:] = 200 + at
            kept.append((at, found))
        else:
            found[:] = 100
        del found
        for number, array in kept:
            assert (array == 200 + number).all()


def talk(sender: Port, receiver: Port, *message: Any) -> None:
    """Send a message, drop it, and answer: what is free again is said with the next message."""
    carry(sender, receiver, *message)
    carry(receiver, sender, "done")


def test_memory_is_used_again_and_its_descriptors_are_closed() -> None:
    sender, receiver = Port(), Port()
    talk(sender, receiver, np.zeros(10 * LARGE, np.uint8))
    files = open_files()
    for _ in range(100):
        packet, fd = sender.encode([np.zeros(10 * LARGE, np.uint8)])
        assert fd == -1
        receiver.decode(packet, fd)
        carry(receiver, sender, "done")
    assert open_files() <= files
    assert repr(sender) == "<Port mine=1 free=1 theirs=0 used=0>"


def test_one_huge_message_is_not_remembered_for_ever() -> None:
    sender, receiver = Port(), Port()
    talk(sender, receiver, np.zeros(port.KEPT_BYTES + 1, np.uint8))
    assert repr(sender) == "<Port mine=0 free=0 theirs=0 used=0>"
    talk(sender, receiver, "more")
    assert repr(receiver) == "<Port mine=0 free=0 theirs=0 used=0>"


def test_free_memory_is_bounded_in_number() -> None:
    sender, receiver = Port(), Port()
    held = [carry(sender, receiver, np.zeros(LARGE * each, np.uint8)) for each in range(1, 9)]
    assert len(sender._mine) == 8
    held.clear()
    carry(receiver, sender, "done")
    assert len(sender._free) == len(sender._mine) == port.KEPT_REGIONS
    talk(sender, receiver, "more")
    assert len(receiver._theirs) == port.KEPT_REGIONS


def test_who_keeps_all_that_comes_keeps_few_regions() -> None:
    sender, receiver = Port(), Port()
    held = []
    for at in range(50):
        held.append(carry(sender, receiver, np.full(LARGE, at, np.uint8))[0])
        carry(receiver, sender, "done")
    assert len(receiver._theirs) <= port.BUSY_REGIONS + port.KEPT_REGIONS
    assert all((array == at).all() for at, array in enumerate(held))


@pytest.mark.parametrize(
    "value", [object(), np.array([object()]), np.array(["\ud800"], object), 1 << 64, np.zeros(1, "M8[s]")]
)
def test_what_cannot_be_carried_leaves_the_port_as_it_was(value: Any) -> None:
    sender, receiver = Port(), Port()
    carry(sender, receiver, np.zeros(LARGE, np.uint8))
    carry(receiver, sender, "done")
    with pytest.raises(BadValue):
        sender.encode([np.zeros(LARGE, np.uint8), value])
    assert repr(sender) == "<Port mine=1 free=1 theirs=0 used=0>"
    assert carry(sender, receiver, "next") == ["next"]


def sealed(size: int, *, seals: int = port._SEALS) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def a_pipe() -> int:
    reads, writes = os.pipe()
    os.close(writes)
    return reads


FILES: dict[str, Callable[[], int]] = {
    "none": lambda: -1,
    "sealed": lambda: sealed(4 * mmap.PAGESIZE),
    "empty": lambda: sealed(0),
    "small": lambda: sealed(10),
    "not sealed": lambda: sealed(4 * mmap.PAGESIZE, seals=0),
    "may shrink": lambda: sealed(4 * mmap.PAGESIZE, seals=fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL),
    "a pipe": a_pipe,
    "a folder": lambda: os.open("/", os.O_RDONLY | os.O_CLOEXEC),
    "a file": lambda: os.open(__file__, os.O_RDONLY | os.O_CLOEXEC),
    "nothing": lambda: os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC),
}


@contextmanager
def no_file_left() -> Iterator[None]:
    before = open_files()
    yield
    assert open_files() <= before


def in_region(header: bytes, *, number: int = 1, start: int | None = None, total: int = 4096) -> bytes:
    return port._IN_REGION.pack(1, number, len(header), len(header) if start is None else start, total)


@settings(max_examples=300, deadline=None)
@given(
    packet=st.binary(max_size=200)
    | st.builds(lambda header: port._INLINE.pack(0, len(header)) + header, st.binary(max_size=100))
    | st.builds(
        port._IN_REGION.pack,
        st.integers(0, 2),
        st.integers(0, 3),
        st.integers(0, 5000),
        st.integers(0, 20_000) | st.integers(0, (1 << 64) - 1),
        st.integers(0, 20_000) | st.integers(0, (1 << 64) - 1),
    ),
    file=st.sampled_from(list(FILES)),
)
def test_any_packet_with_any_file_is_a_message_or_refused(packet: bytes, file: str) -> None:
    receiver = Port()
    with no_file_left():
        with suppress(PortError):
            receiver.decode(packet, FILES[file]())
        receiver.close()


EXT = st.builds(
    lambda code, kind, axes, at, size, shape: msgspec.msgpack.Ext(
        code,
        port._ARRAY.pack(kind, axes, at, size) + b"".join(each.to_bytes(8, "little", signed=True) for each in shape),
    ),
    st.integers(-128, 127) | st.just(1),
    st.integers(0, 20) | st.just(255),
    st.integers(0, 40),
    st.integers(0, 64) | st.integers(0, (1 << 64) - 1),
    st.integers(0, 64) | st.integers(0, (1 << 64) - 1),
    st.lists(st.integers(-2, 8) | st.integers(-(1 << 63), (1 << 63) - 1), max_size=5),
)
HEADERS = st.builds(
    lambda free, gone, more: msgspec.msgpack.encode([free, gone, *more]),
    st.lists(st.integers(-1, 3) | PLAIN, max_size=3) | PLAIN,
    st.lists(st.integers(-1, 3) | PLAIN, max_size=3) | PLAIN,
    st.lists(EXT | PLAIN, max_size=3),
)


@settings(max_examples=500, deadline=None)
@given(headers=st.lists(st.tuples(HEADERS, st.binary(max_size=80)), min_size=1, max_size=3))
def test_any_header_is_a_message_or_refused(headers: list[tuple[bytes, bytes]]) -> None:
    """In a packet and in a region, by a port that also sends."""
    receiver, peer = Port(), Port()
    with no_file_left():
        carry(receiver, peer, np.zeros(LARGE, np.uint8))
        for number, (header, data) in enumerate(headers):
            padding = bytes(-(port._INLINE.size + len(header)) % 16)
            with suppress(PortError):
                receiver.decode(port._INLINE.pack(0, len(header)) + header + padding + data)
            fd = sealed(4096)
            os.pwrite(fd, header + data, 0)
            with suppress(PortError):
                receiver.decode(in_region(header, number=number), fd)
        assert receiver.encode(["still here", np.zeros(3)])
        peer.close()
        receiver.close()


@settings(max_examples=300, deadline=None)
@given(
    message=MESSAGES,
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 10_000) | st.none(),
)
def test_a_real_message_with_changed_bytes_is_a_message_or_refused(
    message: list[Any], changes: list[tuple[int, int]], cut: int | None
) -> None:
    packet, fd = Port().encode(message)
    mutated = bytearray(packet)
    for at, byte in changes:
        mutated[at % len(mutated)] = byte
    with suppress(PortError):
        Port().decode(bytes(mutated[:cut]), fd)


def test_a_region_is_counted_and_not_given_twice() -> None:
    header = msgspec.msgpack.encode([[], [], "hello"])
    receiver = Port()
    fd = sealed(4096)
    os.pwrite(fd, header, 0)
    kept = os.dup(fd)
    assert receiver.decode(in_region(header), fd) == ["hello"]
    with pytest.raises(PortError):
        receiver.decode(in_region(header), kept)

    def more() -> None:
        for number in range(2, port.MOST_REGIONS + 2):
            fd = sealed(4096)
            os.pwrite(fd, header, 0)
            receiver.decode(in_region(header, number=number), fd)

    with pytest.raises(PortError, match="one more than"):
        more()
    assert Path("/proc/self/maps").read_text().count("memfd:test") <= port.MOST_REGIONS


def hook(value: Any) -> tuple[int, bytes]:
    assert isinstance(value, complex)
    return 5, str(value).encode()


def unhook(code: int, data: bytes) -> complex:
    assert code == 5
    return complex(bytes(data).decode())


PACKED = st.recursive(
    PLAIN
    | st.complex_numbers(allow_nan=False)
    | st.binary(min_size=250, max_size=300)
    | st.text(min_size=30, max_size=70),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5) | st.integers(-9, 99), inner),
    max_leaves=30,
)


@settings(max_examples=300, deadline=None)
@given(value=PACKED)
def test_our_messagepack_and_msgspec_read_each_other(value: Any) -> None:
    def ext(found: Any) -> Any:
        return msgspec.msgpack.Ext(*hook(found))

    theirs = msgspec.msgpack.encode(value, enc_hook=ext)
    assert msgpack.unpack(theirs, unhook) == value
    ours = msgpack.pack(value, hook)
    assert msgspec.msgpack.decode(ours, ext_hook=lambda code, data: unhook(code, bytes(data))) == value
    assert msgpack.unpack(ours, unhook) == value


@settings(max_examples=500, deadline=None)
@given(data=st.binary(max_size=100) | PACKED.map(lambda value: msgpack.pack(value, hook)[:-1]))
def test_our_messagepack_refuses_with_one_error(data: bytes) -> None:
    """What is unhashable as a key is a TypeError, as with msgspec a ValidationError; `codec` makes one of both."""

    def refuse(code: int, data: bytes) -> Any:
        raise BadValue(f"{code} {len(data)}")

    with suppress(ValueError, TypeError):
        msgpack.unpack(data, refuse)


STATES = st.recursive(
    PLAIN | arrays(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(state=STATES)
def test_a_state_comes_back_as_it_was(state: Any) -> None:
    assert same(decode_state(encode_state(state)), state)


def _changed(data: bytes) -> st.SearchStrategy[bytes]:
    def change(at: int, byte: int, cut: int) -> bytes:
        mutated = bytearray(data)
        mutated[at % len(mutated)] = byte
        return bytes(mutated[: len(mutated) - cut % len(mutated)])

    return st.builds(change, st.integers(0, 300), st.integers(0, 255), st.just(0) | st.integers(0, 300))


def _state_of(data: bytes) -> Any:
    """Read a state as an interpreter without msgspec does."""

    def unpack(code: int, inner: bytes) -> Any:
        return values._unpack_state(code, inner)

    return values._guarded(lambda given: msgpack.unpack(given, unpack))(data)


@settings(max_examples=1000, deadline=None)
@given(data=st.binary(max_size=100) | STATES.map(encode_state).flatmap(_changed))
def test_any_bytes_are_a_state_or_refused(data: bytes) -> None:
    for decode in (decode_state, _state_of):
        with suppress(BadValue):
            decode(data)


PARTS = st.tuples(
    st.sampled_from(["<f4", "<i8", ">f8", "|O", "<M8[s]", "S3", "V8", "f4,i4", "(3,)f4", "?"]) | st.text(max_size=6),
    st.lists(st.integers(-2, 5) | st.integers(0, 1 << 63), max_size=40),
    st.binary(max_size=64),
)


@settings(max_examples=500, deadline=None)
@given(parts=PARTS)
def test_any_array_of_a_state_is_an_array_or_refused(parts: tuple[str, list[int], bytes]) -> None:
    inner = msgspec.msgpack.encode(parts)
    with suppress(BadValue):
        found = decode_state(msgspec.msgpack.encode(msgspec.msgpack.Ext(values.ARRAY, inner)))
        assume(isinstance(found, np.ndarray))
        assert found.dtype.str in values.DTYPES
