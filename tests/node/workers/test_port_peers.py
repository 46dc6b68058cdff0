"""What one end of the channel says, the other reads; regions are used again; nonsense is refused as that."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mesh.node.workers.inside import port as ports
from mesh.node.workers.inside import values
from mesh.node.workers.inside.port import (
    BUSY_REGIONS,
    INLINE_BYTES,
    KEPT_BYTES,
    KEPT_REGIONS,
    HeldText,
    Port,
    PortError,
    Rows,
)
from mesh.node.workers.inside.values import BadValue

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
DTYPES = (
    arrays.boolean_dtypes()
    | arrays.integer_dtypes()
    | arrays.unsigned_integer_dtypes()
    | arrays.floating_dtypes(sizes=(16, 32, 64))
    | arrays.complex_number_dtypes(sizes=(64, 128))
)


@st.composite
def numeric(draw: st.DrawFn) -> Any:
    """Draw an array of any type, byte order, shape and order in memory."""
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
    found: Any = np.asarray(draw(arrays.arrays(draw(DTYPES), shape)))
    how = draw(st.sampled_from(["as it is", "transposed", "stepped", "reversed", "read-only", "large"]))
    if how == "transposed":
        return found.T
    if how == "stepped" and found.ndim:
        return np.concatenate([found, found])[::2]
    if how == "reversed" and found.ndim:
        return found[::-1]
    if how == "large" and found.ndim and found.size:
        return np.concatenate([found] * (INLINE_BYTES // found.nbytes + 1))
    if how == "read-only":
        found.flags.writeable = False
    return found


@st.composite
def texts(draw: st.DrawFn) -> Any:
    """Draw an array of str, bytes or both, as numpy holds them in its ways."""
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
    items = draw(st.lists(TEXT | st.binary(max_size=40), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    kind = draw(st.sampled_from(["object", "S", "U"]))
    found: Any = np.empty(len(items), object)
    found[:] = items
    if kind == "S":
        found = np.array([_octets(each) for each in items], "S40")
    if kind == "U":
        found = np.array([each if isinstance(each, str) else "b" for each in items], "U40")
    return found.reshape(shape)


def _octets(each: Any) -> bytes:
    octets: bytes = each.encode() if isinstance(each, str) else bytes(each)
    return octets


def read(given: Any) -> Any:
    """Return what is to arrive: arrays in native order of memory, text as bytes, lists for tuples."""
    if isinstance(given, HeldText):
        return read(given.array())
    if isinstance(given, np.ndarray):
        if given.dtype.kind in "OSU":
            found: Any = np.empty(given.size, object)
            found[:] = [_octets(each) for each in given.ravel().tolist()]
            return found.reshape(given.shape)
        return np.ascontiguousarray(given).reshape(given.shape)
    if isinstance(given, dict):
        return {key: read(each) for key, each in given.items()}
    if isinstance(given, list | tuple):
        return [read(each) for each in given]
    return given


def same(expected: Any, found: Any) -> bool:
    if isinstance(found, HeldText):
        found = found.array()
    if isinstance(expected, np.ndarray):
        assert isinstance(found, np.ndarray)
        if expected.dtype.kind == "O":
            alike = found.dtype == object and found.shape == expected.shape
            return bool(alike and found.tolist() == expected.tolist())
        little = expected.astype(expected.dtype.newbyteorder("<"))
        return bool(found.dtype == little.dtype and found.shape == little.shape and found.tobytes() == little.tobytes())
    if isinstance(expected, dict):
        return expected.keys() == found.keys() and all(same(expected[key], found[key]) for key in expected)
    if isinstance(expected, list):
        return len(expected) == len(found) and all(map(same, expected, found))
    return bool(expected == found)


TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | TEXT | st.binary(max_size=50) | numeric() | texts(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)


class Pair:
    """Two ends, and what they keep of each other's messages."""

    def __init__(self, **here: Any) -> None:
        self.node, self.worker = Port(**here), Port()

    def tell(self, message: list[Any], *, back: bool = False) -> Any:
        sender, receiver = (self.worker, self.node) if back else (self.node, self.worker)
        packet, fd = sender.encode(message)
        assert len(packet) <= ports.PACKET_BYTES
        return receiver.decode(packet, fd)

    def close(self) -> None:
        self.node.close()
        self.worker.close()


