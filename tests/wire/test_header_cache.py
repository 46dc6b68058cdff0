from __future__ import annotations

import itertools
from typing import Final

import pytest
from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.wire.fields import Block
from mesh.wire.frames import ConnectionFault, ErrorCode
from mesh.wire.header_cache import STATIC, VARYING, HeaderReader, encode, encode_all

LIMIT: Final = 64 * 1024
Pair = tuple[bytes, bytes]
Written = tuple[list[tuple[Pair, bool]], bool]

LENGTHS = st.sampled_from([0, 1, 14, 15, 16, 30, 31, 126, 127, 128, 254, 255, 300, 600])
FILLED = st.builds(lambda size, fill: (fill * size)[:size], LENGTHS, st.binary(min_size=1, max_size=3))
NAMES = (
    st.sampled_from([name for name, _ in STATIC] + [b"x-request-id", b"grpc-timeout", b"traceparent"])
    | st.builds(lambda size: b"x" * size, LENGTHS)
    | st.binary(max_size=8)
)
VALUES = st.sampled_from([value for _, value in STATIC]) | FILLED | st.binary(max_size=40)
PAIRS = st.sampled_from(STATIC) | st.tuples(NAMES, VALUES)
WRITTEN = st.tuples(st.lists(st.tuples(PAIRS, st.booleans()), max_size=10), st.booleans())
"""A list of fields, each perhaps sensitive, and whether Huffman is used."""


def pairs_of(block: Block) -> list[Pair]:
    return [(field.name, field.value) for field in block.fields]


def check(block: Block, expected: list[Pair]) -> None:
    """Assert that `block` has these fields, the right size, and that its raw bytes mean them to any decoder."""
    assert expected == pairs_of(block)
    assert sum(len(name) + len(value) + 32 for name, value in expected) == block.size
    decoder = Decoder(1 << 20)
    for field, pair in zip(block.fields, expected, strict=True):
        assert [pair] == [tuple(each) for each in decoder.decode(field.raw, raw=True)]


@settings(deadline=None)
@given(st.lists(WRITTEN, min_size=1, max_size=12), st.integers(0, 3))
def test_blocks_are_read_as_hpack_reads_them(blocks: list[Written], with_table: int) -> None:
    encoder, reader = Encoder(), HeaderReader(LIMIT)
    for index, (written, huffman) in enumerate(blocks):
        if index == with_table:
            encoder.header_table_size = 0
        fields = [(*pair, sensitive) for pair, sensitive in written]
        check(reader.read(encoder.encode(fields, huffman=huffman)), [pair for pair, _ in written])
        assert (index >= with_table) == reader.stands_alone


@settings(deadline=None)
@given(st.lists(PAIRS, min_size=3, max_size=8), st.lists(st.lists(PAIRS, max_size=4), min_size=2, max_size=6))
def test_blocks_that_begin_alike_are_read_through_their_stem(stem: list[Pair], rests: list[list[Pair]]) -> None:
    reader = HeaderReader(LIMIT)
    reader.read(b"\x20")
    for rest in [*rests, *rests]:
        fresh = (b"x-fresh", b"%d" % next(COUNTER))
        check(reader.read(encode_all([*stem, fresh, *rest])), [*stem, fresh, *rest])
        check(reader.read(encode_all([*stem, *rest])), [*stem, *rest])


COUNTER = itertools.count()


def test_a_name_whose_values_always_differ_is_read_right_before_and_after_it_is_given_up() -> None:
    reader = HeaderReader(LIMIT)
    reader.read(b"\x20")
    known = [(b":method", b"POST"), (b"te", b"trailers"), (b"x-constant", b"1")]
    for number in range(VARYING + 50):
        pairs = [*known, (b"x-varying-id", b"%064d" % number), (b"x-after", b"2")]
        block = reader.read(encode_all(pairs))
        assert pairs == pairs_of(block)
        assert block.fields[3].raw == encode(*pairs[3])


def test_equal_bytes_are_the_same_block() -> None:
    reader = HeaderReader(LIMIT)
    reader.read(b"\x20")
    data = encode_all([(b":method", b"POST"), (b"x-same", b"1")])
    reader.read(data)
    assert reader.read(data) is reader.read(data)


@settings(deadline=None)
@given(st.lists(WRITTEN, min_size=1, max_size=4), st.integers(1, 4096))
def test_a_table_that_is_raised_again_is_understood(blocks: list[Written], size: int) -> None:
    encoder, reader = Encoder(), HeaderReader(LIMIT)
    for table in (0, size, 0):
        encoder.header_table_size = table
        for written, huffman in blocks:
            fields = [(*pair, sensitive) for pair, sensitive in written]
            check(reader.read(encoder.encode(fields, huffman=huffman)), [pair for pair, _ in written])
        assert (table == 0) == reader.stands_alone


