"""The fast reading and writing of BYTES elements agrees with a plain one, element by element, for any bytes."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.api import bytes_elements
from mesh.api.bytes_elements import TensorError, check, join, split
from mesh.api.tensors import check_raw, decode_contents, decode_raw, encode_contents
from mesh.core.types import Dtype


def plain_split(data: bytes, count: int) -> list[bytes] | str:
    """Return the elements, or the words for what is wrong with them."""
    if len(data) < 4 * count:
        at = whole = 0
        while at + 4 <= len(data):
            at += 4 + int.from_bytes(data[at : at + 4], "little")
            whole += at <= len(data)
        return f"expected {count} BYTES elements, got {whole} in {len(data)} bytes"
    items: list[bytes] = []
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            return f"expected 4 bytes of length before BYTES element {len(items)}, got {len(data) - at}"
        length = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if length > len(data) - at:
            return f"expected {length} bytes for BYTES element {len(items)}, got {len(data) - at}"
        items.append(data[at : at + length])
        at += length
    return items if len(items) == count else f"expected {count} BYTES elements, got {len(items)}"


def plain_join(items: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def fast_split(data: bytes, count: int) -> list[bytes] | str:
    try:
        items: list[bytes] = split(memoryview(data), count).tolist()
    except TensorError as error:
        return error.message
    return items


def fast_check(data: bytes, count: int) -> str:
    try:
        check(memoryview(data), count)
    except TensorError as error:
        return error.message
    return ""


def agree(data: bytes, count: int) -> None:
    expected = plain_split(data, count)
    assert fast_split(data, count) == expected
    assert fast_check(data, count) == (expected if isinstance(expected, str) else "")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few elements be several pieces, and few of them be looked at for equal lengths."""
    monkeypatch.setattr(bytes_elements, "PIECE", 3)
    monkeypatch.setattr(bytes_elements, "EQUAL_FROM", 2)


Elements = st.one_of(
    st.lists(st.binary(max_size=5), max_size=20),
    st.integers(0, 4).flatmap(lambda size: st.lists(st.binary(min_size=size, max_size=size), max_size=20)),
)


@settings(max_examples=500, deadline=None)
@given(items=Elements, more=st.integers(-2, 2), tail=st.binary(max_size=6), cut=st.integers(0, 6))
def test_elements_cut_continued_and_miscounted(items: list[bytes], more: int, tail: bytes, cut: int) -> None:
    data = plain_join(items)
    agree(data, len(items))
    agree(data, max(0, len(items) + more))
    agree(data + tail, len(items))
    agree(data[: max(0, len(data) - cut)], len(items))


@settings(max_examples=500, deadline=None)
@given(data=st.binary(max_size=60), count=st.integers(0, 20))
def test_any_bytes(data: bytes, count: int) -> None:
    agree(data, count)


@settings(max_examples=300, deadline=None)
@given(items=Elements, at=st.integers(0, 100), byte=st.integers(0, 255))
def test_a_changed_byte(items: list[bytes], at: int, byte: int) -> None:
    data = bytearray(plain_join(items))
    if data:
        data[at % len(data)] = byte
    agree(bytes(data), len(items))


def objects(items: Sequence[object]) -> np.ndarray:
    array = np.empty(len(items), object)
    array[:] = items
    return array


Values = st.one_of(st.binary(max_size=5), st.text(max_size=5, alphabet=st.characters(codec="utf-8")))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(Values, st.binary(max_size=3).map(bytearray)), max_size=20))
def test_what_is_put_together_is_what_a_plain_one_makes(items: list[str | bytes]) -> None:
    expected = plain_join([item.encode() if isinstance(item, str) else bytes(item) for item in items])
    assert join(objects(items)) == expected


def test_lengths_beyond_the_short_ones() -> None:
    items = [b"x" * size for size in (0, 1, 1023, 1024, 70_000, 3)]
    assert join(objects(items)) == plain_join(items)
    assert split(memoryview(plain_join(items)), len(items)).tolist() == items


@pytest.mark.parametrize(
    "array",
    [
        np.array([b"a", b"bc\0"]),
        np.array(["é", ""]),
        np.array([["a", "b"], ["c", "d"]]).T,
        np.array(b"one"),
        np.empty((0, 3), object),
        objects([b"a", b"b", b"c"])[::-1],
    ],
)
def test_arrays_of_every_kind_and_layout(array: np.ndarray) -> None:
    expected = [item.encode() if isinstance(item, str) else bytes(item) for item in array.flat]
    assert join(array) == plain_join(expected)
    contents = encode_contents(array, Dtype.BYTES)
    assert list(contents.bytes_contents) == expected
    assert decode_contents(contents, Dtype.BYTES, array.shape).reshape(-1).tolist() == expected


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([b"a", 1], "expected str or bytes elements for BYTES, got int"),
        (["a", "\ud800"], "expected str elements that UTF-8 can carry"),
        (["a", b"b", "\ud800"], "expected str elements that UTF-8 can carry"),
        ([b"a"] * 10 + [None], "got NoneType"),
    ],
)
def test_what_is_no_element_is_said(items: list[object], said: str) -> None:
    with pytest.raises(TensorError, match=said):
        join(objects(items))


def test_others_get_their_turn_between_pieces() -> None:
    turns: list[int] = []
    items = [bytes(each % 3) for each in range(10)]
    data = plain_join(items)
    assert split(memoryview(data), 10, lambda: turns.append(1)).tolist() == items
    assert split(memoryview(plain_join([b"ab"] * 10)), 10, lambda: turns.append(2)).tolist() == [b"ab"] * 10
    assert join(objects(items), lambda: turns.append(3)) == data
    assert turns == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_a_view_into_a_message_is_read() -> None:
    data = plain_join([b"a", b"bc"])
    view = memoryview(b"..." + data + b"...")[3:-3]
    assert split(view, 2).tolist() == [b"a", b"bc"]
    assert split(memoryview(bytearray(data)), 2).tolist() == [b"a", b"bc"]


@settings(max_examples=200, deadline=None)
@given(dtype=st.sampled_from(list(Dtype)), data=st.binary(max_size=40), shape=st.lists(st.integers(-1, 5), max_size=3))
def test_checking_refuses_what_decoding_refuses(dtype: Dtype, data: bytes, shape: list[int]) -> None:
    said = []
    for read in (decode_raw, check_raw):
        try:
            read(data, dtype, shape)
            said.append("")
        except TensorError as error:
            said.append(error.message)
    assert said[0] == said[1]


def test_many_elements_in_pieces_of_the_real_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    chance = random.Random(1)
    items = [chance.randbytes(chance.randrange(6)) for _ in range(3 * bytes_elements.PIECE + 5)]
    assert join(objects(items)) == plain_join(items)
    assert split(memoryview(plain_join(items)), len(items)).tolist() == items