def opened() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def mapped() -> int:
    return Path("/proc/self/maps").read_text().count("mesh-tensors")


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(TREES, st.booleans(), st.booleans()), min_size=1, max_size=8), st.booleans())
def test_what_one_says_the_other_reads_and_what_it_keeps_stays(talk: list[tuple[Any, bool, bool]], held: bool) -> None:
    """Some of what came is kept, and is as it was after all later messages in both directions."""
    pair, kept = Pair(**({"held_elements": 3} if held else {})), []
    before = opened()
    for at, (tree, back, keep) in enumerate(talk):
        found = pair.tell(["run", at, tree], back=back)
        assert found[:2] == ["run", at]
        assert same(read(tree), found[2])
        if keep:
            kept.append((read(tree), found[2]))
        del found
        assert all(same(*each) for each in kept)
    pair.close()
    kept.clear()
    assert opened() <= before


@pytest.mark.parametrize("dtype", [*ports._TYPES, ">f4", ">i8", ">c16", "|S5", "<U5", "object"])
@pytest.mark.parametrize("size", [0, 1, 5000, 200_000])
def test_arrays_of_every_type_arrive_writable_and_apart(dtype: str, size: int) -> None:
    given_: Any = np.zeros(size, dtype)
    if dtype == "object":
        given_[:] = [str(at).encode() for at in range(size)]
    elif np.dtype(dtype).kind not in "SU":
        given_[:] = np.arange(size) % 2
    pair = Pair()
    first, second = pair.tell(["x", given_, given_])[1:]
    assert same(read(given_), first)
    if size:
        first[0] = first[-1] if dtype == "object" else 1
        assert same(read(given_), second), "what one writes into one array is not seen in the other"
    assert first.flags.writeable


def test_rows_arrive_joined() -> None:
    parts = [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.ones((1, 4), np.float32).T.copy().T,
        np.zeros((0, 4), np.float32),
    ]
    for more in (0, 5000):
        given_ = [*parts, np.ones((more, 4), np.float32)]
        assert Rows.can_join(given_)
        assert np.array_equal(Pair().tell(["run", 1, {"x": Rows(given_)}])[2]["x"], np.concatenate(given_))


def test_regions_are_used_again_and_given_back() -> None:
    pair = Pair()
    maps = mapped()
    large: Any = np.ones(1_000_000, np.float32)
    for at in range(200):
        found = pair.tell(["run", at, large * at])
        answer = pair.tell(["done", at, found[2]], back=True)
        assert answer[2][7] == at
        del found, answer
    assert len(pair.node._mine) <= 3
    assert len(pair.worker._mine) <= 3
    # One huge message is not remembered by its room.
    huge: Any = np.ones(KEPT_BYTES // 4 * 2, np.float32)
    for message in (huge, large, large, large):
        pair.tell(["run", 1, message])
        pair.tell(["done", 1, {}], back=True)
    for port in (pair.node, pair.worker):
        assert sum(port._mine[each].size for each in port._free) <= KEPT_BYTES
        assert len(port._free) <= KEPT_REGIONS
        assert sum(each.size for each in port._theirs.values()) <= KEPT_BYTES + 2 * huge.nbytes
    pair.tell(["run", 1, 0])
    assert sum(each.size for each in pair.worker._theirs.values()) <= KEPT_BYTES
    pair.close()
    assert mapped() <= maps


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32))
def test_memory_is_bounded_whatever_is_kept_for_a_while(seed: int) -> None:
    """Messages of random sizes in both directions, of which the receivers keep some for a random time."""
    rng, pair = random.Random(seed), Pair()
    kept: list[tuple[float, Any]] = []
    in_a_row, longest, before = 0, 0, False
    for at in range(200):
        size = rng.choice([10, 10_000, 50_000, 200_000])
        value = rng.random()
        back = rng.random() < 0.5
        # What was let go of is told with the next message the other way.
        in_a_row = in_a_row + 1 if back is before else 1
        longest, before = max(longest, in_a_row), back
        found = pair.tell(["x", at, np.full(size, value)], back=back)
        if rng.random() < 0.5:
            kept.append((value, found[2]))
        del found
        while len(kept) > 20 or (kept and rng.random() < 0.3):
            expected, array = kept.pop(rng.randrange(len(kept)))
            assert (array == expected).all()
        assert len(pair.node._mine) <= BUSY_REGIONS + KEPT_REGIONS + longest
        assert len(pair.worker._mine) <= BUSY_REGIONS + KEPT_REGIONS + longest