def test_what_is_written_leaves_every_table_as_it_is() -> None:
    decoder = Decoder()
    for pair in [*STATIC, (b"x-a", b"1"), (b":path", b"/s/M"), (b"x" * 300, b"y" * 300)]:
        assert [pair] == [tuple(each) for each in decoder.decode(encode(*pair), raw=True)]
    assert len(decoder.header_table.dynamic_entries) == 0


def outcome(reader: HeaderReader, data: bytes) -> list[Pair] | None:
    """Return the fields, None where the block is refused; any other error fails the test."""
    code: ErrorCode | None = None
    try:
        return pairs_of(reader.read(data))
    except ConnectionFault as fault:
        code = fault.code
    assert code in {ErrorCode.COMPRESSION_ERROR, ErrorCode.ENHANCE_YOUR_CALM}
    return None


def by_hpack(data: bytes) -> list[Pair] | None:
    decoder = Decoder(2 * LIMIT)
    decoder.max_allowed_table_size = 0
    decoder.header_table_size = 0
    try:
        return [(bytes(name), bytes(value)) for name, value in decoder.decode(data, raw=True)]
    except (HPACKError, IndexError, ValueError, TypeError):
        return None


MUTATED = st.builds(
    lambda pairs, huffman, cut, tail: bytes(Encoder().encode(pairs, huffman=huffman))[:cut] + tail,
    st.lists(PAIRS, max_size=4),
    st.booleans(),
    st.integers(0, 200),
    st.binary(max_size=20),
)


@settings(deadline=None, max_examples=500)
@given(st.binary(max_size=60) | MUTATED)
def test_any_bytes_that_stand_alone_are_refused_or_read_as_hpack_reads_them(data: bytes) -> None:
    reader = HeaderReader(LIMIT)
    reader.read(b"\x20")
    ours, theirs = outcome(reader, data), by_hpack(data)
    if ours is not None and theirs is not None:
        assert theirs == ours
    if not 0x20 < int.from_bytes(data[:1]) < 0x40:  # A table that is raised is understood, against our settings.
        assert (theirs is None) == (ours is None)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.binary(max_size=40) | MUTATED, max_size=5))
def test_any_bytes_before_the_size_update_are_refused_or_read(blocks: list[bytes]) -> None:
    reader = HeaderReader(LIMIT)
    for data in blocks:
        if outcome(reader, data) is None:
            break


@pytest.mark.parametrize(
    "data",
    [
        b"\x80",  # field 0
        b"\xbe",  # field 62 of a table without entries
        b"\xff\x80\x80\x80\x80\x80\x00",  # a number too long
        b"\x00",  # no name
        b"\x00\x01a",  # no value
        b"\x00\x01a\x05b",  # a value cut off
        b"\x00\x7f\xff\xff\xff\xff\x0fa",  # a name that would end beyond 4 GB
        b"\x00\x01a\x81\x00",  # Huffman padding that is no prefix of EOS
        b"\x00\x01a\x84\xff\xff\xff\xff",  # EOS in the text
        b"\x82\x20",  # a size update after a field
    ],
)
def test_a_block_that_breaks_hpack_ends_the_connection(data: bytes) -> None:
    reader = HeaderReader(LIMIT)
    reader.read(b"\x20")
    with pytest.raises(ConnectionFault) as caught:
        reader.read(data)
    assert caught.value.code == ErrorCode.COMPRESSION_ERROR


def test_a_list_beyond_twice_the_limit_is_left_out_and_one_just_beyond_it_is_read() -> None:
    reader = HeaderReader(1000)
    reader.read(b"\x20")
    value = b"v" * 700
    assert HeaderReader(1000).read(encode(b"x", value) * 2).size > 1000
    assert reader.read(encode(b"x", value) * 2).size > 1000
    for each in (reader, HeaderReader(1000)):
        block = each.read(encode(b"x", value) * 3)
        assert block.fields == ()
        assert block.size > 2000
        check(each.read(encode(b"x", b"1")), [(b"x", b"1")])


def test_a_list_that_a_table_makes_huge_is_left_out_at_the_cost_of_its_own_bytes() -> None:
    encoder, reader = Encoder(), HeaderReader(LIMIT)
    first = encoder.encode([(b"x", b"v" * 3000)], huffman=False)
    assert reader.read(first).size > 3000
    huge = encoder.encode([(b"x", b"v" * 3000)], huffman=False) * 60_000
    assert len(huge) == 60_000
    assert reader.read(huge + encoder.encode([(b"y", b"1")], huffman=False)).fields == ()
    check(reader.read(encoder.encode([(b"y", b"1"), (b"x", b"v" * 3000)])), [(b"y", b"1"), (b"x", b"v" * 3000)])