def test_what_is_kept_for_ever_keeps_few_regions() -> None:
    pair, kept = Pair(), []
    for at in range(100):
        kept.append(pair.tell(["run", at, np.full(10_000, at, np.float64)])[2])
        pair.tell(["done", at, {}], back=True)
    assert len(pair.node._mine) <= BUSY_REGIONS + KEPT_REGIONS + 2
    assert [int(each[5]) for each in kept] == list(range(100))
    assert len({int(each.sum()) for each in kept}) == 100


def test_what_cannot_be_said_changes_nothing() -> None:
    pair = Pair()
    large: Any = np.ones(100_000)
    for _ in range(20):
        pair.tell(["run", 1, large])
        for bad in (object(), [large, object()], np.zeros(3, "M8[s]"), np.array([object()]), "\udc80", 2**70):
            with pytest.raises(BadValue):
                pair.worker.encode(["done", 1, bad])
            with pytest.raises(BadValue):
                pair.node.encode(["run", 1, bad])
        assert pair.tell(["done", 1, large], back=True)[2][0] == 1
    assert len(pair.node._mine) <= 2
    assert len(pair.worker._mine) <= 2


def region(size: int = 1 << 16, *, seals: int = ports._SEALS) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def pipe() -> int:
    there, here = os.pipe()
    os.close(here)
    return there


DESCRIPTORS: dict[str, Callable[[], int]] = {
    "none": lambda: -1,
    "a region": region,
    "an empty region": lambda: region(0),
    "a small region": lambda: region(10),
    "a region without seals": lambda: region(seals=0),
    "a region that may shrink": lambda: region(seals=fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL),
    "a region that cannot be written": lambda: region(seals=ports._SEALS | fcntl.F_SEAL_WRITE),
    "a region larger than memory": lambda: region(1 << 45),
    "a pipe": pipe,
    "a file": lambda: os.open(__file__, os.O_RDONLY),
    "a folder": lambda: os.open("/", os.O_RDONLY),
    "a device": lambda: os.open("/dev/zero", os.O_RDWR),
}


def real() -> list[bytes]:
    """Return packets that a peer sends: with everything in them, and in a region."""
    tree = ["run", 1, {"x": np.ones((2, 3), np.float32), "t": np.array([b"ab", "c"], object)}, ["id", {"a": 1}]]
    small, _ = Port().encode(tree)
    large, fd = Port().encode(["run", 1, np.ones(100_000)])
    os.close(fd)
    return [small, large]


def changed(which: int, at: int, byte: int, cut: int) -> bytes:
    """Return a real packet with another byte, and cut."""
    whole = real()[which]
    return whole[:at] + bytes([byte]) + whole[at + 1 : cut]


@settings(deadline=None, max_examples=1500)
@given(
    packet=st.binary(max_size=80)
    | st.builds(lambda rest: b"\0" + rest, st.binary(max_size=80))
    | st.builds(
        lambda numbers: ports._IN_REGION.pack(1, *numbers),
        st.tuples(
            st.integers(0, 3) | st.integers(0, 2**32 - 1),
            st.integers(0, 70) | st.integers(0, 2**32 - 1),
            *[st.integers(0, 1 << 16) | st.integers(0, 2**64 - 1)] * 2,
        ),
    )
    | st.builds(changed, st.integers(0, 1), st.integers(0, 200), st.integers(0, 255), st.integers(0, 400)),
    what=st.sampled_from(list(DESCRIPTORS)),
)
def test_any_packet_with_any_descriptor_is_a_message_or_is_refused(packet: bytes, what: str) -> None:
    before = opened()
    port = Port(held_elements=100)
    for _ in range(2):
        try:
            found = port.decode(packet, DESCRIPTORS[what]())
        except PortError:
            continue
        assert isinstance(found, list)
        assert found
    port.close()
    assert opened() <= before


@pytest.mark.parametrize("fallback", [False, True], ids=["msgspec", "alone"])
@settings(deadline=None, max_examples=500)
@given(
    said=st.lists(
        st.tuples(
            st.integers(0, 255),
            st.integers(0, 40),
            st.integers(0, 2**64 - 1) | st.integers(0, 64),
            st.integers(0, 2**64 - 1) | st.integers(0, 64),
            st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), max_size=5),
        ),
        max_size=3,
    ),
    data=st.binary(max_size=64),
)
def test_any_array_that_is_said_to_be_there_is_one_or_is_refused(fallback: bool, said: list[Any], data: bytes) -> None:
    tree = [
        msgspec.msgpack.Ext(1, struct.pack("<BBQQ", kind, axes, at, size) + struct.pack(f"<{len(shape)}q", *shape))
        for kind, axes, at, size, shape in said
    ]
    header = msgspec.msgpack.encode([[], [], "run", 1, tree])
    packet = struct.pack("<BI", 0, len(header)) + header
    packet += bytes(-len(packet) % 16) + data
    with pytest.MonkeyPatch.context() as patch:
        if fallback:
            patch.setattr(values, "msgspec", None)
        port = Port(held_elements=100)
    try:
        found = port.decode(packet)
    except PortError:
        return
    for each in found[2]:
        if isinstance(each, HeldText):
            try:
                each.array()
            except BadValue:
                continue
        else:
            each.tobytes()


def test_a_region_that_its_owner_tries_to_shrink_stays() -> None:
    """Reading beyond the end of a file would end the reader with SIGBUS."""
    node = Port()
    packet, fd = node.encode(["run", 1, np.ones(1_000_000)])
    other = os.dup(fd)
    found = Port().decode(packet, fd)
    for size in (0, 10, 1 << 30):
        with pytest.raises(PermissionError):
            os.truncate(other, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(other, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert found[2].sum() == 1_000_000
    with mmap.mmap(other, 4096) as here:
        here[:8] = bytes(8)
    os.close(other)


def test_a_peer_cannot_have_more_mapped_here_than_its_share() -> None:
    port = Port()
    header = b"\x94\x90\x90\xa1x\x01"
    for number in range(1000):
        fd = region(4096)
        with mmap.mmap(fd, 4096) as here:
            here[: len(header)] = header
        try:
            assert port.decode(ports._IN_REGION.pack(1, number, len(header), 16, 16), fd) == ["x", 1]
        except PortError:
            break
    assert number == ports.MOST_REGIONS
    assert len(port._theirs) == ports.MOST_REGIONS


@pytest.mark.parametrize(
    ("numbers", "why"),
    [([1], "region 1 was not in use"), ([-1], "region -1 was not in use"), (["a"], "expected numbers")],
)
def test_freeing_what_was_not_used_is_refused(numbers: list[Any], why: str) -> None:
    header = msgspec.msgpack.encode([numbers, [], "x", 1])
    with pytest.raises(PortError, match=why):
        Port().decode(struct.pack("<BI", 0, len(header)) + header)
